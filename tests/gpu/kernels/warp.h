// Every shuffle, vote and reduction: each lane writes what it got.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// One block; thread t writes column t of out [14, threads].
WEFT_KERNEL void warp_words_kernel(const int32_t* x, int32_t* out) {
  const int32_t v = load(x + thread());
  int row = 0;
  const auto put = [&](int32_t value) { store(out + row++ * threads() + thread(), value); };
  put(shuffle(v, 5));
  put(shuffle<8>(v, 3));
  put(shuffle_xor(v, 9));
  put(shuffle_xor<4>(v, 1));
  put(shuffle_down(v, 3));
  put(shuffle_down<16>(v, 9));
  put(shuffle_up(v, 2));
  put(shuffle_up<8>(v, 5));
  put(static_cast<int32_t>(ballot(v > 0)));
  put(any(v > 900) ? 1 : 0);
  put(all(v > -900) ? 1 : 0);
  put(warp_sum(v));
  put(warp_max<8>(v));
  put(warp_min<4>(v));
}

// The same for values of eight bytes, and votes of half a warp; out [3, threads].
WEFT_KERNEL void warp_wide_kernel(const double* x, double* out) {
  const double v = load(x + thread());
  store(out + thread(), warp_sum(v));
  store(out + threads() + thread(), shuffle_xor(v, 16));
  const uint32_t mask = lane() < 16 ? 0xFFFF : 0xFFFF0000;
  store(out + 2 * threads() + thread(), static_cast<double>(ballot(v > 0, mask)));
}

// How many lanes of each warp are elected; out [warps].
WEFT_KERNEL void elect_kernel(int32_t* out) {
  const int32_t elected = warp_sum(elect() ? 1 : 0);
  if (lane() == 0) store(out + warp(), elected);
}

const Register warp_words("warp_words", [](const Call& call) {
  launch<warp_words_kernel>(
      {.block = static_cast<uint32_t>(call.inputs[0].count), .stream = call.stream},
      call.inputs[0].as<int32_t>(), call.outputs[0].as<int32_t>());
});
const Register warp_wide("warp_wide", [](const Call& call) {
  launch<warp_wide_kernel>(
      {.block = static_cast<uint32_t>(call.inputs[0].count), .stream = call.stream},
      call.inputs[0].as<double>(), call.outputs[0].as<double>());
});
const Register elect_case("elect", [](const Call& call) {
  launch<elect_kernel>(
      {.block = static_cast<uint32_t>(call.outputs[0].count * kWarp), .stream = call.stream},
      call.outputs[0].as<int32_t>());
});

}  // namespace weft::gpu::tests
