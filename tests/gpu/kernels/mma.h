// Products of a warp: D[16, 16] = C + A[16, K] · B[K, 16], through ldmatrix and mma, for each type
// and each way that the operands may lie in memory.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

template <class T, class D>
struct MmaParams {
  const T* a;  // [16, K], or [K, 16] where transposed
  const T* b;  // [16, K], or [K, 16] where transposed
  const D* c;  // [16, 16]
  D* d;        // [16, 16]
  bool a_transposed, b_transposed;
};

// Rows are 16 bytes longer than they need to be, so that ldmatrix meets no bank conflicts.
template <class T, uint32_t kSteps>
struct MmaShared {
  static constexpr uint32_t kK = kSteps * FragmentA<T>::kColumns;
  static constexpr uint32_t kPitch = kK + 16 / sizeof(T), kPitchTransposed = 16 + 16 / sizeof(T);
  static constexpr uint32_t kSize =
      16 * kPitch > kK* kPitchTransposed ? 16 * kPitch : kK * kPitchTransposed;

  SharedLayout layout;
  Shared<T> a = layout.take<T>(kSize), b = layout.take<T>(kSize);
};

template <uint32_t kRow, class T>
WEFT_DEVICE void fill(Shared<T> to, const T* from, uint32_t rows, uint32_t pitch) {
  constexpr uint32_t kVec = 16 / sizeof(T);
  for (uint32_t i = lane() * kVec; i < rows * kRow; i += kWarp * kVec)
    to.template store<kVec>(i / kRow * pitch + i % kRow, load<kVec>(from + i));
}

template <class T, class D, uint32_t kSteps>
WEFT_KERNEL void mma_kernel(const MmaParams<T, D> p) {
  using Tiles = MmaShared<T, kSteps>;
  using A = FragmentA<T>;
  using B = FragmentB<T>;
  using C = FragmentC<D>;
  constexpr uint32_t kPitch = Tiles::kPitch, kPitchT = Tiles::kPitchTransposed;
  const Tiles smem;

  if (p.a_transposed)
    fill<16>(smem.a, p.a, Tiles::kK, kPitchT);
  else
    fill<Tiles::kK>(smem.a, p.a, 16, kPitch);
  if (p.b_transposed)
    fill<16>(smem.b, p.b, Tiles::kK, kPitchT);
  else
    fill<Tiles::kK>(smem.b, p.b, 16, kPitch);
  sync_warp();

  C c[2];
  for (uint32_t n = 0; n < 2; ++n)
    for (uint32_t i = 0; i < C::kSize; ++i) {
      const Place at = C::place(lane(), i);
      c[n][i] = load(p.c + at.row * 16 + 8 * n + at.column);
    }
  WEFT_UNROLL
  for (uint32_t k = 0; k < Tiles::kK; k += A::kColumns) {
    A a;
    Vec<uint32_t, 4> b;
    if (p.a_transposed) {
      const Place at = A::named_transposed(lane());
      a = {ldmatrix_transposed<4>(smem.a, (k + at.column) * kPitchT + at.row)};
    } else {
      const Place at = A::named(lane());
      a = {ldmatrix<4>(smem.a, at.row * kPitch + k + at.column)};
    }
    if (p.b_transposed) {
      const Place at = B::named_transposed(lane());
      b = ldmatrix_transposed<4>(smem.b, (k + at.row) * kPitchT + at.column);
    } else {
      const Place at = B::named(lane());
      b = ldmatrix<4>(smem.b, at.column * kPitch + k + at.row);
    }
    mma(c[0], a, B{{{b[0], b[1]}}});
    mma(c[1], a, B{{{b[2], b[3]}}});
  }
  for (uint32_t n = 0; n < 2; ++n)
    for (uint32_t i = 0; i < C::kSize; ++i) {
      const Place at = C::place(lane(), i);
      store(p.d + at.row * 16 + 8 * n + at.column, c[n][i]);
    }
}

// numbers: is A, is B transposed.
template <class T, class D>
void mma_case(const Call& call) {
  constexpr uint32_t kSteps = 3;
  launch<mma_kernel<T, D, kSteps>>(
      {.block = kWarp,
       .shared_bytes = MmaShared<T, kSteps>{}.layout.bytes(),
       .stream = call.stream},
      MmaParams<T, D>{call.inputs[0].as<T>(), call.inputs[1].as<T>(), call.inputs[2].as<D>(),
                      call.outputs[0].as<D>(), call.numbers[0] != 0, call.numbers[1] != 0});
}
const Register mma_bf16("mma_bf16", mma_case<bf16, float>);
const Register mma_f16("mma_f16", mma_case<f16, float>);
const Register mma_f16_f16("mma_f16_f16", mma_case<f16, f16>);
const Register mma_tf32("mma_tf32", mma_case<tf32, float>);
const Register mma_i8("mma_i8", mma_case<int8_t, int32_t>);

// E = (A · B) · C, the first product rounded to T and kept in registers; all [16, 16], C transposed.
template <class T>
WEFT_KERNEL void mma_chain_kernel(const T* a, const T* b, const T* c, float* e) {
  using A = FragmentA<T>;
  using B = FragmentB<T>;
  constexpr uint32_t kPitch = 24;
  SharedLayout layout;
  const Shared<T> x = layout.take<T>(16 * kPitch), y = layout.take<T>(16 * kPitch),
                  z = layout.take<T>(16 * kPitch);
  fill<16>(x, a, 16, kPitch);
  fill<16>(y, b, 16, kPitch);
  fill<16>(z, c, 16, kPitch);
  sync_warp();

  const Place of_a = A::named(lane()), of_b = B::named_transposed(lane()), of_c = B::named(lane());
  const Vec<uint32_t, 4> yw = ldmatrix_transposed<4>(y, of_b.row * kPitch + of_b.column);
  const Vec<uint32_t, 4> zw = ldmatrix<4>(z, of_c.column * kPitch + of_c.row);
  const A xa{ldmatrix<4>(x, of_a.row * kPitch + of_a.column)};
  FragmentC<float> first[2], second[2];
  for (int n = 0; n < 2; ++n) first[n] = second[n] = FragmentC<float>::filled(0);
  for (int n = 0; n < 2; ++n) mma(first[n], xa, B{{{yw[2 * n], yw[2 * n + 1]}}});
  const A between = fragment_a<T>(first[0], first[1]);
  for (int n = 0; n < 2; ++n) mma(second[n], between, B{{{zw[2 * n], zw[2 * n + 1]}}});
  for (uint32_t n = 0; n < 2; ++n)
    for (uint32_t i = 0; i < 4; ++i) {
      const Place at = FragmentC<float>::place(lane(), i);
      store(e + at.row * 16 + 8 * n + at.column, second[n][i]);
    }
}
template <class T>
void mma_chain(const Call& call) {
  launch<mma_chain_kernel<T>>(
      {.block = kWarp, .shared_bytes = 3 * 16 * 24 * sizeof(T), .stream = call.stream},
      call.inputs[0].as<T>(), call.inputs[1].as<T>(), call.inputs[2].as<T>(),
      call.outputs[0].as<float>());
}
const Register mma_chain_bf16("mma_chain_bf16", mma_chain<bf16>);
const Register mma_chain_f16("mma_chain_f16", mma_chain<f16>);

// What each lane gets of kMatrices 8 × 8 matrices that lie one after the other; out [kMatrices, 32].
template <int kMatrices, bool kTransposed>
WEFT_KERNEL void ldmatrix_kernel(const uint16_t* x, uint32_t* out) {
  SharedLayout layout;
  const Shared<uint16_t> tile = layout.take<uint16_t>(64 * kMatrices);
  for (uint32_t i = lane(); i < 64 * kMatrices; i += kWarp) tile[i] = load(x + i);
  sync_warp();
  const uint32_t row = lane() % (8 * kMatrices) * 8;
  const auto words =
      kTransposed ? ldmatrix_transposed<kMatrices>(tile, row) : ldmatrix<kMatrices>(tile, row);
  for (int m = 0; m < kMatrices; ++m) store(out + m * kWarp + lane(), words[m]);
}

// The way back: out gets the matrices.
template <int kMatrices, bool kTransposed>
WEFT_KERNEL void stmatrix_kernel(const uint32_t* x, uint16_t* out) {
  SharedLayout layout;
  const Shared<uint16_t> tile = layout.take<uint16_t>(64 * kMatrices);
  Vec<uint32_t, kMatrices> words;
  for (int m = 0; m < kMatrices; ++m) words[m] = load(x + m * kWarp + lane());
  const uint32_t row = lane() % (8 * kMatrices) * 8;
  if constexpr (kTransposed)
    stmatrix_transposed<kMatrices>(tile, row, words);
  else
    stmatrix<kMatrices>(tile, row, words);
  sync_warp();
  for (uint32_t i = lane(); i < 64 * kMatrices; i += kWarp)
    store<Cache::normal, uint16_t>(out + i, tile[i]);
}

template <int kMatrices, bool kTransposed>
void ldmatrix_case(const Call& call) {
  launch<ldmatrix_kernel<kMatrices, kTransposed>>(
      {.block = kWarp, .shared_bytes = 128 * kMatrices, .stream = call.stream},
      call.inputs[0].as<uint16_t>(), call.outputs[0].as<uint32_t>());
}
template <int kMatrices, bool kTransposed>
void stmatrix_case(const Call& call) {
  launch<stmatrix_kernel<kMatrices, kTransposed>>(
      {.block = kWarp, .shared_bytes = 128 * kMatrices, .stream = call.stream},
      call.inputs[0].as<uint32_t>(), call.outputs[0].as<uint16_t>());
}
const Register ldmatrix_1("ldmatrix_1", ldmatrix_case<1, false>);
const Register ldmatrix_2("ldmatrix_2", ldmatrix_case<2, false>);
const Register ldmatrix_4("ldmatrix_4", ldmatrix_case<4, false>);
const Register ldmatrix_1_transposed("ldmatrix_1_transposed", ldmatrix_case<1, true>);
const Register ldmatrix_2_transposed("ldmatrix_2_transposed", ldmatrix_case<2, true>);
const Register ldmatrix_4_transposed("ldmatrix_4_transposed", ldmatrix_case<4, true>);
const Register stmatrix_1("stmatrix_1", stmatrix_case<1, false>);
const Register stmatrix_2("stmatrix_2", stmatrix_case<2, false>);
const Register stmatrix_4("stmatrix_4", stmatrix_case<4, false>);
const Register stmatrix_1_transposed("stmatrix_1_transposed", stmatrix_case<1, true>);
const Register stmatrix_2_transposed("stmatrix_2_transposed", stmatrix_case<2, true>);
const Register stmatrix_4_transposed("stmatrix_4_transposed", stmatrix_case<4, true>);

WEFT_KERNEL void movmatrix_kernel(const uint32_t* x, uint32_t* y) {
  store(y + lane(), movmatrix(load(x + lane())));
}
const Register movmatrix_case("movmatrix", [](const Call& call) {
  launch<movmatrix_kernel>({.block = kWarp, .stream = call.stream}, call.inputs[0].as<uint32_t>(),
                           call.outputs[0].as<uint32_t>());
});

WEFT_KERNEL void to_tf32_kernel(const float* x, uint32_t* y) {
  const uint32_t i = block().x * threads() + thread();
  store(y + i, to_tf32(load(x + i)).bits);
}
const Register to_tf32_case("to_tf32", [](const Call& call) {
  const auto count = static_cast<uint32_t>(call.inputs[0].count);
  launch<to_tf32_kernel>({.grid = {count / 64}, .block = 64, .stream = call.stream},
                         call.inputs[0].as<float>(), call.outputs[0].as<uint32_t>());
});

}  // namespace weft::gpu::tests
