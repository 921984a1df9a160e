// Packs weights, once, and unpacks them. Layout: packed.h.
//
// A warp packs a row: a lane gathers what a unit of 16 bytes holds, adds it up, and stores the unit.
// Unpacking, a thread takes one element. Both read and write N · K bytes; strided weights are read
// byte by byte.
#pragma once

#include "gpu/gpu.h"
#include "int8/cuda/packed.h"
#include "int8/params.h"

namespace weft::int8::cuda {

using namespace ::weft::gpu;

constexpr uint32_t kPackThreads = 256;

WEFT_KERNEL_BOUNDS(kPackThreads, 1) void pack_kernel(const Pack p, const PackedHeader header) {
  const PackedLayout layout(p.N, p.K, p.bits);
  char* const packed = static_cast<char*>(p.packed);
  if (block().x == 0 && thread() < kPackedHeader / 8) {
    uint64_t words[sizeof header / 8], word = 0;
    __builtin_memcpy(words, &header, sizeof header);
    WEFT_UNROLL
    for (uint32_t i = 0; i < sizeof header / 8; ++i) word = i == thread() ? words[i] : word;
    store(reinterpret_cast<uint64_t*>(packed) + thread(), word);
  }
  const int64_t n = static_cast<int64_t>(block().x) * (kPackThreads / kWarp) + warp();
  if (n >= layout.rows) return;
  const auto weight = [&](int64_t k) {
    return n < p.N && k < p.K ? int32_t{load(p.weight + n * p.row + k * p.column)} : 0;
  };
  int8_t* const row = const_cast<int8_t*>(layout.weight(packed)) + n * layout.row_bytes;
  int32_t sum = 0;
  for (int64_t at = lane() * 16; at < layout.row_bytes; at += kWarp * 16) {
    Vec<int8_t, 16> unit;
    if (p.bits == 8) {
      WEFT_UNROLL
      for (int i = 0; i < 16; ++i) {
        const int32_t w = weight(at + i);
        unit[i] = static_cast<int8_t>(w);
        sum += w;
      }
    } else {
      const int64_t first = at / 64 * 128 + at % 64 / 16 * 8;  // of the unit's k
      uint32_t words[4] = {};
      WEFT_UNROLL
      for (int i = 0; i < 32; ++i) {
        const int64_t k = first + i / 8 * 32 + i % 8;
        const int32_t w = max(-8, min(weight(k), 7));
        words[i / 8] |= static_cast<uint32_t>(w + 8) << nibble_place(i % 8).bit;
        sum += w;
      }
      __builtin_memcpy(&unit, words, sizeof unit);
    }
    store(row + at, unit);
  }
  sum = warp_sum(sum);
  if (lane() == 0) store(const_cast<int32_t*>(layout.sums(packed)) + n, sum);
}

// Element k of a packed row.
WEFT_DEVICE int32_t packed_weight(const int8_t* row, int bits, int64_t k) {
  if (bits == 8) return load(row + k);
  const NibblePlace at = nibble_place(k);
  const int8_t byte = load(row + at.word + at.bit / 8);
  return (byte >> at.bit % 8 & 15) - 8;
}

WEFT_KERNEL_BOUNDS(kPackThreads, 1) void unpack_kernel(const Unpack p) {
  const PackedLayout layout(p.N, p.K, p.bits);
  const int64_t i = static_cast<int64_t>(block().x) * kPackThreads + thread(), n = i / p.K;
  if (n >= p.N) return;
  const int8_t* const row = layout.weight(p.packed) + n * layout.row_bytes;
  store(p.weight + i, static_cast<int8_t>(packed_weight(row, p.bits, i % p.K)));
}

}  // namespace weft::int8::cuda
