// Products of a warpgroup: D[64, N] = C ± A[64, K] · B[K, N], for each type, each N, each direction
// and swizzle of the tiles, with A in shared memory or in registers.
#pragma once

#include <utility>

#include "case.h"
#include "tensor.h"

namespace weft::gpu::tests {

// Where A comes from, and what is done with the product.
enum class Source { shared, registers };

template <class T, int N, Major kMajorA, Major kMajorB, Swizzle kSwizzle, Source kSource,
          Sign kSign>
struct WgmmaCase {
  using Element = T;
  using D = std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>;
  static constexpr int kN = N, kK = 256 / sizeof(T);  // two panels, where 128 bytes wide
  static constexpr Source source = kSource;
  static constexpr Sign sign = kSign;
  using A = MatrixTile<T, kMajorA, kSwizzle, 64, kK>;
  using B = MatrixTile<T, kMajorB, kSwizzle, N, kK>;
  static constexpr Major major_a = kMajorA, major_b = kMajorB;
  static constexpr Swizzle swizzle = kSwizzle;

  struct Tiles {
    SharedLayout layout;
    Shared<T> a = A::take(layout), b = B::take(layout);
    Shared<MBarrier> full = layout.take<MBarrier>(1);
  };
  struct Params {
    const T* a;  // [64, K] or [K, 64], by the direction; for loads by threads
    const T* b;  // [N, K] or [K, N]
    const D* c;  // [64, N]; null: D = A · B
    D* d;        // [64, N]
    bool by_threads;
  };
};

template <class Tile, class T>
WEFT_DEVICE void load_tile(Shared<T> tile, const TensorMap& map, Shared<MBarrier> full) {
  for (uint32_t p = 0; p < Tile::kPanels; ++p)
    tensor_load(tile.from(Tile::panel(p), Tile::kRun * Tile::kRows), map,
                {static_cast<int32_t>(p * Tile::kRun), 0}, full);
}

// The same by ordinary stores of 16 bytes. `rows` of `row` elements each.
template <class Tile, Major kMajor, class T>
WEFT_DEVICE void store_tile(Shared<T> tile, const T* x, uint32_t rows, uint32_t row) {
  constexpr uint32_t kVec = 16 / sizeof(T);
  for (uint32_t i = thread() * kVec; i < rows * row; i += threads() * kVec) {
    const uint32_t r = i / row, along = i % row;
    tile.template store<kVec>(kMajor == Major::k ? Tile::index(r, along) : Tile::index(along, r),
                              load<kVec>(x + i));
  }
}

template <class Case>
WEFT_KERNEL void wgmma_kernel(WEFT_GRID_CONSTANT const TensorMap map_a,
                              WEFT_GRID_CONSTANT const TensorMap map_b,
                              const typename Case::Params p) {
  using T = typename Case::Element;
  using D = typename Case::D;
  using A = typename Case::A;
  using B = typename Case::B;
  constexpr uint32_t kK = Case::kK, kStep = FragmentA<T>::kColumns;
  const typename Case::Tiles smem;

  if (p.by_threads) {
    constexpr bool k_a = Case::major_a == Major::k, k_b = Case::major_b == Major::k;
    store_tile<A, Case::major_a>(smem.a, p.a, k_a ? 64 : kK, k_a ? kK : 64);
    store_tile<B, Case::major_b>(smem.b, p.b, k_b ? Case::kN : kK, k_b ? kK : Case::kN);
    fence_async();
    sync_block();
  } else {
    if (thread() == 0) {
      mbarrier_init(smem.full, 1);
      fence_mbarrier_init();
      mbarrier_arrive_expect(smem.full, smem.a.bytes() + smem.b.bytes());
      load_tile<A>(smem.a, map_a, smem.full);
      load_tile<B>(smem.b, map_b, smem.full);
    }
    sync_block();
    mbarrier_wait(smem.full, 0);
  }

  using Accumulator = WgmmaAccumulator<D, Case::kN>;
  Accumulator d;
  if (p.c)
    for (uint32_t i = 0; i < Accumulator::kSize; ++i) {
      const Place at = Accumulator::place(thread(), i);
      d[i] = load(p.c + at.row * Case::kN + at.column);
    }
  const bool accumulate = p.c != nullptr;
  if constexpr (Case::source == Source::shared) {
    wgmma_fence(d);
    WEFT_UNROLL
    for (uint32_t k = 0; k < kK; k += kStep)
      wgmma<Case::sign>(d, A::descriptor(smem.a, 0, k), B::descriptor(smem.b, 0, k),
                        k > 0 || accumulate);
  } else {
    FragmentA<T> a[kK / kStep];
    const Place at = FragmentA<T>::named(lane());
    WEFT_UNROLL
    for (uint32_t k = 0; k < kK; k += kStep)
      a[k / kStep] = {ldmatrix<4>(smem.a, A::index(16 * warp() + at.row, k + at.column))};
    wgmma_fence(d, a);
    WEFT_UNROLL
    for (uint32_t k = 0; k < kK; k += kStep)
      wgmma<Case::sign>(d, a[k / kStep], B::descriptor(smem.b, 0, k), k > 0 || accumulate);
  }
  wgmma_commit();
  wgmma_wait<0>(d);
  for (uint32_t i = 0; i < Accumulator::kSize; ++i) {
    const Place at = Accumulator::place(thread(), i);
    store(p.d + at.row * Case::kN + at.column, d[i]);
  }
}

// A matrix [rows, row] of global memory, in boxes that are panels of the tile.
template <class Tile, class T>
TensorMap map_of(void* data, uint32_t rows, uint32_t row, Swizzle swizzle) {
  TensorDescription t;
  t.data = data;
  t.dtype = sizeof(T) == 1 ? DType::i8 : DType::bf16;
  t.ndim = 2;
  t.size[0] = row, t.size[1] = rows;
  t.stride[0] = row * sizeof(T);
  t.box[0] = Tile::kRun, t.box[1] = Tile::kRows;
  t.swizzle = swizzle;
  return make_tensor_map(t);
}

// numbers: N, are the tiles stored by threads, is there a C.
template <class Case>
void run_wgmma(const Call& call) {
  using T = typename Case::Element;
  using D = typename Case::D;
  constexpr bool k_a = Case::major_a == Major::k, k_b = Case::major_b == Major::k;
  constexpr uint32_t kK = Case::kK, kN = Case::kN;
  launch<wgmma_kernel<Case>>(
      {.block = kWarpgroup,
       .shared_bytes = typename Case::Tiles{}.layout.bytes(),
       .stream = call.stream},
      map_of<typename Case::A, T>(call.inputs[0].data, k_a ? 64 : kK, k_a ? kK : 64, Case::swizzle),
      map_of<typename Case::B, T>(call.inputs[1].data, k_b ? kN : kK, k_b ? kK : kN, Case::swizzle),
      typename Case::Params{call.inputs[0].as<T>(), call.inputs[1].as<T>(),
                            call.numbers[2] ? call.inputs[2].as<D>() : nullptr,
                            call.outputs[0].as<D>(), call.numbers[1] != 0});
}

// The N of `Ns` that call.numbers[0] is.
template <class T, Major kMajorA, Major kMajorB, Swizzle kSwizzle, Source kSource, Sign kSign,
          int... Ns>
void wgmma_of(const Call& call) {
  bool found = false;
  const auto try_n = [&]<int N>() {
    if (call.numbers[0] != N) return;
    found = true;
    run_wgmma<WgmmaCase<T, N, kMajorA, kMajorB, kSwizzle, kSource, kSign>>(call);
  };
  (try_n.template operator()<Ns>(), ...);
  check(found, "weft_gpu_tests: there is no wgmma of N = ", call.numbers[0], " here");
}

constexpr auto kShared = Source::shared, kRegisters = Source::registers;
constexpr auto kAlongK = Major::k, kAlongMN = Major::mn;
constexpr auto kPlus = Sign::plus, kMinus = Sign::minus;

// ---- every N
template <class T, int... Is>
Case every_n(std::integer_sequence<int, Is...>) {
  return wgmma_of<T, kAlongK, kAlongK, Swizzle::bytes128, kShared, kPlus, 8 * (Is + 1)...>;
}
const Register wgmma_bf16("wgmma_bf16", every_n<bf16>(std::make_integer_sequence<int, 32>()));
const Register wgmma_f16("wgmma_f16", every_n<f16>(std::make_integer_sequence<int, 32>()));
const Register wgmma_i8(
    "wgmma_i8",
    wgmma_of<int8_t, kAlongK, kAlongK, Swizzle::bytes128, kShared, kPlus,  //
             8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256>);

// ---- A in registers
template <class T, int... Ns>
constexpr Case kFromRegisters =
    wgmma_of<T, kAlongK, kAlongK, Swizzle::bytes128, kRegisters, kPlus, Ns...>;
const Register wgmma_bf16_registers("wgmma_bf16_registers", kFromRegisters<bf16, 8, 64, 136, 256>);
const Register wgmma_f16_registers("wgmma_f16_registers", kFromRegisters<f16, 16, 128>);
const Register wgmma_i8_registers("wgmma_i8_registers", kFromRegisters<int8_t, 24, 128>);

// ---- D = C − A · B
const Register wgmma_minus(
    "wgmma_minus", wgmma_of<bf16, kAlongK, kAlongK, Swizzle::bytes128, kShared, kMinus, 64>);
const Register wgmma_minus_registers(
    "wgmma_minus_registers",
    wgmma_of<f16, kAlongK, kAlongMN, Swizzle::bytes128, kRegisters, kMinus, 64>);

// ---- every swizzle, both directions: wgmma_<A><B>_<swizzle>
template <Major kMajorA, Major kMajorB>
struct EverySwizzle {
  template <Swizzle kSwizzle>
  static constexpr Case kOf = wgmma_of<bf16, kMajorA, kMajorB, kSwizzle, kShared, kPlus, 64, 128>;
  const Register none, bytes32, bytes64, bytes128;
};
const EverySwizzle<kAlongK, kAlongK> kk{{"wgmma_kk_0", kk.kOf<Swizzle::none>},
                                        {"wgmma_kk_32", kk.kOf<Swizzle::bytes32>},
                                        {"wgmma_kk_64", kk.kOf<Swizzle::bytes64>},
                                        {"wgmma_kk_128", kk.kOf<Swizzle::bytes128>}};
const EverySwizzle<kAlongK, kAlongMN> km{{"wgmma_km_0", km.kOf<Swizzle::none>},
                                         {"wgmma_km_32", km.kOf<Swizzle::bytes32>},
                                         {"wgmma_km_64", km.kOf<Swizzle::bytes64>},
                                         {"wgmma_km_128", km.kOf<Swizzle::bytes128>}};
const EverySwizzle<kAlongMN, kAlongK> mk{{"wgmma_mk_0", mk.kOf<Swizzle::none>},
                                         {"wgmma_mk_32", mk.kOf<Swizzle::bytes32>},
                                         {"wgmma_mk_64", mk.kOf<Swizzle::bytes64>},
                                         {"wgmma_mk_128", mk.kOf<Swizzle::bytes128>}};
const EverySwizzle<kAlongMN, kAlongMN> mm{{"wgmma_mm_0", mm.kOf<Swizzle::none>},
                                          {"wgmma_mm_32", mm.kOf<Swizzle::bytes32>},
                                          {"wgmma_mm_64", mm.kOf<Swizzle::bytes64>},
                                          {"wgmma_mm_128", mm.kOf<Swizzle::bytes128>}};
template <Swizzle kSwizzle>
constexpr Case kI8 = wgmma_of<int8_t, kAlongK, kAlongK, kSwizzle, kShared, kPlus, 64>;
const Register wgmma_i8_0("wgmma_i8_0", kI8<Swizzle::none>);
const Register wgmma_i8_32("wgmma_i8_32", kI8<Swizzle::bytes32>);
const Register wgmma_i8_64("wgmma_i8_64", kI8<Swizzle::bytes64>);

// ---- E = (A · B) · C, the first product rounded to bf16 and kept in registers, the second one in two
// groups; A [64, 64], B [64, 64] along K, C [64, 64] along N.
WEFT_KERNEL void wgmma_chain_kernel(const bf16* a, const bf16* b, const bf16* c, float* e) {
  using Along = MatrixTile<bf16, Major::k, Swizzle::bytes128, 64, 64>;
  using Across = MatrixTile<bf16, Major::mn, Swizzle::bytes128, 64, 64>;
  SharedLayout layout;
  const Shared<bf16> x = Along::take(layout), y = Along::take(layout), z = Across::take(layout);
  store_tile<Along, Major::k>(x, a, 64, 64);
  store_tile<Along, Major::k>(y, b, 64, 64);
  store_tile<Across, Major::mn>(z, c, 64, 64);
  fence_async();
  sync_block();

  WgmmaAccumulator<float, 64> first, second;
  wgmma_fence(first);
  for (uint32_t k = 0; k < 64; k += 16)
    wgmma(first, Along::descriptor(x, 0, k), Along::descriptor(y, 0, k), k > 0);
  wgmma_commit();
  wgmma_wait<0>(first);
  FragmentA<bf16> between[4];
  for (uint32_t k = 0; k < 4; ++k) between[k] = fragment_a<bf16>(first, k);
  wgmma_fence(second, between);
  WEFT_UNROLL
  for (uint32_t k = 0; k < 4; ++k) {
    wgmma(second, between[k], Across::descriptor(z, 0, 16 * k), k > 0);
    if (k % 2 == 1) wgmma_commit();
  }
  wgmma_wait<1>();
  wgmma_wait<0>(second);
  for (uint32_t i = 0; i < second.kSize; ++i) {
    const Place at = second.place(thread(), i);
    store(e + at.row * 64 + at.column, second[i]);
  }
}
const Register wgmma_chain("wgmma_chain", [](const Call& call) {
  launch<wgmma_chain_kernel>({.block = kWarpgroup, .shared_bytes = 3 * 8192, .stream = call.stream},
                             call.inputs[0].as<bf16>(), call.inputs[1].as<bf16>(),
                             call.inputs[2].as<bf16>(), call.outputs[0].as<float>());
});

// ---- D[M, N] = A[M, K] · B[N, K]ᵀ with all that a fast kernel has: a block makes 128 × 128 of it. A
// warpgroup gives its registers away and fills a ring of stages with tensor copies; two others
// multiply 64 rows each, a stage behind the copies, and give a stage back when the products of the
// next are under way.
struct GemmTiles {
  static constexpr uint32_t kStages = 3, kK = 64;
  using Tile = MatrixTile<bf16, Major::k, Swizzle::bytes128, 128, kK>;

  SharedLayout layout;
  Shared<bf16> a = layout.take<bf16>(kStages * Tile::kSize, kSharedAlignment);
  Shared<bf16> b = layout.take<bf16>(kStages * Tile::kSize, kSharedAlignment);
  Shared<MBarrier> full = layout.take<MBarrier>(kStages), empty = layout.take<MBarrier>(kStages);
};

WEFT_KERNEL_BOUNDS(3 * kWarpgroup, 1)
void wgmma_gemm_kernel(WEFT_GRID_CONSTANT const TensorMap map_a,
                       WEFT_GRID_CONSTANT const TensorMap map_b, float* d, uint32_t N, uint32_t K) {
  using Tile = GemmTiles::Tile;
  constexpr uint32_t kStages = GemmTiles::kStages, kK = GemmTiles::kK;
  const GemmTiles smem;
  const uint32_t row = block().y * 128, column = block().x * 128;

  if (thread() == 0) {
    for (uint32_t s = 0; s < kStages; ++s) {
      mbarrier_init(smem.full.from(s), 1);
      mbarrier_init(smem.empty.from(s), 2);
    }
    fence_mbarrier_init();
  }
  sync_block();

  const uint32_t warpgroup = warp() / 4;
  if (warpgroup == 0) {
    decrease_registers<40>();
    if (thread() > 0) return;
    Turn<kStages> turn;
    for (uint32_t k = 0; k < K; k += kK, turn.next()) {
      const uint32_t s = turn.stage;
      const Shared<MBarrier> full = smem.full.from(s);
      mbarrier_wait(smem.empty.from(s), turn.parity ^ 1);
      mbarrier_arrive_expect(full, 2 * Tile::kSize * sizeof(bf16));
      const auto from = static_cast<int32_t>(k);
      tensor_load(smem.a.from(s * Tile::kSize), map_a, {from, static_cast<int32_t>(row)}, full);
      tensor_load(smem.b.from(s * Tile::kSize), map_b, {from, static_cast<int32_t>(column)}, full);
    }
    return;
  }

  increase_registers<232>();
  const uint32_t first = (warpgroup - 1) * 64;  // row of the tile
  WgmmaAccumulator<float, 128> sums;
  wgmma_fence(sums);
  Turn<kStages> turn;
  uint32_t before = 0;  // the stage whose products wgmma_wait<1> covers
  for (uint32_t k = 0; k < K; k += kK, turn.next()) {
    const uint32_t s = turn.stage;
    mbarrier_wait(smem.full.from(s), turn.parity);
    wgmma_fence();
    WEFT_UNROLL
    for (uint32_t i = 0; i < kK; i += 16)
      wgmma(sums, Tile::descriptor(smem.a.from(s * Tile::kSize), first, i),
            Tile::descriptor(smem.b.from(s * Tile::kSize), 0, i), k + i > 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (k > 0 && thread() % kWarpgroup == 0) mbarrier_arrive(smem.empty.from(before));
    before = s;
  }
  wgmma_wait<0>(sums);
  for (uint32_t i = 0; i < sums.kSize; ++i) {
    const Place at = sums.place(thread() % kWarpgroup, i);
    store(d + (row + first + at.row) * N + column + at.column, sums[i]);
  }
}
// numbers: M, N, K, multiples of 128, 128, 64.
const Register wgmma_gemm("wgmma_gemm", [](const Call& call) {
  using Tile = GemmTiles::Tile;
  const auto M = static_cast<uint32_t>(call.numbers[0]);
  const auto N = static_cast<uint32_t>(call.numbers[1]);
  const auto K = static_cast<uint32_t>(call.numbers[2]);
  launch<wgmma_gemm_kernel>({.grid = {N / 128, M / 128},
                             .block = 3 * kWarpgroup,
                             .shared_bytes = GemmTiles{}.layout.bytes(),
                             .stream = call.stream},
                            map_of<Tile, bf16>(call.inputs[0].data, M, K, Swizzle::bytes128),
                            map_of<Tile, bf16>(call.inputs[1].data, N, K, Swizzle::bytes128),
                            call.outputs[0].as<float>(), N, K);
});

}  // namespace weft::gpu::tests
