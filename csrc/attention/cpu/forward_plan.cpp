// Attention forward on the CPU: what a task is, how many splits the keys are worth, and the kernels
// of the current ISA level.
//
// A task is a block of rows of one key head over all keys or one split of them. How many splits there
// are comes from the shape alone, so that no result depends on the number of threads; the size of a
// block may, since rows do not see each other. Threads take tasks as they become free.
#include <algorithm>

#include "attention/cpu/attention.h"
#include "attention/cpu/kernels.h"
#include "core/divide.h"
#include "cpu/levels.h"
#include "cpu/memory.h"
#include "cpu/threads.h"

namespace weft::attention::cpu {

WEFT_CPU_TABLE(ForwardKernels, forward_kernels)
WEFT_CPU_TABLE(DecodeKernels, decode_kernels)

namespace {

using ::weft::cpu::share_tasks;

// Rows of a block: as many as there are tasks for, in both senses.
constexpr int64_t kBlockRows[] = {192, 96, 48};
constexpr int64_t kThreadTasks = 4;  // for each thread, or blocks become smaller
constexpr int64_t kSplitTasks = 64;  // tasks that splits are made for
constexpr int64_t kSplitKeys = 512;  // what a split has at least
constexpr int64_t kMostSplits = 128;
// What one task of decoding reads of one key: heads that lie side by side, whole pages where they fill
// them, for the longer the pieces the nearer it comes to reading alone.
constexpr int64_t kTaskBytes = 16384;
constexpr int64_t kTaskRows = 256;  // of all its heads: their scores stay in L2

struct Plan {
  bool decode;  // few rows: keys are used as they lie
  int64_t group, heads, rows, blocks, splits, split_keys, workers, scratch_bytes;
  int64_t task_heads;                // key heads of a task
  int64_t key_blocks, packed_bytes;  // of a head; of a block, 0 where tasks pack for themselves
  int64_t part_rows, total;          // rows of a split's partial results

  explicit Plan(const Forward& p) {
    decode = decode_kernels().takes(p);
    group = p.H / p.K;
    heads = std::max<int64_t>(p.B * p.K, 1);
    const int64_t most_rows = std::max<int64_t>(p.S * group, 1),
                  threads = ::weft::cpu::max_threads();
    const auto tasks = [&](int64_t block) { return heads * ceil_div(most_rows, block); };
    rows = std::end(kBlockRows)[-1];
    for (int64_t block : kBlockRows)
      if (tasks(block) >= kThreadTasks * threads) {
        rows = block;
        break;
      }
    rows = std::min(rows, most_rows);
    blocks = ceil_div(most_rows, rows);

    // Splits change how sums are rounded: they come from the shape alone. A task of decoding has all
    // heads, which makes fewer of them.
    const int64_t unsplit = decode ? std::max<int64_t>(p.B, 1) : tasks(std::end(kBlockRows)[-1]);
    const int64_t wanted = std::min(kSplitTasks / unsplit, p.T / kSplitKeys);
    const int64_t block = key_block(p);
    splits = std::clamp<int64_t>(p.num_splits ? p.num_splits : wanted, 1, kMostSplits);
    split_keys = std::max<int64_t>(ceil_div(ceil_div(p.T, splits), block), 1) * block;
    splits = std::max<int64_t>(ceil_div(p.T, split_keys), 1);
    task_heads = decode ? side_by_side(p) : 1;
    while (task_heads > 1 && p.B * ceil_div(p.K, task_heads) * splits < kThreadTasks * threads)
      task_heads = ceil_div(task_heads, 2);

    key_blocks = ceil_div(p.T, block);
    packed_bytes = blocks > 1 ? forward_kernels().packed_bytes(p) : 0;
    workers = std::min<int64_t>(threads, heads * blocks * splits);
    const int64_t bytes = decode ? decode_kernels().scratch_bytes(p, task_heads)
                                 : forward_kernels().scratch_bytes(p, rows, !packed_bytes);
    scratch_bytes = round_up(bytes, 4096);
    part_rows = splits > 1 ? heads * blocks * rows : 0;
    total = heads * key_blocks * packed_bytes + workers * scratch_bytes +
            splits * part_rows * (p.Dv + 1) * element(p);
  }

  // Key heads whose elements of one key are near each other: those that decoding takes together.
  static int64_t side_by_side(const Forward& p) {
    if (p.k.head > p.k.row || p.v.head > p.v.row) return 1;
    const int64_t bytes = p.D * static_cast<int64_t>(size_of(p.k.dtype)),
                  rows = std::max<int64_t>(p.S * (p.H / p.K), 1);
    return std::clamp<int64_t>(std::min(kTaskBytes / bytes, kTaskRows / rows), 1,
                               std::max<int64_t>(p.K, 1));
  }

  static int64_t element(const Forward& p) {
    return static_cast<int64_t>(size_of(acc_of(p.q.dtype)));
  }
};

}  // namespace

int64_t workspace_bytes(const Forward& p) { return Plan(p).total; }

void forward(const Forward& p) {
  const Plan plan(p);
  char* const packed = static_cast<char*>(p.workspace);
  const int64_t head_bytes = plan.key_blocks * plan.packed_bytes;
  char* const scratch = packed + plan.heads * head_bytes;
  char* const parts = scratch + plan.workers * plan.scratch_bytes;
  char* const lses = parts + plan.splits * plan.part_rows * p.Dv * Plan::element(p);

  if (plan.packed_bytes) {
    ::weft::cpu::advise_huge_pages(packed, static_cast<size_t>(plan.heads * head_bytes));
    share_tasks(::weft::cpu::max_threads(), plan.heads * plan.key_blocks, [&](int64_t, int64_t t) {
      const int64_t head = t / plan.key_blocks, first = t % plan.key_blocks * key_block(p);
      if (first < p.extent(head / p.K).T)
        forward_kernels().pack(p, head / p.K, head % p.K, first, packed + t * plan.packed_bytes);
    });
  }

  // Task t of one split: the blocks of a head follow one another, while its packed keys are in a cache
  // that all threads share; of them later rows, which see more keys where causal, first. Empty where
  // the sequence is shorter.
  const int64_t head_tasks = ceil_div(p.K, plan.task_heads);
  const auto task_of = [&](int64_t t, int64_t split) {
    const int64_t head_task = t / plan.blocks, block = plan.blocks - 1 - t % plan.blocks;
    ForwardTask task = {};
    task.b = head_task / head_tasks;
    task.k = head_task % head_tasks * plan.task_heads;
    task.k_end = std::min(task.k + plan.task_heads, p.K);
    const Problem::Extent e = p.extent(task.b);
    task.row_begin = block * plan.rows;
    task.row_end = std::min(task.row_begin + plan.rows, e.S * plan.group);
    task.key_begin = split * plan.split_keys;
    task.key_end = std::min(task.key_begin + plan.split_keys, e.T);
    task.first = split == 0;
    const int64_t head = task.b * p.K + task.k;
    if (plan.packed_bytes) task.packed = packed + head * head_bytes;
    if (plan.splits > 1) {
      const int64_t row = split * plan.part_rows + (head * plan.blocks + block) * plan.rows;
      task.part = parts + row * p.Dv * Plan::element(p);
      task.part_lse = lses + row * Plan::element(p);
    }
    return task;
  };
  const auto run = plan.decode ? decode_kernels().run : forward_kernels().run;
  const int64_t tasks = p.B * head_tasks * plan.blocks;
  share_tasks(plan.workers, tasks * plan.splits, [&](int64_t worker, int64_t t) {
    const ForwardTask task = task_of(t / plan.splits, t % plan.splits);
    if (task.row_begin < task.row_end) run(p, task, scratch + worker * plan.scratch_bytes);
  });
  if (plan.splits > 1)
    share_tasks(plan.workers, tasks, [&](int64_t, int64_t t) {
      const ForwardTask task = task_of(t, 0);
      if (task.row_begin < task.row_end)
        forward_kernels().merge(p, task, plan.splits, plan.part_rows * p.Dv);
    });
}

}  // namespace weft::attention::cpu
