// Plans the backward of attention, splits it over threads and hands the parts to the kernels of the
// current ISA level.
#include "attention/cpu/backward.h"

#include <algorithm>

#include "attention/cpu/attention.h"
#include "cpu/levels.h"
#include "cpu/threads.h"

namespace weft::attention::cpu {

WEFT_CPU_TABLE(BackwardKernels, backward_kernels)

namespace {

using ::weft::cpu::share_tasks;

constexpr int64_t kChunkBytes = 3 << 19;  // more than an L2: a line takes a few bytes a cycle of it
constexpr int64_t kGrain = 1 << 16;       // scores × elements that are worth another thread

// How finely to cut: not at all where batch entries and heads keep the threads busy; else so that a
// diagonal holds three pieces a thread on average.
int64_t cells_of(const Backward& p, int64_t threads) {
  const int64_t parts = p.B * p.K, lines = p.H / p.K * ceil_div(p.S, kQueries);
  const bool equal = !p.sequences.cu_q && !p.sequences.used_q && !p.sequences.used_k;
  if (threads == 1 || parts >= 8 * threads || (equal && parts % threads == 0)) return 1;
  return std::clamp<int64_t>(ceil_div(6 * threads, parts), 1,
                             std::max<int64_t>(std::min(lines, ceil_div(p.T, kKeys)), 1));
}

}  // namespace

BackwardPlan::BackwardPlan(const Backward& p) {
  const int64_t element = static_cast<int64_t>(size_of(acc_of(p.q.dtype))),
                in = static_cast<int64_t>(size_of(p.q.dtype));
  const int64_t D = padded(p.D), Dv = padded(p.Dv);
  const int64_t work = p.B * p.H * p.S * p.T * (p.D + p.Dv);
  const int64_t threads = std::clamp<int64_t>(work / kGrain, 1, ::weft::cpu::max_threads());
  cells = p.B * p.K > 0 ? cells_of(p, threads) : 1;
  tasks = std::clamp<int64_t>(p.B * p.K * cells, 1, threads);
  const int64_t key_bytes = (D + Dv) * element + (2 * D + Dv) * in;
  chunk = std::clamp<int64_t>(kChunkBytes / (kKeys * key_bytes), 1,
                              std::max<int64_t>(ceil_div(p.T, kKeys), 1));

  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    char* piece = static_cast<char*>(p.workspace) + used;
    used += round_up(bytes, 64);
    return bytes ? piece : nullptr;
  };
  // Null where a call is one piece, and a mark for BackwardScratch.
  const int64_t cut = cells > 1 ? element : 0;
  dq = take(cut * query_blocks(p, p.B) * p.H * kQueries * D);
  dk = take(cut * key_blocks(p, p.B) * p.K * kKeys * D);
  dv = take(cut * key_blocks(p, p.B) * p.K * kKeys * Dv);
  scratch_bytes = BackwardScratch(p, *this, nullptr).bytes;
  scratch = take(tasks * scratch_bytes);
  total = used;
}

int64_t workspace_bytes(const Backward& p) { return BackwardPlan(p).total; }

void backward(const Backward& p) {
  const BackwardPlan plan(p);
  const BackwardKernels& k = backward_kernels();
  const int64_t parts = p.B * p.K;
  for (int64_t diagonal = 0; diagonal < 2 * plan.cells - 1; ++diagonal) {
    const int64_t first = std::max<int64_t>(diagonal - plan.cells + 1, 0),
                  last = std::min(diagonal, plan.cells - 1), count = last - first + 1;
    share_tasks(plan.tasks, parts * count, [&](int64_t thread, int64_t i) {
      const int64_t part = i / count, line = first + i % count;
      k.cell(p, plan, {part / p.K, part % p.K, line, diagonal - line},
             plan.scratch + thread * plan.scratch_bytes);
    });
  }
  if (p.dsinks) share_tasks(plan.tasks, p.H, [&](int64_t, int64_t head) { k.sink(p, head); });
}

}  // namespace weft::attention::cpu
