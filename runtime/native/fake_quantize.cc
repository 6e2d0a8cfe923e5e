#include "fake_quantize.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>

#include "openmp.h"

namespace qvit {
namespace {

constexpr int64_t kTaskElements = 16384;

// A block is one group of one of the `before` rows: `rest` elements that lie together. A task is a piece of a block, or
// several blocks.
class Tasks {
 public:
  explicit Tasks(const GroupedShape& shape)
      : shape_(shape),
        pieces_(std::max<int64_t>(1, (shape.rest + kTaskElements - 1) / kTaskElements)),
        blocks_(std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, shape.rest))) {}

  int64_t count() const { return (all_blocks() + blocks_ - 1) / blocks_ * pieces_; }
  int64_t groups_per_task() const { return std::min(blocks_, shape_.groups); }

  // work(group, place of the group among those of the task, first element, number of elements)
  template <typename Work>
  void run(int64_t task, const Work& work) const {
    const int64_t first = task / pieces_ * blocks_, last = std::min(first + blocks_, all_blocks());
    const int64_t begin = task % pieces_ * kTaskElements;
    const int64_t count = pieces_ == 1 ? shape_.rest : std::min(kTaskElements, shape_.rest - begin);
    for (int64_t block = first; block < last; ++block) {
      work(block % shape_.groups, (block - first) % groups_per_task(), block * shape_.rest + begin, count);
    }
  }

 private:
  int64_t all_blocks() const { return shape_.rest == 0 ? 0 : shape_.before * shape_.groups; }

  GroupedShape shape_;
  int64_t pieces_, blocks_;
};

// work(task, worker) for every task; workers are numbered from 0 below `threads`.
template <typename Work>
void for_each_task(int64_t count, int threads, const Work& work) {
  struct Shared {
    const Work& work;
    int64_t count;
    std::atomic<int64_t> next;
    std::atomic<int> workers;
  } shared{work, count, {0}, {0}};
  const int useful = static_cast<int>(std::min<int64_t>(threads, count));
  on_openmp_threads(
      useful,
      [](void* data) {
        Shared& s = *static_cast<Shared*>(data);
        const int worker = s.workers.fetch_add(1);
        for (int64_t task = s.next.fetch_add(1); task < s.count; task = s.next.fetch_add(1)) s.work(task, worker);
      },
      &shared);
}

std::vector<GroupGrid> grids_of(const Bank& bank, int64_t groups) {
  std::vector<GroupGrid> grids;
  for (int64_t g = 0; g < groups; ++g) grids.push_back(bank.grid_of(g, groups));
  return grids;
}

int64_t bytes_of(Real type) { return type == Real::kFloat32 ? 4 : 2; }

const void* at(const ConstValues& v, int64_t i) { return static_cast<const char*>(v.data) + i * bytes_of(v.type); }
void* at(const Values& v, int64_t i) { return static_cast<char*>(v.data) + i * bytes_of(v.type); }

struct Sums {
  double inside = 0, upper = 0, lower = 0;

  void add(const GradientLanes& lanes) {
    for (int l = 0; l < kSumLanes; ++l) inside += lanes.inside[l], upper += lanes.upper[l], lower += lanes.lower[l];
  }
  void add(const Sums& other) { inside += other.inside, upper += other.upper, lower += other.lower; }
};

std::vector<Sums> sum_of_tasks(const Tasks& tasks, const std::vector<Sums>& parts, int64_t groups) {
  std::vector<Sums> totals(static_cast<size_t>(groups));
  for (int64_t task = 0; task < tasks.count(); ++task) {
    int64_t seen = 0;
    tasks.run(task, [&](int64_t group, int64_t place, int64_t, int64_t) {
      if (place < seen) return;  // a group that came round again
      totals[static_cast<size_t>(group)].add(parts[static_cast<size_t>(task * tasks.groups_per_task() + place)]);
      ++seen;
    });
  }
  return totals;
}

// The closed forms of qvit/quantizers/fake_quantize.py.
void add_gradient(const Bank& bank, const GroupGrid& grid, const Sums& sums, int64_t group, int64_t groups,
                  double elements, const BankGradient& to) {
  const int64_t entry = bank.entry_of(group, groups);
  const double factor = 1 / std::sqrt(elements * grid.high);
  if (to.scale != nullptr) {
    to.scale[entry] +=
        static_cast<float>(factor * (sums.inside + sums.upper * grid.high + sums.lower * grid.low));
  }
  if (to.offset != nullptr) to.offset[entry] += static_cast<float>(sums.upper + sums.lower);
  if (to.bits != nullptr) {
    const double slope = (grid.high + 1.0) * std::log(2.0);  // ln2 2^(n-1) signed, ln2 2^n unsigned
    const double moved = bank.is_signed ? sums.upper - sums.lower : sums.upper;
    to.bits[bank.bit_group_of(group, groups)] += static_cast<float>(slope * grid.scale * moved);
  }
}

}  // namespace

int64_t Bank::entry_of(int64_t group, int64_t groups) const {
  const int64_t width = widths[bit_group_of(group, groups)];
  const int64_t slot = slots == 1 ? 0 : width - lowest;
  if (slot < 0 || slot >= slots || width < 1 || width > 16) {
    throw std::out_of_range("bit-width " + std::to_string(width) + " of group " + std::to_string(group) +
                            " has no slot in a bank of " + std::to_string(slots) + " from " + std::to_string(lowest) +
                            " on");
  }
  return (rows == 1 ? 0 : group) * slots + slot;
}

GroupGrid Bank::grid_of(int64_t group, int64_t groups) const {
  const int64_t entry = entry_of(group, groups), width = widths[bit_group_of(group, groups)];
  const float half = static_cast<float>(int64_t{1} << (width - 1));
  GroupGrid grid{scale[entry], 0.0f, -0.0f, is_signed ? -half : 0.0f, is_signed ? half - 1 : 2 * half - 1};
  if (offset != nullptr) grid.subtracted = grid.added = offset[entry];
  return grid;
}

void fake_quantize(const Kernels& kernels, const GroupedShape& shape, const Bank& bank, const ConstValues& x,
                   const Values& out, int threads) {
  const auto kernel = kernels.training->fake_quantize[static_cast<int>(x.type)][static_cast<int>(out.type)];
  const std::vector<GroupGrid> grids = grids_of(bank, shape.groups);
  const Tasks tasks(shape);
  for_each_task(tasks.count(), threads, [&](int64_t task, int) {
    tasks.run(task, [&](int64_t group, int64_t, int64_t first, int64_t count) {
      kernel({at(x, first), at(out, first), count, grids[static_cast<size_t>(group)]});
    });
  });
}

void fake_quantize_gradient(const Kernels& kernels, const GroupedShape& shape, const Bank& bank, const ConstValues& x,
                            const ConstValues& d, void* dx, double elements, const BankGradient& gradient,
                            int threads) {
  const auto kernel = kernels.training->gradient[static_cast<int>(x.type)][static_cast<int>(d.type)];
  const std::vector<GroupGrid> grids = grids_of(bank, shape.groups);
  const Tasks tasks(shape);
  const int64_t span = tasks.groups_per_task();
  std::vector<Sums> parts(static_cast<size_t>(tasks.count() * span));
  std::vector<GradientLanes> scratch(static_cast<size_t>(threads * span));
  const Values to{dx, x.type};
  for_each_task(tasks.count(), threads, [&](int64_t task, int worker) {
    GradientLanes* lanes = scratch.data() + worker * span;
    std::fill_n(lanes, span, GradientLanes{});
    tasks.run(task, [&](int64_t group, int64_t place, int64_t first, int64_t count) {
      kernel({at(x, first), at(d, first), at(to, first), count, grids[static_cast<size_t>(group)], lanes + place});
    });
    for (int64_t place = 0; place < span; ++place) parts[static_cast<size_t>(task * span + place)].add(lanes[place]);
  });
  const std::vector<Sums> totals = sum_of_tasks(tasks, parts, shape.groups);
  for (int64_t g = 0; g < shape.groups; ++g) {
    const auto i = static_cast<size_t>(g);
    add_gradient(bank, grids[i], totals[i], g, shape.groups, elements, gradient);
  }
}

}  // namespace qvit
