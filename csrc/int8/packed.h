// What every packed weight begins with. The version is of the layout, of which each kind of device has
// its own: cpu/packed.h, cuda/packed.h.
#pragma once

#include <cstdint>

namespace weft::int8 {

struct PackedHeader {
  uint32_t magic = 0x74666577;  // "weft"
  uint32_t version = 0;
  int64_t N = 0, K = 0, bits = 0;
};
static_assert(sizeof(PackedHeader) == 32);

}  // namespace weft::int8
