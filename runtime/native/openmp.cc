#include "openmp.h"

#include <dlfcn.h>

namespace qvit {
namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

Parallel find() {
  static const Parallel parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return parallel;
}

}  // namespace

void on_openmp_threads(int threads, void (*job)(void*), void* data) {
  const Parallel parallel = threads > 1 ? find() : nullptr;
  if (parallel != nullptr) {
    parallel(job, data, static_cast<unsigned>(threads), 0);
  } else {
    job(data);
  }
}

}  // namespace qvit
