// The 32 threads of a warp among themselves. All lanes of the mask, or of the warp where there is
// none, execute the same call; none of these orders memory (sync_warp in gpu/sync.h does).
#pragma once

#include <type_traits>

#include "gpu/base.h"

namespace weft::gpu {

// ---- votes
WEFT_DEVICE uint32_t ballot(bool predicate, uint32_t mask = kAllLanes);  // a bit per lane
WEFT_DEVICE bool any(bool predicate, uint32_t mask = kAllLanes);
WEFT_DEVICE bool all(bool predicate, uint32_t mask = kAllLanes);

// ---- shuffles of one 32-bit word. Lanes go in groups of `width`, a power of two up to 32; a source
// outside of the group gives back the lane's own.
WEFT_DEVICE uint32_t shuffle_word(uint32_t word, uint32_t source, uint32_t width);  // of the group
WEFT_DEVICE uint32_t shuffle_xor_word(uint32_t word, uint32_t lanes, uint32_t width);
WEFT_DEVICE uint32_t shuffle_down_word(uint32_t word, uint32_t by, uint32_t width);
WEFT_DEVICE uint32_t shuffle_up_word(uint32_t word, uint32_t by, uint32_t width);

// True in one lane of the warp, the same each time. All 32 execute it. sm_90; elsewhere lane 0.
WEFT_DEVICE bool elect();

// ---- shuffles of anything trivial, word by word
namespace detail {
template <class T, class F>
WEFT_DEVICE T by_words(const T& value, const F& shuffle) {
  static_assert(std::is_trivially_copyable_v<T>);
  constexpr int kWords = (sizeof(T) + 3) / 4;
  uint32_t words[kWords] = {};
  __builtin_memcpy(words, &value, sizeof(T));
  for (int i = 0; i < kWords; ++i) words[i] = shuffle(words[i]);
  T result;
  __builtin_memcpy(&result, words, sizeof(T));
  return result;
}
}  // namespace detail

template <int kWidth = kWarp, class T>
WEFT_DEVICE T shuffle(const T& value, uint32_t source) {
  return detail::by_words(value, [=](uint32_t w) { return shuffle_word(w, source, kWidth); });
}
template <int kWidth = kWarp, class T>
WEFT_DEVICE T shuffle_xor(const T& value, uint32_t lanes) {
  return detail::by_words(value, [=](uint32_t w) { return shuffle_xor_word(w, lanes, kWidth); });
}
template <int kWidth = kWarp, class T>
WEFT_DEVICE T shuffle_down(const T& value, uint32_t by) {
  return detail::by_words(value, [=](uint32_t w) { return shuffle_down_word(w, by, kWidth); });
}
template <int kWidth = kWarp, class T>
WEFT_DEVICE T shuffle_up(const T& value, uint32_t by) {
  return detail::by_words(value, [=](uint32_t w) { return shuffle_up_word(w, by, kWidth); });
}

// The value of lane 0, in all lanes. The compiler then knows that they agree: a branch by
// uniform(warp()) costs no divergence.
template <class T>
WEFT_DEVICE T uniform(const T& value) {
  return shuffle(value, 0);
}

// ---- reductions: all lanes of each group of kWidth get the result, in an order that is the same in
// all of them, so that the result has the same bits everywhere.
template <int kWidth = kWarp, class T, class Op>
WEFT_DEVICE T warp_reduce(T value, const Op& op) {
  for (int lanes = kWidth / 2; lanes > 0; lanes /= 2)
    value = op(value, shuffle_xor<kWidth>(value, lanes));
  return value;
}
template <int kWidth = kWarp, class T>
WEFT_DEVICE T warp_sum(T value) {
  return warp_reduce<kWidth>(value, [](T a, T b) { return a + b; });
}
template <int kWidth = kWarp, class T>
WEFT_DEVICE T warp_max(T value) {
  return warp_reduce<kWidth>(value, [](T a, T b) { return a < b ? b : a; });
}
template <int kWidth = kWarp, class T>
WEFT_DEVICE T warp_min(T value) {
  return warp_reduce<kWidth>(value, [](T a, T b) { return b < a ? b : a; });
}

}  // namespace weft::gpu
