// The engine: a plan and what it takes to run it, for any number of callers at once.
//
// An image never meets another one: each runs in an arena of its own, so a result cannot depend on the batch. While
// there are at least as many images as threads, every thread runs whole images and nobody waits for anybody; the rest
// of the batch is run by all threads together, phase by phase. Steps compute rows independently of how they are handed
// out, so both ways give the same bits.
//
// A context (threads, arenas, scratch) serves one call at a time. A one-threaded engine makes a context for each caller
// that comes while the others are busy; a many-threaded one has a single context and callers queue for it, because
// its threads already fill the cores it was given.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "plan.h"

namespace qvit {

struct StepTime {
  std::string name;
  std::vector<int> ops;
  double seconds = 0.0;  // summed over threads
};

class Engine {
 public:
  Engine(const Program& program, const Kernels& kernels, int threads, bool fuse);
  ~Engine();

  const Plan& plan() const { return plan_; }

  // `inputs` and `outputs` point to `batch` images each, in the order of the plan's ports: float values, int16 codes or
  // int32 wide codes.
  // With `times`, one entry per step is filled in.
  void run(int64_t batch, const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
           std::vector<StepTime>* times);

  int64_t arena_bytes() const { return plan_.arena_bytes; }

 private:
  struct Context;
  struct Call;
  void bind(Context& context, int arena, const Call& call, int64_t image) const;
  void finish(Context& context, int arena, const Call& call, int64_t image) const;
  void run_alone(Context& context, int worker, const Call& call, int64_t image) const;
  void run_together(Context& context, const Call& call, int64_t image) const;
  void run_step(Context& context, int worker, const Frame& frame, int step, int64_t begin, int64_t end,
                bool timed) const;
  std::unique_ptr<Context> acquire();
  void release(std::unique_ptr<Context> context);

  Plan plan_;
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<std::unique_ptr<Context>> free_;
  int made_ = 0;
  int64_t process_;  // that made the contexts
};

}  // namespace qvit
