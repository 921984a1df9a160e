// A packed weight on the CPU, the same for all levels:
//
//   header           64 bytes
//   column sums      Σ_k w[n, k] as int32, of N rounded up to whole panels
//   panels           of 64 columns n, as cpu/panel_int8.h reads them: w + 128, or w + 8 in nibbles
//
// What pads N and K is 0 (packed: 128 or 8).
#pragma once

#include <cstdint>

#include "core/divide.h"
#include "core/inline.h"
#include "int8/packed.h"

namespace weft::int8::cpu {

constexpr uint32_t kPackedVersion = 1;
constexpr int64_t kPackedHeader = 64, kPackedPanel = 64, kPackedStep = 256;

struct PackedLayout {
  int64_t panels, steps, panel_bytes, bytes;

  WEFT_INLINE PackedLayout(int64_t N, int64_t K, int bits)
      : panels(ceil_div(N, kPackedPanel)),
        steps((K * bits + 31) / 32),
        panel_bytes(steps * kPackedStep),
        bytes(kPackedHeader + panels * (kPackedPanel * 4 + panel_bytes)) {}

  WEFT_INLINE const int32_t* sums(const void* packed, int64_t panel) const {
    return reinterpret_cast<const int32_t*>(static_cast<const char*>(packed) + kPackedHeader) +
           panel * kPackedPanel;
  }
  WEFT_INLINE const uint8_t* panel(const void* packed, int64_t panel) const {
    return static_cast<const uint8_t*>(packed) + kPackedHeader + panels * kPackedPanel * 4 +
           panel * panel_bytes;
  }
};

// What a packed weight has more than the weight.
WEFT_INLINE constexpr int32_t packed_zero(int bits) { return bits == 8 ? 128 : 8; }

}  // namespace weft::int8::cpu
