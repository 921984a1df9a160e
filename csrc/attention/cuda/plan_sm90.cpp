#include "attention/cuda/plan_sm90.h"

#include <algorithm>

#include "core/divide.h"

namespace weft::attention::cuda {

bool is_reached(const Heads& t, int64_t elements, int64_t rows, int64_t heads, int64_t batch) {
  const auto size = static_cast<int64_t>(size_of(t.dtype));
  const auto step = [&](int64_t count, int64_t stride) {
    constexpr int64_t kMostBytes = int64_t{1} << 40;
    return count <= 1 || (stride > 0 && stride * size % 16 == 0 && stride * size < kMostBytes);
  };
  return elements * size % 16 == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
         step(rows, t.row) && step(heads, t.head) && step(batch, t.batch);
}

namespace {

bool has_reached_tensors(const Forward& p) {
  const Extents e(p);
  constexpr int64_t kMostRows = 1 << 30;
  return std::max({e.q_rows, e.k_rows, p.S, p.T}) <= kMostRows &&
         std::min({e.q_rows, e.k_rows, p.S, p.T, e.k_batch}) > 0 &&
         is_reached(p.q, p.D, e.q_rows, p.H, e.q_batch) &&
         is_reached(p.k, p.D, e.k_rows, p.K, e.k_batch) &&
         is_reached(p.v, p.Dv, e.k_rows, p.K, e.k_batch) &&
         is_reached(p.out, p.Dv, e.q_rows, p.H, e.q_batch);
}

bool has_type(const Forward& p) {
  const DType type = p.q.dtype;
  return (type == DType::bf16 || type == DType::f16) && p.k.dtype == type && p.out.dtype == type;
}

// The smallest shape that a head fits into: f(Shape{}).
template <bool kOptions, class F>
void with_shape(int64_t D, int64_t Dv, const F& f) {
  if (D <= 64 && Dv <= 64) return f(Shape<64, 64, kOptions>{});
  if (D <= 128 && Dv <= 128) return f(Shape<128, 128, kOptions>{});
  if (D <= 192 && Dv <= 128) return f(Shape<192, 128, kOptions>{});
  if constexpr (!kOptions)
    if (D <= 256 && Dv <= 256) return f(Shape<256, 256, kOptions>{});
}

// Heads whose keys and values take up to 32 MiB, of a group all or none. Without a window all tiles
// are alike: one group at a time, and they meet in L2.
int64_t section_of(const Forward& p, int64_t heads) {
  constexpr int64_t kBytes = 32 << 20;
  const int64_t group = p.H / p.K, head = p.T * (p.D + p.Dv) * 2;
  const bool window = p.window_left >= 0 || p.window_right >= 0;
  return group * (window ? std::clamp<int64_t>(kBytes / head, 1, heads / group) : 1);
}

}  // namespace

std::optional<ForwardPlan> plan_sm90(const Forward& p, const Limits& limits, bool worth_it) {
  const Sequences& s = p.sequences;
  if (!limits.wgmma || !has_type(p) || (s.block_table && s.leftpad) || p.num_splits > 1 ||
      !has_reached_tensors(p))
    return {};
  std::optional<ForwardPlan> plan;
  const auto take = [&](auto shape) {
    if (s.block_table && page_part(s.page_size, shape.kKeys) < kLeastPart) return;
    const auto queries = static_cast<int64_t>(shape.kQueries);
    const auto [blocks, packed] = row_tiles(p, 1, queries);
    const int64_t heads = packed ? p.H : p.B * p.H, tiles = heads * blocks;
    const bool full = 2 * p.S >= queries && 2 * tiles >= limits.multiprocessors;
    if ((worth_it && !full) || tiles > INT32_MAX / 2) return;
    const auto count = [](int64_t n) { return static_cast<uint32_t>(n); };
    plan.emplace();
    plan->kernel = shape.kOptions ? ForwardKernel::sm90_options : ForwardKernel::sm90_plain;
    plan->head_size = {static_cast<int>(shape.kD), static_cast<int>(shape.kDv)};
    plan->packed = packed;
    plan->schedule = {count(tiles), count(heads), count(blocks), count(section_of(p, heads)),
                      p.window_right >= 0};
    // Sequences of several lengths give tiles of lengths that only the GPU knows: a block for each,
    // and who is free takes the next.
    const bool ragged = s.cu_q || s.cu_k || s.used_q || s.used_k || s.leftpad;
    plan->grid = ragged ? count(tiles) : std::min(count(tiles), limits.multiprocessors);
  };
  if (is_plain(p))
    with_shape<false>(p.D, p.Dv, take);
  else
    with_shape<true>(p.D, p.Dv, take);
  return plan;
}

}  // namespace weft::attention::cuda
