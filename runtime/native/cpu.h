// Which kernels this process runs: probed once, best wins, QVIT_CPU=scalar|avx2|avx512vnni forces one.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace qvit {

struct KernelPath {
  std::string name;
  bool built;      // compiled into this library
  bool supported;  // this processor and operating system can run it
  const Kernels* kernels;
};

// Best first.
const std::vector<KernelPath>& kernel_paths();

// An empty name asks QVIT_CPU, and the best path when that is unset. Throws ProgramError for a path that is unknown,
// not built or not supported: silently running something else would make every measurement a guess.
const Kernels& choose_kernels(const std::string& name);

}  // namespace qvit
