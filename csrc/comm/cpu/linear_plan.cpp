// Products of floats that collectives are computed with: when they are weft's own, and who works on
// what.
//
// A task is a panel of columns by some rows. Threads take tasks as they become free. No result depends
// on how the work is cut.
#include <algorithm>

#include "comm/cpu/linear.h"
#include "core/divide.h"
#include "cpu/isa.h"
#include "cpu/levels.h"
#include "cpu/threads.h"

namespace weft::comm::cpu {

WEFT_CPU_TABLE(LinearKernels, linear_kernels)

namespace {

using ::weft::cpu::max_threads;
using ::weft::cpu::share_tasks;

constexpr int64_t kThreadTasks = 4;  // for each thread, so that none waits long
constexpr int64_t kLeastRows = 96;  // of a task, where there are more: packing is shared by as many
constexpr int64_t kThreadWork = 1 << 18;  // products that are worth another thread

int64_t workers(const Linear& p) { return p.M * p.N * p.K < kThreadWork ? 1 : max_threads(); }

}  // namespace

// Rows from which on packing a weight for one product has been worth it. In bfloat16 torch's is as
// fast but for a few percent, and where there are tiles (AMX) faster by far.
bool takes(const Linear& p) {
  if (p.K == 0 || (p.weight_column != 1 && p.weight_row != 1)) return false;
  if (!linear_kernels().takes(p.dtype)) return false;
  if (p.dtype == DType::f32) return p.M >= 2;
  return p.M >= 96 && p.K % 2 == 0 && !::weft::cpu::has_amx();
}

int64_t workspace_bytes(const Linear& p) { return workers(p) * kScratchBytes; }

void linear(const Linear& p) {
  const LinearKernels& k = linear_kernels();
  const int64_t threads = workers(p), panels = ceil_div(p.N, k.panel);
  const int64_t tiles = ceil_div(p.M, k.tile_rows);
  const int64_t wanted = threads == 1 ? 1 : ceil_div(threads * kThreadTasks, panels);
  const int64_t cuts = std::max(std::min(wanted, ceil_div(p.M, kLeastRows)),
                                ceil_div(tiles, kTaskRows / k.tile_rows));
  const auto row = [&](int64_t cut) { return std::min(tiles * cut / cuts * k.tile_rows, p.M); };
  share_tasks(threads, panels * cuts, [&](int64_t worker, int64_t task) {
    k.multiply(p, row(task % cuts), row(task % cuts + 1), task / cuts,
               static_cast<char*>(p.workspace) + worker * kScratchBytes);
  });
}

}  // namespace weft::comm::cpu
