// Packs weights, once, and unpacks them: a panel of columns is a task. Layout: packed.h.
#include <atomic>
#include <cstring>

#include "core/error.h"
#include "cpu/threads.h"
#include "int8/cpu/int8.h"
#include "int8/cpu/packed.h"

namespace weft::int8::cpu {
namespace {

// Where element (k, n) of a panel lies, and by how many bits it is shifted.
struct Place {
  int64_t byte;
  int shift;

  Place(int64_t k, int64_t n, int bits)
      : byte(bits == 8 ? k / 4 * kPackedStep + n * 4 + k % 4 : k / 8 * kPackedStep + n * 4 + k % 4),
        shift(bits == 8 ? 0 : static_cast<int>(k % 8 / 4) * 4) {}
};

template <class P>
int64_t columns_of(const P& p, int64_t panel) {
  const int64_t left = p.N - panel * kPackedPanel;
  return left < kPackedPanel ? left : kPackedPanel;
}

}  // namespace

int64_t packed_bytes(int64_t N, int64_t K, int bits) { return PackedLayout(N, K, bits).bytes; }

PackedHeader packed_header(int64_t N, int64_t K, int bits) {
  PackedHeader header;
  header.version = kPackedVersion;
  header.N = N;
  header.K = K;
  header.bits = bits;
  return header;
}

void pack(const Pack& p) {
  const PackedLayout layout(p.N, p.K, p.bits);
  const PackedHeader header = packed_header(p.N, p.K, p.bits);
  std::memset(p.packed, 0, kPackedHeader);
  std::memcpy(p.packed, &header, sizeof header);
  std::atomic<bool> outside = false;  // tasks do not throw
  ::weft::cpu::parallel_for(layout.panels, [&](int64_t panel) {
    auto* to = const_cast<uint8_t*>(layout.panel(p.packed, panel));
    auto* sums = const_cast<int32_t*>(layout.sums(p.packed, panel));
    const int zero = packed_zero(p.bits);
    std::memset(to, p.bits == 8 ? zero : zero * 17, static_cast<size_t>(layout.panel_bytes));
    std::memset(sums, 0, kPackedPanel * 4);
    const int64_t columns = columns_of(p, panel);
    const uint8_t mask = p.bits == 8 ? 255 : 15;
    bool fits = true;
    for (int64_t n = 0; n < columns; ++n) {
      const int8_t* from = p.weight + (panel * kPackedPanel + n) * p.row;
      int32_t sum = 0;
      for (int64_t k = 0; k < p.K; ++k) {
        const int w = from[k * p.column];
        fits &= w + zero >= 0 && w + zero <= mask;
        const Place at(k, n, p.bits);
        to[at.byte] = static_cast<uint8_t>((to[at.byte] & ~(mask << at.shift)) | ((w + zero) & mask)
                                                                                     << at.shift);
        sum += w;
      }
      sums[n] = sum;
    }
    if (!fits) outside = true;
  });
  check(!outside, "weft.int8_pack: weight holds values that are not of 4 bits, expected -8 to 7");
}

void unpack(const Unpack& p) {
  const PackedLayout layout(p.N, p.K, p.bits);
  ::weft::cpu::parallel_for(layout.panels, [&](int64_t panel) {
    const uint8_t* from = layout.panel(p.packed, panel);
    const int64_t columns = columns_of(p, panel);
    for (int64_t n = 0; n < columns; ++n) {
      int8_t* to = p.weight + (panel * kPackedPanel + n) * p.K;
      for (int64_t k = 0; k < p.K; ++k) {
        const Place at(k, n, p.bits);
        const int w = p.bits == 8 ? from[at.byte] : from[at.byte] >> at.shift & 15;
        to[k] = static_cast<int8_t>(w - packed_zero(p.bits));
      }
    }
  });
}

}  // namespace weft::int8::cpu
