#include "cpu.h"

#include <cstdlib>

#include "program.h"

namespace qvit {
namespace {

bool has_avx2_and_fma() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // includes the operating system's support
#else
  return false;
#endif
}

bool has_avx512_vnni() {
#if defined(__x86_64__) && defined(__GNUC__)
  return has_avx2_and_fma() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

std::vector<KernelPath> probe() {
  std::vector<KernelPath> paths;
#if defined(QVIT_BUILD_AVX512)
  paths.push_back({"avx512vnni", true, has_avx512_vnni(), &kAvx512Kernels});
#else
  paths.push_back({"avx512vnni", false, has_avx512_vnni(), nullptr});
#endif
#if defined(QVIT_BUILD_AVX2)
  paths.push_back({"avx2", true, has_avx2_and_fma(), &kAvx2Kernels});
#else
  paths.push_back({"avx2", false, has_avx2_and_fma(), nullptr});
#endif
  paths.push_back({"scalar", true, true, &kScalarKernels});
  return paths;
}

}  // namespace

const std::vector<KernelPath>& kernel_paths() {
  static const std::vector<KernelPath> paths = probe();
  return paths;
}

const Kernels& choose_kernels(const std::string& name) {
  std::string wanted = name;
  if (wanted.empty()) {
    const char* forced = std::getenv("QVIT_CPU");
    wanted = forced != nullptr ? forced : "";
  }
  std::string known;
  for (const KernelPath& path : kernel_paths()) {
    const bool usable = path.built && path.supported;
    if (wanted.empty() && usable) return *path.kernels;
    if (path.name == wanted) {
      if (!path.built) throw ProgramError("kernel path '" + wanted + "' is not built into this library");
      if (!path.supported) throw ProgramError("kernel path '" + wanted + "' is not supported by this processor");
      return *path.kernels;
    }
    known += (known.empty() ? "" : ", ") + path.name;
  }
  throw ProgramError("kernel path '" + wanted + "' is unknown; QVIT_CPU takes one of: " + known);
}

}  // namespace qvit
