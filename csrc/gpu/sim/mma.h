// Matrix products of a warp in the simulator: the lanes meet, and the last to come computes for all.
#pragma once

#include <array>
#include <bit>
#include <cstring>

#include "gpu/mma.h"
#include "gpu/sim/engine.h"
#include "gpu/sim/matrix.h"

namespace weft::gpu {

namespace detail {

// Where a lane's 16 bytes of a matrix lie on the host; checked as an access of that lane.
template <int kMatrices, class T>
WEFT_DEVICE std::byte* matrix_row(Shared<T> x, uint32_t at, sim::Access access) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  if (lane() >= 8 * kMatrices) return nullptr;
  check_view(at, 16 / sizeof(T), x.count(), sizeof(T));
  return static_cast<std::byte*>(
      sim::shared_access(x.offset() + at * static_cast<uint32_t>(sizeof(T)), 16, access));
}

template <int kMatrices>
struct MatrixRows {
  std::byte* row;
  Vec<uint32_t, kMatrices> words;
};

// Where half h of a lane's word of a matrix is: of which row, at which byte.
constexpr Place half_of(uint32_t lane, uint32_t h, bool transposed) {
  const Place plain = {lane / 4, lane % 4 * 2 + h};
  return transposed ? Place{plain.column, plain.row * 2} : Place{plain.row, plain.column * 2};
}

template <int kMatrices, bool kTransposed, class T>
WEFT_DEVICE Vec<uint32_t, kMatrices> load_matrices(const char* name, Shared<T> x, uint32_t at) {
  using Mine = MatrixRows<kMatrices>;
  Mine mine{matrix_row<kMatrices>(x, at, sim::Access::read), {}};
  sim::warp_collective(name, kAllLanes, mine, [](Mine* const* lanes, uint32_t) {
    for (uint32_t l = 0; l < kWarp; ++l)
      for (uint32_t m = 0; m < kMatrices; ++m) {
        uint16_t halves[2];
        for (uint32_t h = 0; h < 2; ++h) {
          const Place at_byte = half_of(l, h, kTransposed);
          std::memcpy(&halves[h], lanes[8 * m + at_byte.row]->row + at_byte.column, 2);
        }
        std::memcpy(&lanes[l]->words[static_cast<int>(m)], halves, 4);
      }
  });
  return mine.words;
}

template <int kMatrices, bool kTransposed, class T>
WEFT_DEVICE void store_matrices(const char* name, Shared<T> x, uint32_t at,
                                const Vec<uint32_t, kMatrices>& words) {
  using Mine = MatrixRows<kMatrices>;
  Mine mine{matrix_row<kMatrices>(x, at, sim::Access::write), words};
  sim::warp_collective(name, kAllLanes, mine, [](Mine* const* lanes, uint32_t) {
    for (uint32_t l = 0; l < kWarp; ++l)
      for (uint32_t m = 0; m < kMatrices; ++m)
        for (uint32_t h = 0; h < 2; ++h) {
          const Place at_byte = half_of(l, h, kTransposed);
          const auto half = static_cast<uint16_t>(lanes[l]->words[static_cast<int>(m)] >> 16 * h);
          std::memcpy(lanes[8 * m + at_byte.row]->row + at_byte.column, &half, 2);
        }
  });
}

}  // namespace detail

template <int kMatrices, class T>
WEFT_DEVICE Vec<uint32_t, kMatrices> ldmatrix(Shared<T> x, uint32_t at) {
  return detail::load_matrices<kMatrices, false>("ldmatrix", x, at);
}
template <int kMatrices, class T>
WEFT_DEVICE Vec<uint32_t, kMatrices> ldmatrix_transposed(Shared<T> x, uint32_t at) {
  return detail::load_matrices<kMatrices, true>("ldmatrix_transposed", x, at);
}
template <int kMatrices, class T>
WEFT_DEVICE void stmatrix(Shared<T> x, uint32_t at, const Vec<uint32_t, kMatrices>& words) {
  detail::store_matrices<kMatrices, false>("stmatrix", x, at, words);
}
template <int kMatrices, class T>
WEFT_DEVICE void stmatrix_transposed(Shared<T> x, uint32_t at,
                                     const Vec<uint32_t, kMatrices>& words) {
  detail::store_matrices<kMatrices, true>("stmatrix_transposed", x, at, words);
}

WEFT_DEVICE uint32_t movmatrix(uint32_t word) {
  struct Mine {
    uint32_t word, transposed;
  } mine{word, 0};
  sim::warp_collective("movmatrix", kAllLanes, mine, [](Mine* const* lanes, uint32_t) {
    for (uint32_t l = 0; l < kWarp; ++l)
      for (uint32_t h = 0; h < 2; ++h) {
        const uint32_t row = l % 4 * 2 + h, column = l / 4;  // of the matrix before
        const uint32_t half = lanes[row * 4 + column / 2]->word >> column % 2 * 16 & 0xFFFF;
        lanes[l]->transposed |= half << 16 * h;
      }
  });
  return mine.transposed;
}

WEFT_DEVICE tf32 to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {0x7FFFFFFF};
  if ((bits & 0x7FFFFFFF) == 0x7F800000) return {bits};
  return {(bits + 0x1000) & ~0x1FFFu};
}

template <class D, class T>
WEFT_DEVICE void mma(FragmentC<D>& c, const FragmentA<T>& a, const FragmentB<T>& b) {
  static_assert(std::is_same_v<D, std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>> ||
                (std::is_same_v<D, f16> && std::is_same_v<T, f16>));
  struct Mine {
    FragmentC<D>* c;
    FragmentA<T> a;
    FragmentB<T> b;
  } mine{&c, a, b};
  sim::warp_collective("mma", kAllLanes, mine, [](Mine* const* lanes, uint32_t) {
    constexpr uint32_t M = 16, N = 8, K = FragmentA<T>::kColumns;
    float A[M * K], B[K * N];
    std::conditional_t<std::is_same_v<D, f16>, float, D> C[M * N];
    for (uint32_t l = 0; l < kWarp; ++l) {
      const auto of_a = std::bit_cast<std::array<T, FragmentA<T>::kSize>>(lanes[l]->a.words);
      const auto of_b = std::bit_cast<std::array<T, FragmentB<T>::kSize>>(lanes[l]->b.words);
      for (uint32_t i = 0; i < of_a.size(); ++i) {
        const Place at = FragmentA<T>::place(l, i);
        A[at.row * K + at.column] = sim::decoded(of_a[i]);
      }
      for (uint32_t i = 0; i < of_b.size(); ++i) {
        const Place at = FragmentB<T>::place(l, i);
        B[at.row * N + at.column] = sim::decoded(of_b[i]);
      }
    }
    const auto each = [&](const auto& f) {
      for (uint32_t l = 0; l < kWarp; ++l)
        for (uint32_t i = 0; i < FragmentC<D>::kSize; ++i) {
          const Place at = FragmentC<D>::place(l, i);
          f((*lanes[l]->c)[i], C[at.row * N + at.column]);
        }
    };
    if constexpr (std::is_same_v<D, f16>) {
      each([](f16& c_i, float& sum) { sum = to_float(c_i); });
      sim::multiply_add(C, A, B, M, N, K);
      each([](f16& c_i, float& sum) { c_i = to_f16(sum); });
    } else {
      each([](D& c_i, D& sum) { sum = c_i; });
      sim::multiply_add(C, A, B, M, N, K);
      each([](D& c_i, D& sum) { c_i = sum; });
    }
  });
}

}  // namespace weft::gpu
