// The memory that the ranks of a node share, as plain structs: of host and kernels alike.
//
//   Header | channel 0: slot of even events, of odd events | channel 1: … | …
//
// Every rank has such a piece of memory on its GPU, and all ranks reach all of them. A channel is a
// block of the kernels (channel.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/inline.h"

namespace weft::comm::cuda {

constexpr int kMostRanks = 8;
constexpr uint32_t kMostBlocks = 64;
constexpr uint32_t kFirst = -1000u;  // event: counters wrap early, and not after a week

// What rank r tells another of its events: a sector that r alone writes.
struct alignas(32) Flag {
  uint64_t signature[2];  // of its calls, by turns
  uint32_t published;     // its next event, modulo 2^32
};

struct alignas(32) ChannelState {
  Flag from[kMostRanks];
  uint32_t event, call;  // its own, which outlast the launch
};

// What a rank tells of itself: kClosed, or kGaveUp + whom it blames.
constexpr uint32_t kClosed = 1, kGaveUp = 2;

struct alignas(128) Header {
  uint32_t told[kMostRanks];  // by each rank
  uint32_t failed;            // this rank has
  ChannelState channels[kMostBlocks];
};

// As it is before the first call.
inline void initialise(Header& header) {
  header = {};
  for (ChannelState& channel : header.channels) {
    for (Flag& flag : channel.from) flag.published = kFirst;
    channel.event = kFirst;
  }
}

enum class Trouble : uint32_t { none, late, mismatch, gave_up, closed };

// What the kernels tell the host when something is wrong; in memory of the host.
struct Status {
  uint64_t call;          // of those that have this block, as all have block 0
  uint64_t mine, theirs;  // signatures; theirs: of a mismatch
  uint32_t block;
  uint32_t rank;    // who is late, differs, …
  uint32_t blamed;  // of gave_up
  Trouble trouble;  // written last
};

struct Group {
  std::byte* memory[kMostRanks] = {};  // of each rank, where this one finds it
  std::byte* multicast = nullptr;      // all of them behind one address
  Status* status = nullptr;
  int64_t slot_bytes = 0;
  uint64_t timeout = 0;  // nanoseconds
  int32_t rank = 0, world = 1;

  WEFT_INLINE Header* header(uint32_t r) const { return reinterpret_cast<Header*>(memory[r]); }
  // Within a rank's memory.
  WEFT_INLINE int64_t slot(uint32_t channel, uint32_t event) const {
    return static_cast<int64_t>(sizeof(Header)) + (channel * 2 + event % 2) * slot_bytes;
  }
  static int64_t bytes(uint32_t channels, int64_t slot_bytes) {
    return static_cast<int64_t>(sizeof(Header)) + channels * 2 * slot_bytes;
  }
};

}  // namespace weft::comm::cuda
