#include "plan.h"

#include <algorithm>
#include <numeric>

#include "check.h"

namespace qvit {
namespace {

// A task should last some tens of microseconds: long enough to hide being handed out, short enough to be balanced.
constexpr double kTaskWork = 3e6;  // multiply-adds
// Beyond this a core's second-level cache does not keep the weights from task to task: one task for each thread then.
constexpr int64_t kManyWeights = 768 << 10;

// How many units make a task. Rows come in chunks of kChunkRows, which share each panel of weights while it is in the
// first-level cache. Among sizes around the wanted one, that with the smallest largest share of a thread wins.
int64_t choose_task_units(int64_t units, int64_t grain, double unit_cost, int64_t weight_bytes, int threads) {
  const int64_t least = grain < kTileRows ? grain : round_up(kChunkRows, grain);
  const int64_t even = round_up((units + threads - 1) / threads, grain);
  const double work = grain == 1 ? kTaskWork / 4 : kTaskWork;  // heads share nothing worth staying for
  const int64_t wanted = std::max(least, static_cast<int64_t>(work / std::max(unit_cost, 1.0)) / grain * grain);
  if (wanted >= even || weight_bytes > kManyWeights) return even;
  int64_t best = wanted, best_share = units + 1;
  for (int64_t size = wanted; size <= std::min(2 * wanted, even); size += grain) {
    const int64_t tasks = (units + size - 1) / size, full_rounds = (tasks - 1) / threads;
    // All but the last task are full; the thread that takes the last one has had as many as any other.
    const bool last_alone = (tasks - 1) % threads == 0;
    const int64_t last = units - (tasks - 1) * size;
    const int64_t share = full_rounds * size + (last_alone ? last : size);
    if (share < best_share) {
      best = size;
      best_share = share;
    }
  }
  return best;
}

// From the outputs backwards: which rows of each storage does anyone read?
void drop_unread_rows(Plan& plan) {
  std::vector<RowRange> read(plan.storages.size(), kNoRows);
  auto add = [&](int storage, RowRange rows) {
    RowRange& r = read[storage];
    if (r == kAllRows || rows == kNoRows) return;
    if (rows == kAllRows || r == kNoRows) {
      r = rows;
    } else {
      r = {std::min(r.begin, rows.begin), std::max(r.end, rows.end)};
    }
  };
  for (const Port& port : plan.outputs) add(port.storage, kAllRows);
  for (auto step = plan.steps.rbegin(); step != plan.steps.rend(); ++step) {
    // Only steps with one output are narrowed; one that nobody reads (it is the caller's business) is run in full.
    RowRange rows = kAllRows;
    if ((*step)->writes.size() == 1 && !(read[(*step)->writes[0]] == kNoRows)) rows = read[(*step)->writes[0]];
    const std::vector<RowRange> needs = (*step)->narrow(rows);
    for (size_t i = 0; i < needs.size(); ++i) add((*step)->reads[i], needs[i]);
  }
}

void make_phases(Plan& plan) {
  for (int i = 0; i < static_cast<int>(plan.steps.size()); ++i) {
    const Step& step = *plan.steps[i];
    bool join = false;
    if (!plan.phases.empty() && step.by_rows) {
      const Step& before = *plan.steps[plan.phases.back().steps.back()];
      join = before.by_rows && before.units == step.units && before.first == step.first;
    }
    if (!join) plan.phases.emplace_back();
    plan.phases.back().steps.push_back(i);
  }
  for (Phase& phase : plan.phases) {
    double cost = 0.0;
    int64_t grain = 1, weight_bytes = 0;
    for (int i : phase.steps) {
      if (plan.steps[i]->by_rows) weight_bytes += plan.steps[i]->weight_bytes;
      cost += plan.steps[i]->unit_cost;
      grain = std::lcm(grain, plan.steps[i]->grain);
    }
    phase.first = plan.steps[phase.steps.front()]->first;
    phase.units = plan.steps[phase.steps.front()]->units;
    phase.task_units = choose_task_units(phase.units, grain, cost, weight_bytes, plan.threads);
    phase.tasks = (phase.units + phase.task_units - 1) / phase.task_units;
  }
}

void find_lifetimes(Plan& plan) {
  auto touch = [&](int storage, int phase) {
    Storage& s = plan.storages[storage];
    if (s.first < 0) s.first = phase;
    s.last = std::max(s.last, phase);
  };
  for (const Port& port : plan.inputs) touch(port.storage, 0);
  for (int p = 0; p < static_cast<int>(plan.phases.size()); ++p) {
    for (int i : plan.phases[p].steps) {
      for (int s : plan.steps[i]->reads) touch(s, p);
      for (int s : plan.steps[i]->writes) touch(s, p);
    }
  }
  for (const Port& port : plan.outputs) touch(port.storage, static_cast<int>(plan.phases.size()));
}

// First fit, largest storage first: a handful of storages are alive at a time, so this is close to the best.
void place(Plan& plan) {
  std::vector<int> order;
  for (int i = 0; i < static_cast<int>(plan.storages.size()); ++i) {
    if (plan.storages[i].first >= 0 && plan.storages[i].offset != kCallers) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return plan.storages[a].bytes > plan.storages[b].bytes; });
  std::vector<int> placed;
  for (int i : order) {
    Storage& s = plan.storages[i];
    int64_t at = 0;
    bool moved = true;
    while (moved) {
      moved = false;
      for (int j : placed) {
        const Storage& other = plan.storages[j];
        const bool together = s.first <= other.last && other.first <= s.last;
        if (together && at < other.offset + other.bytes && other.offset < at + s.bytes) {
          at = other.offset + other.bytes;
          moved = true;
        }
      }
    }
    s.offset = at;
    plan.arena_bytes = std::max(plan.arena_bytes, at + s.bytes);
    placed.push_back(i);
  }
}

}  // namespace

Plan make_plan(const Program& program, const Kernels& kernels, int threads, bool fuse) {
  if (threads < 1 || threads > 256) throw ProgramError("threads: needs 1 to 256");
  check(program);
  Plan plan;
  plan.kernels = &kernels;
  plan.threads = threads;
  make_steps(program, fuse, plan);
  if (fuse) drop_unread_rows(plan);
  make_phases(plan);
  find_lifetimes(plan);
  // Values of the caller are used where they are; kCallers keeps them out of the arena. A buffer that is both an
  // input and an output, or an output twice, is copied instead.
  std::vector<int> uses(plan.storages.size(), 0);
  for (const Port& port : plan.inputs) ++uses[port.storage];
  for (const Port& port : plan.outputs) ++uses[port.storage];
  for (const std::vector<Port>* ports : {&plan.inputs, &plan.outputs}) {
    for (const Port& port : *ports) {
      if (!port.buffer.grid && uses[port.storage] == 1) plan.storages[port.storage].offset = kCallers;
    }
  }
  place(plan);
  for (const auto& step : plan.steps) plan.scratch_bytes = std::max(plan.scratch_bytes, step->scratch_bytes);
  return plan;
}

}  // namespace qvit
