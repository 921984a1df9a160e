// Votes and shuffles in the simulator: computed by the last lane that comes.
#pragma once

#include "gpu/sim/engine.h"
#include "gpu/warp.h"

namespace weft::gpu {

namespace detail {

struct VoteArguments {
  bool predicate;
  uint32_t result;
};

WEFT_DEVICE uint32_t vote(const char* name, bool predicate, uint32_t mask) {
  VoteArguments mine{predicate, 0};
  sim::warp_collective(name, mask, mine, [](VoteArguments* const* lanes, uint32_t m) {
    uint32_t result = 0;
    for (uint32_t l = 0; l < kWarp; ++l)
      if (m >> l & 1) result |= uint32_t{lanes[l]->predicate} << l;
    for (uint32_t l = 0; l < kWarp; ++l)
      if (m >> l & 1) lanes[l]->result = result;
  });
  return mine.result;
}

struct ShuffleArguments {
  uint32_t word, source, result;
};

// `source` is a lane of the warp.
WEFT_DEVICE uint32_t exchange(const char* name, uint32_t word, uint32_t source) {
  ShuffleArguments mine{word, source, 0};
  sim::warp_collective(name, kAllLanes, mine, [](ShuffleArguments* const* lanes, uint32_t) {
    for (uint32_t l = 0; l < kWarp; ++l) lanes[l]->result = lanes[lanes[l]->source]->word;
  });
  return mine.result;
}

// The lane `source`, or this one where that lies outside of its group.
WEFT_DEVICE uint32_t within_group(uint32_t source, uint32_t width) {
  return source / width == lane() / width ? source : lane();
}

}  // namespace detail

WEFT_DEVICE uint32_t ballot(bool predicate, uint32_t mask) {
  return detail::vote("ballot", predicate, mask);
}
WEFT_DEVICE bool any(bool predicate, uint32_t mask) {
  return detail::vote("any", predicate, mask) != 0;
}
WEFT_DEVICE bool all(bool predicate, uint32_t mask) {
  return detail::vote("all", predicate, mask) == mask;
}

WEFT_DEVICE uint32_t shuffle_word(uint32_t word, uint32_t source, uint32_t width) {
  return detail::exchange("shuffle", word, lane() / width * width + source % width);
}
WEFT_DEVICE uint32_t shuffle_xor_word(uint32_t word, uint32_t lanes, uint32_t width) {
  return detail::exchange("shuffle_xor", word, detail::within_group(lane() ^ lanes, width));
}
WEFT_DEVICE uint32_t shuffle_down_word(uint32_t word, uint32_t by, uint32_t width) {
  return detail::exchange("shuffle_down", word, detail::within_group(lane() + by, width));
}
WEFT_DEVICE uint32_t shuffle_up_word(uint32_t word, uint32_t by, uint32_t width) {
  return detail::exchange("shuffle_up", word, detail::within_group(lane() - by, width));
}

WEFT_DEVICE bool elect() {
  detail::vote("elect", true, kAllLanes);
  return lane() == sim::elected_lane();
}

}  // namespace weft::gpu
