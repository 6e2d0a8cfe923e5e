#include "engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "pool.h"

namespace qvit {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int64_t process_id() {
#if defined(_WIN32)
  return 0;
#else
  return getpid();
#endif
}

// Elements of a code buffer that share one group, in a row.
int64_t group_stride(const Buffer& b) {
  int64_t stride = b.shape[b.grid->axis] / b.grid->groups();
  for (int axis = b.grid->axis + 1; axis < b.rank(); ++axis) stride *= b.shape[axis];
  return stride;
}

// Where element k of a dense (windows, heads, tokens, width) buffer is kept.
int64_t place_of(const Port& port, int64_t k) {
  const std::vector<int64_t>& shape = port.buffer.shape;
  const int r = port.buffer.rank();
  const int64_t width = shape[r - 1], tokens = shape[r - 2], heads = shape[r - 3], row = k / width;
  return port.place->at(row / (tokens * heads), row / tokens % heads, row % tokens) + k % width;
}

}  // namespace

struct Engine::Call {
  int64_t batch;
  const std::vector<const void*>& inputs;
  const std::vector<void*>& outputs;
  bool timed;
};

struct Engine::Context {
  explicit Context(const Plan& plan)
      : pool(plan.threads),
        barrier(plan.threads),
        next_task(plan.phases.size()),
        arenas(plan.threads),
        pointers(plan.threads, std::vector<std::byte*>(plan.storages.size())),
        times(plan.threads) {
    for (int i = 0; i < plan.threads; ++i) {
      scratch.emplace_back(static_cast<int64_t>(plan.scratch_bytes));
      times[i].assign(plan.steps.size(), 0.0);
    }
  }

  Pool pool;
  Barrier barrier;
  std::vector<std::atomic<int64_t>> next_task;    // by phase
  std::vector<Aligned<std::byte>> arenas;         // by thread; all but the first are made when first needed
  std::vector<std::vector<std::byte*>> pointers;  // by arena: a frame's table
  std::vector<Aligned<std::byte>> scratch;        // by thread
  std::vector<std::vector<double>> times;         // by thread and step
};

Engine::Engine(const Program& program, const Kernels& kernels, int threads, bool fuse)
    : plan_(make_plan(program, kernels, threads, fuse)), process_(process_id()) {}

Engine::~Engine() {
  if (process_id() == process_) return;
  for (auto& context : free_) static_cast<void>(context.release());  // after a fork: see acquire
}

std::unique_ptr<Engine::Context> Engine::acquire() {
  std::unique_lock lock(mutex_);
  if (const int64_t process = process_id(); process != process_) {     // a fork: the parent's threads are not here
    for (auto& context : free_) static_cast<void>(context.release());  // they cannot be joined, so they are left alone
    free_.clear();
    made_ = 0;
    process_ = process;
  }
  const bool may_make = plan_.threads == 1;
  freed_.wait(lock, [&] { return !free_.empty() || may_make || made_ == 0; });
  if (!free_.empty()) {
    auto context = std::move(free_.back());
    free_.pop_back();
    return context;
  }
  ++made_;
  lock.unlock();
  try {
    return std::make_unique<Context>(plan_);
  } catch (...) {
    lock.lock();
    --made_;
    freed_.notify_one();
    throw;
  }
}

void Engine::release(std::unique_ptr<Context> context) {
  std::lock_guard lock(mutex_);
  free_.push_back(std::move(context));
  freed_.notify_one();
}

// Point a frame at image number `image`: storages of the caller where they are, codes converted into the arena.
void Engine::bind(Context& context, int arena, const Call& call, int64_t image) const {
  std::vector<std::byte*>& pointers = context.pointers[arena];
  for (size_t s = 0; s < plan_.storages.size(); ++s) {
    if (plan_.storages[s].offset >= 0) pointers[s] = context.arenas[arena].data() + plan_.storages[s].offset;
  }
  for (size_t i = 0; i < plan_.inputs.size(); ++i) {
    const Port& port = plan_.inputs[i];
    const int64_t n = port.buffer.elements();
    if (!port.buffer.grid) {
      const float* from = static_cast<const float*>(call.inputs[i]) + image * n;
      if (plan_.storages[port.storage].offset == kCallers) {
        pointers[port.storage] = reinterpret_cast<std::byte*>(const_cast<float*>(from));  // steps never write inputs
      } else {
        std::memcpy(pointers[port.storage], from, static_cast<size_t>(n) * sizeof(float));
      }
      continue;
    }
    const Grid& grid = *port.buffer.grid;
    const int64_t inner = group_stride(port.buffer);
    if (grid.wide()) {
      const int32_t* from = static_cast<const int32_t*>(call.inputs[i]) + image * n;
      int32_t* to = reinterpret_cast<int32_t*>(pointers[port.storage]);
      for (int64_t k = 0; k < n; ++k) to[k] = std::clamp(from[k], grid.qmin(0), grid.qmax(0));
      continue;
    }
    const int16_t* from = static_cast<const int16_t*>(call.inputs[i]) + image * n;
    uint8_t* to = reinterpret_cast<uint8_t*>(pointers[port.storage]);
    for (int64_t k = 0; k < n; ++k) {
      const int group = static_cast<int>(k / inner % grid.groups());
      to[k] = static_cast<uint8_t>(std::clamp(from[k] - grid.qmin(group), 0, grid.levels(group)));
    }
  }
  for (size_t i = 0; i < plan_.outputs.size(); ++i) {
    const Port& port = plan_.outputs[i];
    if (plan_.storages[port.storage].offset != kCallers) continue;
    float* to = static_cast<float*>(call.outputs[i]) + image * port.buffer.elements();
    pointers[port.storage] = reinterpret_cast<std::byte*>(to);
  }
}

void Engine::finish(Context& context, int arena, const Call& call, int64_t image) const {
  for (size_t i = 0; i < plan_.outputs.size(); ++i) {
    const Port& port = plan_.outputs[i];
    if (plan_.storages[port.storage].offset == kCallers) continue;
    const int64_t n = port.buffer.elements();
    const std::byte* from = context.pointers[arena][port.storage];
    if (!port.buffer.narrow()) {
      const size_t bytes = static_cast<size_t>(n * port.buffer.element_bytes());
      std::memcpy(static_cast<std::byte*>(call.outputs[i]) + static_cast<size_t>(image) * bytes, from, bytes);
      continue;
    }
    const Grid& grid = *port.buffer.grid;
    const int64_t inner = group_stride(port.buffer);
    int16_t* to = static_cast<int16_t*>(call.outputs[i]) + image * n;
    for (int64_t k = 0; k < n; ++k) {
      const int group = static_cast<int>(k / inner % grid.groups());
      to[k] = static_cast<int16_t>(static_cast<int>(from[port.place ? place_of(port, k) : k]) + grid.qmin(group));
    }
  }
}

void Engine::run_step(Context& context, int worker, const Frame& frame, int step, int64_t begin, int64_t end,
                      bool timed) const {
  const double start = timed ? now() : 0.0;
  plan_.steps[step]->run(frame, begin, end, context.scratch[worker].data());
  if (timed) context.times[worker][step] += now() - start;
}

void Engine::run_alone(Context& context, int worker, const Call& call, int64_t image) const {
  bind(context, worker, call, image);
  const Frame frame{context.pointers[worker].data()};
  for (const Phase& phase : plan_.phases) {
    const int64_t last = phase.first + phase.units;
    for (int64_t begin = phase.first; begin < last; begin += phase.task_units) {
      const int64_t end = std::min(last, begin + phase.task_units);
      for (int step : phase.steps) run_step(context, worker, frame, step, begin, end, call.timed);
    }
  }
  finish(context, worker, call, image);
}

void Engine::run_together(Context& context, const Call& call, int64_t image) const {
  bind(context, 0, call, image);
  for (auto& next : context.next_task) next.store(0, std::memory_order_relaxed);
  const Frame frame{context.pointers[0].data()};
  context.pool.run([&](int worker) {
    for (size_t p = 0; p < plan_.phases.size(); ++p) {
      const Phase& phase = plan_.phases[p];
      for (;;) {
        const int64_t task = context.next_task[p].fetch_add(1, std::memory_order_relaxed);
        if (task >= phase.tasks) break;
        const int64_t begin = phase.first + task * phase.task_units;
        const int64_t end = std::min(phase.first + phase.units, begin + phase.task_units);
        for (int step : phase.steps) run_step(context, worker, frame, step, begin, end, call.timed);
      }
      context.barrier.wait();
    }
  });
  finish(context, 0, call, image);
}

void Engine::run(int64_t batch, const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                 std::vector<StepTime>* times) {
  std::unique_ptr<Context> context = acquire();
  const Call call{batch, inputs, outputs, times != nullptr};
  const int threads = plan_.threads;
  const int64_t alone = threads == 1 ? batch : batch / threads * threads;
  try {
    const int arenas = alone > 0 ? threads : 1;
    for (int i = 0; i < arenas; ++i) {
      if (context->arenas[i].size() == 0)
        context->arenas[i] = Aligned<std::byte>(std::max<int64_t>(plan_.arena_bytes, 1));
    }
    if (call.timed) {
      for (auto& t : context->times) std::fill(t.begin(), t.end(), 0.0);
    }
    if (alone > 0) {
      std::atomic<int64_t> next{0};
      context->pool.run([&](int worker) {
        for (int64_t image; (image = next.fetch_add(1)) < alone;) run_alone(*context, worker, call, image);
      });
    }
    for (int64_t image = alone; image < batch; ++image) run_together(*context, call, image);
    if (call.timed) {
      times->clear();
      for (size_t s = 0; s < plan_.steps.size(); ++s) {
        StepTime time{plan_.steps[s]->name, plan_.steps[s]->ops};
        for (const auto& t : context->times) time.seconds += t[s];
        times->push_back(std::move(time));
      }
    }
  } catch (...) {
    release(std::move(context));
    throw;
  }
  release(std::move(context));
}

}  // namespace qvit
