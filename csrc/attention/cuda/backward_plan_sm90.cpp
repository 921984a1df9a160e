#include "attention/cuda/backward_plan_sm90.h"

#include <algorithm>

#include "attention/cuda/plan_sm90.h"
#include "core/divide.h"

namespace weft::attention::cuda {
namespace {

bool has_reached_tensors(const Backward& p) {
  const Sequences& s = p.sequences;
  const int64_t q_rows = s.cu_q ? p.total_q : p.S, q_batch = s.cu_q ? 1 : p.B,
                k_rows = s.cu_k ? p.total_k : p.T, k_batch = s.cu_k ? 1 : p.B;
  const auto queries = [&](const Heads& t, int64_t elements) {
    return is_reached(t, elements, q_rows, p.H, q_batch);
  };
  const auto keys = [&](const Heads& t, int64_t elements) {
    return is_reached(t, elements, k_rows, p.K, k_batch);
  };
  return std::min({q_rows, k_rows, p.S, p.T, p.B}) > 0 && std::max(q_rows, k_rows) <= kMostRows &&
         queries(p.q, p.D) && queries(p.dout, p.Dv) && queries(p.dq, p.D) && keys(p.k, p.D) &&
         keys(p.v, p.Dv) && keys(p.dk, p.D) && keys(p.dv, p.Dv);
}

// Key heads that are gone over together: each block of keys reads, and adds to, queries, upstream
// gradients and dQ of one query head after the other, which of all of them take up to 40 MiB of L2.
// The more there are, the fewer blocks of a head begin together, and wait for each other.
int64_t section_of(const Backward& p, int64_t D) {
  constexpr int64_t kBytes = 40 << 20;
  return std::clamp<int64_t>(kBytes / (p.S * ((p.D + p.Dv) * 2 + D * 4)), 1, p.B * p.K);
}

// Each sequence has whole blocks of fp32 dQ: of many short ones that is a workspace, and work, of
// several times the rows that there are.
bool is_mostly_padding(int64_t rows, int64_t padded, int64_t columns) {
  constexpr int64_t kBytes = 64 << 20;
  const int64_t row = columns * 4;
  return (padded - rows) * row > std::max(kBytes, 2 * rows * row);
}

template <class Shape>
void take(const Backward& p, BackwardPlan& plan) {
  constexpr int D = Shape::kD;
  constexpr int64_t kQueries = Shape::kQueries, kKeys = Shape::kKeys;
  const int64_t longest = ceil_div(p.S, kQueries), heads = p.B * p.K,
                key_blocks = ceil_div(p.T, kKeys);
  if (heads * key_blocks > INT32_MAX || 2 * p.B * p.H * longest > INT32_MAX) return;
  // Of packed sequences, that of b begins with block cu_q[b] / kQueries + b.
  const int64_t rows = p.sequences.cu_q ? p.total_q : p.B * p.S,
                blocks = p.sequences.cu_q ? p.total_q / kQueries + p.B : p.B * longest;
  if (is_mostly_padding(rows, blocks * kQueries, p.H * D)) return;
  const auto count = [](int64_t n) { return static_cast<uint32_t>(n); };
  BackwardSm90& own = plan.sm90;
  own.D = D;
  own.options = Shape::kOptions;
  own.schedule = {count(heads * key_blocks), count(heads), count(key_blocks),
                  count(section_of(p, D)), /*last_first=*/false};
  own.queries = Shape::kQueries;
  own.step = Shape::kStep;
  own.longest = count(longest);
  own.blocks = blocks;
}

}  // namespace

void plan_sm90(const Backward& p, const Limits& limits, BackwardPlan& plan) {
  if (!limits.wgmma || plan.sizes == HeadSizes::all || !has_reached_tensors(p)) return;
  const bool small = plan.sizes == HeadSizes::small;
  if (plan.plain)
    small ? take<BackwardShape<64, false>>(p, plan) : take<BackwardShape<128, false>>(p, plan);
  else
    small ? take<BackwardShape<64, true>>(p, plan) : take<BackwardShape<128, true>>(p, plan);
}

}  // namespace weft::attention::cuda
