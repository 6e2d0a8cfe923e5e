// The plan: a checked Program turned into steps, phases and places in memory. Built once at load, never changed.
//
//   ops -> fused steps (fuse.cc) -> phases -> storages with a lifetime -> offsets in one arena (plan.cc)
//
// A phase is what runs between two barriers. Consecutive steps that work row by row on the same rows share one: a
// thread takes a block of rows through all of them (LayerNorm, quantize, fc1, GELU, quantize, fc2, add ...) while they
// are in its caches. Storages live from the first to the last phase that touches them, and storages whose lives do not
// overlap share memory. Inside a phase nothing is reused: other threads may be at another step of it.
//
// Rows that nobody reads are not computed: a ViT that classifies by its class token needs one row of its last block's
// MLP, not 197.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "step.h"

namespace qvit {

inline constexpr int64_t kCallers = -2;

struct Storage {
  int64_t bytes = 0;
  int64_t offset = -1;        // in the arena; kCallers: a float input or output, where the caller has it
  int first = -1, last = -1;  // phases
};

struct Phase {
  std::vector<int> steps;
  int64_t first = 0, units = 1, task_units = 1, tasks = 1;
};

// What a caller fills or reads: values as they are, codes as int16, wide ones as int32. `place` where heads are columns
// of a wider matrix.
struct Port {
  Buffer buffer;
  int storage = -1;
  std::optional<HeadPlace> place = std::nullopt;
};

struct Plan {
  const Kernels* kernels = nullptr;
  int threads = 1;
  std::vector<std::unique_ptr<Step>> steps;
  std::vector<Phase> phases;
  std::vector<Storage> storages;
  std::vector<Port> inputs, outputs;
  int64_t arena_bytes = 0;
  size_t scratch_bytes = 0;
};

// Throws ProgramError when the program is not well formed. With fuse = false every op is a step of its own.
Plan make_plan(const Program& program, const Kernels& kernels, int threads, bool fuse);

// fuse.cc: the steps of a checked program in order of execution; adds the storages they use.
void make_steps(const Program& program, bool fuse, Plan& plan);

}  // namespace qvit
