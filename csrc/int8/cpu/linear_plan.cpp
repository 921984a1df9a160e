// The linear layers on the CPU: how x is cut, who works on what, and the kernels of the current ISA
// level.
//
// Rows are taken by blocks whose A stays in L3; of a block, a task is some panels of the weight by
// some rows. Threads take tasks as they become free. No result depends on how the work is cut.
#include <algorithm>
#include <cstring>

#include "core/divide.h"
#include "cpu/levels.h"
#include "cpu/threads.h"
#include "int8/cpu/int8.h"
#include "int8/cpu/kernels.h"

namespace weft::int8::cpu {

WEFT_CPU_TABLE(LinearKernels, linear_kernels)

namespace {

using ::weft::cpu::max_threads;
using ::weft::cpu::parallel_for;
using ::weft::cpu::share_tasks;

constexpr int64_t kBlockBytes = 8 << 20;   // of A
constexpr int64_t kMostSection = 1 << 16;  // Σ of as many products of bytes fits int32
constexpr int64_t kGrain = 32768;          // elements of x that are worth another thread
constexpr int64_t kThreadTasks = 8;        // for each thread, so that none waits long
constexpr int64_t kTaskRows = 96;          // a task's rows at least, where there are more
constexpr int64_t kThreadWork = 1 << 18;   // products that are worth another thread

struct Plan {
  Operands operands;
  int64_t rows;     // of a block
  int64_t workers;  // of prepare
  float* scratch;   // row_floats(K) for each of them
  uint8_t* flags;   // outliers
  int32_t* columns;
  float* bias;
  int64_t total = 0;

  explicit Plan(const Linear& p) : base_(static_cast<char*>(p.workspace)) {
    Operands& o = operands;
    if (p.operand == Operand::wide) o.digits = p.x.dtype == DType::bf16 ? 2 : 3;
    o.section = std::min({p.group, p.K, kMostSection});
    o.sections = ceil_div(p.K, o.section);
    o.lda = round_up(p.K, 64) + 64;  // rows 4 KiB apart would share a few sets of L1
    rows = std::clamp<int64_t>(kBlockBytes / (o.digits * o.lda), 1, p.M);
    workers = std::clamp<int64_t>(rows * p.K / kGrain, 1, std::min<int64_t>(max_threads(), rows));
    const bool zero_points =
        p.operand == Operand::int8 && (p.x_zero_point || (!p.x_scale && !p.symmetric));

    o.a = take<int8_t>(rows * o.digits * o.lda);
    o.init = take<int32_t>(rows * o.digits * o.sections);
    o.scale = take<float>(rows);
    o.zero_point = zero_points ? take<int32_t>(rows) : nullptr;
    scratch = take<float>(workers * row_floats(p.K));
    const int64_t outliers = p.operand == Operand::outliers ? p.K : 0;
    flags = take<uint8_t>(outliers);
    columns = take<int32_t>(outliers);
    bias = take<float>(p.bias ? round_up(p.N, kPackedPanel) : 0);
  }

 private:
  // Front to back, each piece on its own cache line.
  template <class T>
  T* take(int64_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + total) : nullptr;
    total += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }

  char* base_;
};

void find_outliers(const Linear& p, Plan& plan) {
  const int64_t tasks = std::clamp<int64_t>(p.M * p.K / kGrain, 1,
                                            std::min<int64_t>(max_threads(), ceil_div(p.K, 64)));
  parallel_for(tasks, [&](int64_t task) {
    const auto edge = [&](int64_t t) { return std::min(ceil_div(p.K, 64) * t / tasks * 64, p.K); };
    linear_kernels().find_outliers(p, edge(task), edge(task + 1), plan.flags);
  });
  Operands& o = plan.operands;
  for (int64_t k = 0; k < p.K; ++k)
    if (plan.flags[k]) plan.columns[o.outlier_count++] = static_cast<int32_t>(k);
  o.outliers = plan.columns;
}

void widen_bias(const Linear& p, Plan& plan) {
  std::memset(plan.bias, 0, static_cast<size_t>(round_up(p.N, kPackedPanel) * 4));
  linear_kernels().widen(p.bias, p.bias_dtype, p.N, plan.bias);
  plan.operands.bias = plan.bias;
}

}  // namespace

int64_t workspace_bytes(const Linear& p) { return Plan(p).total; }

void linear(const Linear& p) {
  Plan plan(p);
  Operands& o = plan.operands;
  if (p.bias) widen_bias(p, plan);
  if (p.operand == Operand::outliers) find_outliers(p, plan);
  const LinearKernels& k = linear_kernels();
  const int64_t panels = ceil_div(p.columns, kPackedPanel), first_panel = p.column / kPackedPanel,
                threads = max_threads();
  const bool prepared = p.prepared && plan.rows == p.M;  // and no block after it
  for (int64_t first = 0; first < p.M; first += plan.rows) {
    o.first_row = first;
    const int64_t rows = std::min(plan.rows, p.M - first);
    parallel_for(prepared ? 0 : plan.workers, [&](int64_t worker) {
      k.prepare(p, o, rows * worker / plan.workers, rows * (worker + 1) / plan.workers,
                plan.scratch + worker * row_floats(p.K));
    });

    const bool alone = rows * o.digits * p.columns * p.K < kThreadWork;
    const int64_t wanted = alone ? 1 : threads * kThreadTasks;
    const int64_t row_tasks =
        std::clamp<int64_t>(ceil_div(wanted, panels), 1, ceil_div(rows, kTaskRows));
    const int64_t panel_tasks = std::min(panels, ceil_div(wanted, row_tasks)),
                  tasks = row_tasks * panel_tasks;
    share_tasks(alone ? 1 : threads, tasks, [&](int64_t, int64_t t) {
      const int64_t i = t / row_tasks, j = t % row_tasks;
      k.multiply(p, o, rows * j / row_tasks, rows * (j + 1) / row_tasks,
                 first_panel + panels * i / panel_tasks,
                 first_panel + panels * (i + 1) / panel_tasks);
    });
  }
}

}  // namespace weft::int8::cpu
