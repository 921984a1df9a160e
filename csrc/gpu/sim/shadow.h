// Which bytes of a stretch of memory have been written: a bit per byte, 16 bytes to a word, so that
// an aligned access of up to 16 bytes looks at one word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace weft::gpu::sim {

class Initialised {
 public:
  // `bytes` bytes, none of them written.
  void reset(size_t bytes) { words_.assign((bytes + 15) / 16, 0); }

  // [at, at + bytes) within 16 bytes.
  bool get(size_t at, uint32_t bytes) const {
    const uint32_t mask = mask_of(at, bytes);
    return (words_[at / 16] & mask) == mask;
  }
  void set(size_t at, uint32_t bytes) {
    words_[at / 16] |= static_cast<uint16_t>(mask_of(at, bytes));
  }
  void clear(size_t at, uint32_t bytes) {
    words_[at / 16] &= static_cast<uint16_t>(~mask_of(at, bytes));
  }

  // What `other` says of as many bytes at a place of the same remainder by 16.
  void merge(size_t at, uint32_t bytes, const Initialised& other, size_t other_at) {
    words_[at / 16] |= static_cast<uint16_t>(other.words_[other_at / 16] & mask_of(at, bytes));
  }

  // Any stretch: calls f(at, bytes) for pieces within 16 bytes.
  template <class F>
  static void pieces(size_t at, size_t bytes, const F& f) {
    while (bytes > 0) {
      const size_t room = 16 - at % 16, n = bytes < room ? bytes : room;
      f(at, static_cast<uint32_t>(n));
      at += n, bytes -= n;
    }
  }

 private:
  static uint32_t mask_of(size_t at, uint32_t bytes) { return ((1u << bytes) - 1) << at % 16; }

  std::vector<uint16_t> words_;
};

}  // namespace weft::gpu::sim
