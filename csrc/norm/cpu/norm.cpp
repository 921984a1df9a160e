// Plans a call, splits it over threads and hands the parts to the kernels of the current ISA level.
#include "norm/cpu/norm.h"

#include <algorithm>
#include <cstring>

#include "core/divide.h"
#include "cpu/levels.h"
#include "cpu/threads.h"
#include "norm/cpu/kernels.h"

namespace weft::norm::cpu {

WEFT_CPU_TABLE(Kernels, kernels)

namespace {

using ::weft::cpu::parallel_for;

constexpr int64_t kGrain =
    32768;  // elements that are worth another thread: about 5 µs, a fork and join is 2-4
constexpr int64_t kStreamBytes =
    8 << 20;  // results beyond this would push everything else out of a core's share of L3
constexpr int64_t kMaxGroups =
    64;  // partial sums of weight gradients, and so threads that backward can use
constexpr int64_t kGroupRows = 16;  // fewer rows than this are not worth a partial sum
constexpr int64_t kReduceColumns = 1024;

int64_t task_count(int64_t N, int64_t C, int64_t most) {
  return std::clamp<int64_t>(
      N * C / kGrain, 1, std::min<int64_t>(::weft::cpu::max_threads(), std::max<int64_t>(most, 1)));
}

int64_t bytes_of(const Rows& rows, int64_t N, int64_t C) {
  return rows ? N * C * static_cast<int64_t>(size_of(rows.dtype)) : 0;
}

// Workspace is handed out front to back, each piece on its own cache line.
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<char*>(base)) {}
  template <class T = void>
  T* take(int64_t bytes) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += round_up(bytes, 64);
    return bytes ? piece : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

void clear(char* memory, int64_t bytes) {
  if (bytes) std::memset(memory, 0, static_cast<size_t>(bytes));
}

struct ForwardPlan {
  bool columns;
  int64_t tiles, tasks, tasks_scratch, row_bytes, total;
  char *scratch, *z, *keep;
  Moments* moments;
  Range* ranges;

  explicit ForwardPlan(const Forward& p) {
    Pieces pieces(p.workspace);
    columns = by_columns(p.N, p.C);
    tiles = ceil_div(p.C, kTile);
    row_bytes = padded(p.C) * static_cast<int64_t>(size_of(acc_of(p.x.dtype)));
    tasks = columns ? p.N * tiles : task_count(p.N, p.C, p.N);
    tasks_scratch = p.plain() && !p.int8 ? 0 : kForwardScratch * row_bytes;
    scratch = pieces.take<char>(columns ? 0 : tasks * tasks_scratch);
    z = pieces.take<char>(columns && tasks_scratch ? p.N * 2 * row_bytes : 0);
    keep = pieces.take<char>(columns && p.dropout.p != 0 ? p.N * 2 * row_bytes : 0);
    moments =
        pieces.take<Moments>(columns ? p.N * tiles * static_cast<int64_t>(sizeof(Moments)) : 0);
    ranges = pieces.take<Range>(
        columns && p.int8 ? p.N * tiles * static_cast<int64_t>(sizeof(Range)) : 0);
    total = pieces.used();
  }
};

struct BackwardPlan {
  bool columns;
  int64_t tiles, tasks, groups, group_rows, group_bytes, scratch_bytes, total;
  char *sums, *scratch;
  double *g, *gx;

  explicit BackwardPlan(const Backward& p) {
    Pieces pieces(p.workspace);
    const int64_t element = static_cast<int64_t>(size_of(acc_of(p.x_dtype)));
    int64_t slots = 0;
    for (const Channels* c :
         {&p.dweight, &p.dbias, &p.dweight1, &p.dbias1, &p.dx_bias, &p.dlayerscale})
      slots += *c ? 1 : 0;
    columns = by_columns(p.N, p.C);
    tiles = ceil_div(p.C, kTile);
    groups = columns ? 1 : std::clamp<int64_t>(ceil_div(p.N, kGroupRows), 1, kMaxGroups);
    group_rows =
        std::max<int64_t>(ceil_div(ceil_div(p.N, groups), 4), 1) * 4;  // whole blocks of rows
    groups = columns ? 1 : std::max<int64_t>(ceil_div(p.N, group_rows), 1);
    tasks = columns ? tiles : task_count(p.N, p.C, groups);
    group_bytes = slots * p.weight.heads * padded(p.C) * element;
    scratch_bytes =
        p.dropout.p == 0 ? 0 : kBackwardScratch * padded(columns ? kTile : p.C) * element;
    sums = pieces.take<char>(groups * group_bytes);
    scratch = pieces.take<char>(tasks * scratch_bytes);
    g = pieces.take<double>(columns ? p.N * (tiles + 1) * 8 : 0);
    gx = pieces.take<double>(columns ? p.N * (tiles + 1) * 8 : 0);
    total = pieces.used();
  }
};

void forward_columns(const Forward& p, const ForwardPlan& plan) {
  const Kernels& k = kernels();
  struct Tile {
    int64_t n, begin, end;
  };
  const auto tile = [&](int64_t task) {
    const int64_t n = task / plan.tiles, begin = task % plan.tiles * kTile;
    return Tile{n, begin, std::min(begin + kTile, p.C)};
  };
  const auto at = [&](char* rows, int64_t n, int64_t per_row) {
    return rows ? rows + n * per_row * plan.row_bytes : nullptr;
  };

  parallel_for(plan.tasks, [&](int64_t task) {
    const auto [n, begin, end] = tile(task);
    k.forward_gather(p, n, begin, end, at(plan.z, n, 2), at(plan.keep, n, 2), &plan.moments[task]);
  });
  for (int64_t n = 0; n < p.N; ++n) {
    Moments total = {0, 0, 0};
    for (int64_t t = 0; t < plan.tiles; ++t) total = merge(total, plan.moments[n * plan.tiles + t]);
    plan.moments[n] = total;
  }
  const bool dynamic = p.int8 && !p.int8.scale;
  if (dynamic) {
    parallel_for(plan.tasks, [&](int64_t task) {
      const auto [n, begin, end] = tile(task);
      k.forward_range(p, n, begin, end, at(plan.z, n, 2), plan.moments[n], &plan.ranges[task]);
    });
    for (int64_t n = 0; n < p.N; ++n) {
      Range total = {0, 0};
      for (int64_t t = 0; t < plan.tiles; ++t) {
        const Range r = plan.ranges[n * plan.tiles + t];
        total = {total.min < r.min ? total.min : r.min, total.max > r.max ? total.max : r.max};
        if (r.min != r.min) {
          total = r;  // NaN
          break;
        }
      }
      plan.ranges[n] = total;
    }
  }
  parallel_for(plan.tasks, [&](int64_t task) {
    const auto [n, begin, end] = tile(task);
    k.forward_finish(p, n, begin, end, at(plan.z, n, 2), plan.moments[n],
                     dynamic ? plan.ranges[n] : Range{});
  });
}

void forward_rows(const Forward& p, const ForwardPlan& plan) {
  const Kernels& k = kernels();
  parallel_for(plan.tasks, [&](int64_t task) {
    k.forward_rows(p, p.N * task / plan.tasks, p.N * (task + 1) / plan.tasks,
                   plan.scratch + task * plan.tasks_scratch);
  });
}

void backward_columns(const Backward& p, const BackwardPlan& plan) {
  const Kernels& k = kernels();
  clear(plan.sums, plan.group_bytes);
  parallel_for(p.N * plan.tiles, [&](int64_t task) {
    const int64_t begin = task % plan.tiles * kTile;
    k.backward_gather(p, task / plan.tiles, begin, std::min(begin + kTile, p.C),
                      plan.g + p.N + task, plan.gx + p.N + task);
  });
  for (int64_t n = 0; n < p.N; ++n) {  // totals in front of the tiles' sums
    plan.g[n] = plan.gx[n] = 0;
    for (int64_t t = 0; t < plan.tiles; ++t) {
      plan.g[n] += plan.g[p.N + n * plan.tiles + t];
      plan.gx[n] += plan.gx[p.N + n * plan.tiles + t];
    }
  }
  parallel_for(plan.tiles, [&](int64_t task) {
    const int64_t begin = task * kTile, end = std::min(begin + kTile, p.C);
    k.backward_finish(p, begin, end, plan.g, plan.gx, plan.sums,
                      plan.scratch + task * plan.scratch_bytes);
    k.backward_reduce(p, 1, begin, end, plan.sums);
  });
}

void backward_rows(const Backward& p, const BackwardPlan& plan) {
  const Kernels& k = kernels();
  parallel_for(plan.tasks, [&](int64_t task) {
    const int64_t first = plan.groups * task / plan.tasks,
                  last = plan.groups * (task + 1) / plan.tasks;
    for (int64_t group = first; group < last; ++group) {
      char* sums = plan.sums + group * plan.group_bytes;
      clear(sums, plan.group_bytes);
      k.backward_rows(p, group * plan.group_rows, std::min((group + 1) * plan.group_rows, p.N),
                      sums, plan.scratch + task * plan.scratch_bytes);
    }
  });
  if (!plan.group_bytes) return;
  const int64_t chunks = ceil_div(p.C, kReduceColumns),
                tasks = std::min(task_count(plan.groups, p.C, chunks), chunks);
  parallel_for(tasks, [&](int64_t task) {
    k.backward_reduce(p, plan.groups, chunks * task / tasks * kReduceColumns,
                      std::min(chunks * (task + 1) / tasks * kReduceColumns, p.C), plan.sums);
  });
}

}  // namespace

int64_t workspace_bytes(const Forward& p) { return ForwardPlan(p).total; }
int64_t workspace_bytes(const Backward& p) { return BackwardPlan(p).total; }

void forward(Forward p) {
  if (p.N == 0 || p.C == 0) return;
  p.stream = bytes_of(p.y, p.N, p.C) + bytes_of(p.int8.q, p.N, p.C) >= kStreamBytes;
  const ForwardPlan plan(p);
  plan.columns ? forward_columns(p, plan) : forward_rows(p, plan);
}

void backward(Backward p) {
  if (p.C == 0) return;
  p.stream = bytes_of(p.dx, p.N, p.C) + bytes_of(p.dresidual, p.N, p.C) >= kStreamBytes;
  const BackwardPlan plan(p);
  plan.columns ? backward_columns(p, plan)
               : backward_rows(p, plan);  // without rows the weights' gradients are still zeros
}

void dropout_mask(const Dropout& dropout, int64_t count, int stream, bool* mask) {
  const int64_t tasks = task_count(1, count, count / 64);
  parallel_for(tasks, [&](int64_t task) {
    const int64_t begin = count * task / tasks, end = count * (task + 1) / tasks;
    kernels().dropout_mask(dropout, begin, end - begin, stream, mask + begin);
  });
}

}  // namespace weft::norm::cpu
