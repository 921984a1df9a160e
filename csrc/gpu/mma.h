// Matrix products of a warp, and the ways of matrices between its registers and shared memory. All
// 32 lanes execute each of these together. The fragments are drawn in gpu/layouts.h.
//
//   using A = FragmentA<bf16>;
//   using B = FragmentB<bf16>;
//   const Place pa = A::named(lane()), pb = B::named(lane());
//   const A a{ldmatrix<4>(x, pa.row * K + pa.column)};    // x [16, K]
//   const B b{ldmatrix<2>(w, pb.column * K + pb.row)};    // w [8, K]
//   mma(c, a, b);
#pragma once

#include "gpu/layouts.h"

namespace weft::gpu {

// kMatrices (1, 2 or 4) matrices of 8 rows of 16 bytes. Lane 8i + r names row r of matrix i: the 16
// bytes from x[at] on, aligned to 16 bytes; lanes beyond name nothing. Of matrix i, lane l gets the
// l % 4-th word of row l / 4.
template <int kMatrices, class T>
WEFT_DEVICE Vec<uint32_t, kMatrices> ldmatrix(Shared<T> x, uint32_t at);
// The same, of each matrix transposed, as 8 × 8 elements of 16 bits.
template <int kMatrices, class T>
WEFT_DEVICE Vec<uint32_t, kMatrices> ldmatrix_transposed(Shared<T> x, uint32_t at);

// The way back. sm_90.
template <int kMatrices, class T>
WEFT_DEVICE void stmatrix(Shared<T> x, uint32_t at, const Vec<uint32_t, kMatrices>& words);
template <int kMatrices, class T>
WEFT_DEVICE void stmatrix_transposed(Shared<T> x, uint32_t at,
                                     const Vec<uint32_t, kMatrices>& words);

// A matrix of 8 × 8 elements of 16 bits, a word a lane, transposed in registers.
WEFT_DEVICE uint32_t movmatrix(uint32_t word);

// To the nearest tf32, ties away from zero.
WEFT_DEVICE tf32 to_tf32(float x);

// c += a · b, for m16n8 and
//
//   T        D               K
//   bf16     float           16
//   f16      float, f16      16
//   tf32     float           8
//   int8_t   int32_t         32
template <class D, class T>
WEFT_DEVICE void mma(FragmentC<D>& c, const FragmentA<T>& a, const FragmentB<T>& b);

}  // namespace weft::gpu
