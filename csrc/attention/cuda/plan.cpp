#include "attention/cuda/plan.h"

#include <algorithm>

#include "attention/cuda/attention.h"
#include "attention/cuda/plan_sm90.h"
#include "core/divide.h"
#include "core/error.h"

namespace weft::attention::cuda {

bool is_vector(const Heads& t) {
  const auto size = static_cast<int64_t>(size_of(t.dtype));
  const auto aligned = [](int64_t bytes) { return bytes % 16 == 0; };
  return aligned(static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.data))) &&
         aligned(t.batch * size) && aligned(t.row * size) && aligned(t.head * size);
}

bool is_plain(const Forward& p) {
  return p.q.dtype != DType::f32 && p.k.dtype == p.q.dtype && p.softmax_scale > 0 &&
         p.softcap == 0 && !p.bias && !p.mask && !p.alibi && p.dropout.p == 0;
}

RowTiles row_tiles(const Problem& p, int64_t group, int64_t size) {
  const int64_t longest = ceil_div(p.S * group, size), all = p.total_q * group / size + p.B;
  if (p.sequences.cu_q && all < p.B * longest) return {all, true};
  return {longest, false};
}

namespace {

// The keys are split where there are not blocks enough to fill 80 % of the GPU, two to a
// multiprocessor: into the smallest number whose waves of blocks are at least 85 % as full as the
// fullest.
int64_t splits_of(int64_t blocks, int64_t key_blocks, const Limits& limits) {
  constexpr int64_t kWorthIt = 4;  // key blocks
  const int64_t slots = 2 * int64_t{limits.multiprocessors};
  if (blocks == 0 || blocks * 5 >= slots * 4 || key_blocks <= kWorthIt) return 1;
  // Beyond two waves there is little to gain.
  const int64_t most = std::min({key_blocks, kMostSplits, ceil_div(2 * slots, blocks)});
  const auto fullness = [&](int64_t splits) {
    const int64_t total = blocks * splits;
    return static_cast<double>(total) / static_cast<double>(ceil_div(total, slots) * slots);
  };
  double best = 0;
  for (int64_t n = 1; n <= most; ++n) best = std::max(best, fullness(n));
  for (int64_t n = 1; n <= most; ++n)
    if (fullness(n) >= 0.85 * best) return n;
  return most;
}

ForwardPlan plan_sm80(const Forward& p, const Limits& limits) {
  ForwardPlan plan;
  plan.head_size = head_size_of(p.D, p.Dv, size_of(p.q.dtype));
  plan.group = static_cast<int32_t>(p.H / p.K);
  plan.vector = is_vector(p.q) && is_vector(p.k) && is_vector(p.v);
  const int64_t rows = p.S * plan.group;
  check(rows <= kMostRows && p.T <= kMostRows, "weft.attention_forward: a sequence of ", p.S,
        " queries and ", p.T, " keys is longer than the CUDA kernels count");

  const size_t element = size_of(p.q.dtype);
  const auto tile = [&](ForwardKernel kernel) {
    return forward_tile(element, plan.head_size, kernel);
  };
  if (has_few(element, plan.head_size) && rows <= tile(ForwardKernel::sm80_few).rows())
    plan.kernel = ForwardKernel::sm80_few;
  else if (plan.vector && is_plain(p) && !p.sequences.block_table &&
           rows > tile(ForwardKernel::sm80_any).rows() && plan.head_size.D <= 256)
    plan.kernel = ForwardKernel::sm80_plain;

  const ForwardTile own = tile(plan.kernel);
  const RowTiles tiles = row_tiles(p, plan.group, own.rows());
  plan.row_blocks = tiles.count;
  plan.packed = tiles.packed;
  plan.chunks = ceil_div(p.Dv, plan.head_size.Dv);
  const int64_t blocks = (tiles.packed ? 1 : p.B) * p.K * plan.row_blocks * plan.chunks,
                key_blocks = ceil_div(p.T, own.keys),
                wanted = p.num_splits ? p.num_splits : splits_of(blocks, key_blocks, limits),
                splits = std::clamp<int64_t>(wanted, 1, kMostSplits);
  plan.split_keys = std::max<int64_t>(ceil_div(key_blocks, splits), 1) * own.keys;
  plan.splits = std::max<int64_t>(ceil_div(p.T, plan.split_keys), 1);
  plan.parts = plan.splits > 1 || p.out.dtype == DType::i8 || p.Dv % 2 == 1;
  plan.queries = p.S;
  if (plan.parts) plan.workspace_bytes = plan.splits * p.B * p.S * p.H * (p.Dv + p.Dv % 2 + 1) * 4;
  return plan;
}

}  // namespace

int64_t decoding_queries(const Forward& p) {
  constexpr int64_t kRows = 16;
  const Sequences& s = p.sequences;
  const int64_t few = std::max<int64_t>(kRows * p.K / p.H, 1);
  return s.cu_q && !s.cu_k && few < p.S && p.total_q < p.B * p.S ? few : 0;
}

ForwardPlan decoding_plan(const Forward& p, const Limits& limits) {
  Forward own = p;
  own.S = decoding_queries(p);
  ForwardPlan plan = plan_sm80(own, limits);
  plan.most = static_cast<int32_t>(own.S);
  return plan;
}

ForwardPlan plan(const Forward& p, const Limits& limits, bool prefer_sm90) {
  const auto sm90 = plan_sm90(p, limits, !prefer_sm90);
  ForwardPlan plan = sm90 ? *sm90 : plan_sm80(p, limits);
  // What is split already needs no other launch. They take turns at the workspace.
  if (const int64_t few = decoding_queries(p); few > 0 && plan.splits == 1) {
    plan.least = static_cast<int32_t>(few + 1);
    plan.workspace_bytes = std::max(plan.workspace_bytes, decoding_plan(p, limits).workspace_bytes);
  }
  return plan;
}

bool takes_fresh(const Forward& p, const Limits& limits, bool prefer_sm90) {
  if (p.B == 0 || p.S == 0) return false;
  const ForwardPlan plan = cuda::plan(p, limits, prefer_sm90);
  return plan.kernel > ForwardKernel::sm80_plain && plan.row_blocks == 1 && plan.chunks == 1;
}

int64_t workspace_bytes(const Forward& p, const Device& device) {
  return plan(p, device.limits, device.prefer_sm90).workspace_bytes;
}

}  // namespace weft::attention::cuda
