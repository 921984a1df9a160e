// What the backward of attention needs to know of each row of lse, and what the rows add up to for the
// sinks. Memory-bound: out and dout are read once; 8 bytes a row are written.
#pragma once

#include "attention/cuda/backward_call.h"

namespace weft::attention::cuda {

// shift = -lse, or -inf where the row sees nothing, so that exp2 makes zeros; δ = Σ dout · out - dlse.
// `lanes` threads take a row of the `S` that each head of a sequence has in the workspace. Of sm_90's
// blocks of queries, the rest is -inf, and nothing has been done for any.
template <class T>
WEFT_KERNEL_BOUNDS(256, 4)
void backward_rows_kernel(WEFT_GRID_CONSTANT const BackwardCall call, const int64_t S,
                          const uint32_t lanes, const bool vector) {
  constexpr int E = kVecSize<T>;
  const Backward& p = call.p;
  if (call.sm90.D)
    for (int64_t i = int64_t{block().x} * threads() + thread(); i <= p.H * call.sm90.blocks;
         i += int64_t{blocks().x} * threads())
      store(call.done + i, 0u);

  const int64_t n = static_cast<int64_t>(block().x) * (threads() / lanes) + thread() / lanes;
  const int64_t h = n % p.H, i = n / p.H % S, b = min(n / p.H / S, p.B - 1);
  const Sequence e = sequence_of(p, static_cast<int32_t>(b));
  const bool mine = n < p.B * S * p.H, here = mine && i < e.S;
  const T* out = reinterpret_cast<const T*>(p.out.at(e.q_batch, e.q_row + i, h));
  const T* dout = reinterpret_cast<const T*>(p.dout.at(e.q_batch, e.q_row + i, h));
  float sum = 0;
  for (int64_t d = thread() % lanes * E; here && d < p.Dv; d += lanes * E) {
    if (vector && d + E <= p.Dv) {
      const auto x = convert<float>(load<E>(out + d)), y = convert<float>(load<E>(dout + d));
      WEFT_UNROLL
      for (int k = 0; k < E; ++k) sum = fma(x[k], y[k], sum);
    } else {
      for (int64_t k = d; k < min(d + E, p.Dv); ++k)
        sum = fma(convert<float>(load(out + k)), convert<float>(load(dout + k)), sum);
    }
  }
  for (uint32_t distance = lanes / 2; distance > 0; distance /= 2)
    sum += shuffle_xor(sum, distance);
  if (!mine || thread() % lanes != 0) return;
  const RowPlace to = row_place(call, e, b, h, i);
  if (!here) {
    if (!call.sm90.D || i >= round_up(static_cast<uint32_t>(e.S), call.sm90.queries)) return;
    store(call.rows + to.shift, -__builtin_inff());
    store(call.rows + to.delta, 0.0f);
    return;
  }
  const int64_t row = lse_index(p, e, b, h, i);
  const float lse = load(static_cast<const float*>(p.lse) + row);
  if (p.dlse) sum -= load(static_cast<const float*>(p.dlse) + row);
  const float unit = call.log2 ? static_cast<float>(kLog2e) : 1.0f;
  const float shift = lse == -__builtin_inff() ? lse : -lse * unit;
  if (!call.sm90.D) return store(call.rows + to.shift, Vec<float, 2>{{shift, sum}});
  store(call.rows + to.shift, shift);
  store(call.rows + to.delta, sum);
}

// dsinks[h] = -Σ exp(sink - lse) · δ: a block adds up kSinksRows rows of a head, each thread every
// 256th and then the threads' sums; a warp adds up what the blocks of a head leave. One order.
struct SinksShared {
  SharedLayout layout;
  Shared<double> sums = layout.take<double>(kWarp);
};
constexpr uint32_t kSinksThreads = 256;

WEFT_KERNEL_BOUNDS(kSinksThreads, 1)
void backward_sinks_kernel(WEFT_GRID_CONSTANT const BackwardCall call) {
  const Backward& p = call.p;
  const SinksShared smem;
  const int64_t h = block().x / call.sinks_parts, part = block().x % call.sinks_parts;
  const float sink = load(p.sinks.data + h * p.sinks.head);
  const int64_t end = min((part + 1) * kSinksRows, p.B * p.S);
  double sum = 0;
  for (int64_t n = part * kSinksRows + thread(); n < end; n += kSinksThreads) {
    const int64_t b = n / p.S, i = n % p.S;
    const Sequence e = sequence_of(p, static_cast<int32_t>(b));
    if (i >= e.S) continue;
    const RowPlace at = row_place(call, e, b, h, i);
    const float shift = load(call.rows + at.shift), delta = load(call.rows + at.delta);
    const auto log2e = static_cast<float>(kLog2e);
    const float x = call.log2 ? fma(sink, log2e, shift) : (sink + shift) * log2e;
    sum -= static_cast<double>(exp2_approx(x) * delta);
  }
  sum = warp_sum(sum);
  if (lane() == 0) smem.sums[warp()] = sum;
  sync_block();
  if (warp() != 0) return;
  sum = lane() < kSinksThreads / kWarp ? double{smem.sums[lane()]} : 0.0;
  sum = warp_sum(sum);
  if (lane() == 0) store(call.sinks + block().x, sum);
}

WEFT_KERNEL_BOUNDS(kWarp, 1)
void backward_sinks_sum_kernel(WEFT_GRID_CONSTANT const BackwardCall call) {
  const int64_t h = block().x;
  double sum = 0;
  for (int64_t part = lane(); part < call.sinks_parts; part += kWarp)
    sum += load(call.sinks + h * call.sinks_parts + part);
  sum = warp_sum(sum);
  if (lane() == 0) store(call.p.dsinks + h, static_cast<float>(sum));
}

}  // namespace weft::attention::cuda
