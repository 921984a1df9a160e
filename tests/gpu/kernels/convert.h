// Conversions, arithmetic, random words.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// y = convert<To>(x), two at a time where the type has an instruction for it.
template <class To, class From>
WEFT_KERNEL void convert_kernel(const From* x, To* y, int64_t pairs) {
  const int64_t i = int64_t{block().x} * threads() + thread();
  if (i < pairs) store(y + 2 * i, weft::gpu::convert<To>(load<2>(x + 2 * i)));
}

template <class To, class From>
void convert_case(const Call& call) {
  const int64_t pairs = call.inputs[0].count / 2;
  launch<convert_kernel<To, From>>({.grid = {static_cast<uint32_t>(ceil_div<int64_t>(pairs, 128))},
                                    .block = 128,
                                    .stream = call.stream},
                                   call.inputs[0].as<From>(), call.outputs[0].as<To>(), pairs);
}
const Register bf16_from_f32("bf16_from_f32", convert_case<bf16, float>);
const Register f16_from_f32("f16_from_f32", convert_case<f16, float>);
const Register f32_from_bf16("f32_from_bf16", convert_case<float, bf16>);
const Register f32_from_f16("f32_from_f16", convert_case<float, f16>);

// out [9, threads]: the functions of gpu/math.h at x.
WEFT_KERNEL void math_kernel(const float* x, float* out) {
  const float v = load(x + thread());
  int row = 0;
  const auto put = [&](float value) { store(out + row++ * threads() + thread(), value); };
  put(exp2_approx(v));
  put(log2_approx(v));
  put(rsqrt_approx(v));
  put(rcp_approx(v));
  put(tanh_approx(v));
  put(rsqrt(v));
  put(fma(v, v, -1.0f));
  put(max_nan(v, 1.0f));
  put(static_cast<float>(to_i8(v)));
}
const Register math_case("math", [](const Call& call) {
  launch<math_kernel>({.block = static_cast<uint32_t>(call.inputs[0].count), .stream = call.stream},
                      call.inputs[0].as<float>(), call.outputs[0].as<float>());
});

// out [threads, 4]: the words of blocks 0, 1, … of (seed, offset).
WEFT_KERNEL void philox_kernel(PhiloxKey key, int32_t* out) {
  const Vec<uint32_t, 4> words = philox(key, thread());
  for (int i = 0; i < 4; ++i) store(out + thread() * 4 + i, static_cast<int32_t>(words[i]));
}
const Register philox_case("philox", [](const Call& call) {
  const PhiloxKey key = {static_cast<uint64_t>(call.numbers[0]),
                         static_cast<uint64_t>(call.numbers[1])};
  launch<philox_kernel>(
      {.block = static_cast<uint32_t>(call.outputs[0].count / 4), .stream = call.stream}, key,
      call.outputs[0].as<int32_t>());
});

}  // namespace weft::gpu::tests
