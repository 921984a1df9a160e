// How the ranks of a node take turns on their GPUs: the turns of comm/cpu/protocol.h with rings of two
// slots, once for each block of a kernel. This file is the whole protocol, and
// tests/model/channel.pml is its model.
//
// Block b of every rank's kernel is channel b, which has slots and counters of its own and nothing to
// do with other blocks. All ranks launch a call with as many blocks, which have the same events in
// the same order. Event e of a rank is: it writes slot e mod 2 of its memory, then tells each peer,
// in the peer's memory, that it has published e + 1 (release). It reads the peers' slots once its own
// memory says that they have (acquire); so nobody looks for news across the link.
//
//   rank r at event e    its counter   slot e mod 2 of r   what a peer p may do
//   -----------------    -----------   -----------------   ------------------------------------
//   writing              <= e          r's alone           read event e - 1, write its own e
//   published            e + 1         e, whole            read event e, write its own e + 1
//   published e + 1      e + 2         e, whole            read event e until it publishes e + 1
//
// Rule of reading: who has published e + 1 has read all that it will of the events up to e. Rule of
// writing: event e + 2 is written once everyone has published e + 1; that is what a rank awaited in
// order to read event e + 1. So nobody waits before it writes, no barrier closes a round, and a rank
// may be an event ahead of a peer. By multicast a rank writes event e into the slots of all: the same
// rule holds, as all have published e - 1.
//
// Counters are of 32 bits and wrap; their difference as a signed number tells who is ahead. They stay
// in the GPU's memory from launch to launch, so that a graph that is replayed goes on where the last
// call has ended.
//
// With a call's first event go its signatures, in one of two words by turns: the word of call c is
// written again by call c + 2, whose rank has awaited everyone's call c + 1.
//
// Deadlines: who waits looks at the clock, at its own GPU's `failed`, and at what the peers have told.
// The first of a rank's threads to give up sets `failed`, reports to the host, and tells all peers;
// then every block of the rank leaves. The kernels of later calls leave before they write anything:
// their counters say where the failed call began, and a peer may still read that event's slot. Nobody
// waits longer than its deadline.
#pragma once

#include "comm/cuda/group.h"
#include "gpu/gpu.h"

namespace weft::comm::cuda {

using namespace ::weft::gpu;

class Channel {
 public:
  WEFT_DEVICE Channel(const Group& group, uint64_t signature)
      : group_(group),
        signature_(signature),
        state_(group.header(group.rank)->channels + block().x),
        event_(load(&state_->event)),
        call_(load(&state_->call)) {}

  // The slot of this rank that is written now, and rank r's that was published last.
  template <class T>
  WEFT_DEVICE T* mine() const {
    return at<T>(group_.memory[group_.rank], event_);
  }
  template <class T>
  WEFT_DEVICE const T* theirs(uint32_t r) const {
    return at<T>(group_.memory[r], event_ - 1);
  }
  // The same of all ranks, behind one address.
  template <class T>
  WEFT_DEVICE T* everyones() const {
    return at<T>(group_.multicast, event_);
  }
  template <class T>
  WEFT_DEVICE const T* published() const {
    return at<T>(group_.multicast, event_ - 1);
  }

  // Before the first slot is written. False: this rank has failed, all threads leave the kernel.
  WEFT_DEVICE bool begin() const {
    return !sync_block_or(load_relaxed<Scope::gpu>(&group_.header(group_.rank)->failed) != 0);
  }

  // Publishes the slot that is written and awaits everyone's. False: all threads leave the kernel.
  WEFT_DEVICE bool exchange() {
    sync_block();  // the slot is written, and those of the last event are read
    const uint32_t r = thread(), rank = static_cast<uint32_t>(group_.rank);
    bool good = true;
    if (r == rank) {
      good = none_failed();
    } else if (r < static_cast<uint32_t>(group_.world)) {
      tell(r);
      good = await(r);
    }
    if (!sync_block_and(good)) return false;
    ++event_;
    first_ = false;
    return true;
  }

  // After the last exchange of the call.
  WEFT_DEVICE void end() const {
    if (thread() != 0) return;
    store(&state_->event, event_);
    store(&state_->call, call_ + 1);
  }

 private:
  static constexpr uint32_t kLooks = 32;  // at a counter, between those at the clock

  template <class T>
  WEFT_DEVICE T* at(std::byte* memory, uint32_t event) const {
    return reinterpret_cast<T*>(memory + group_.slot(block().x, event));
  }

  WEFT_DEVICE void tell(uint32_t r) const {
    Flag* flag = &group_.header(r)->channels[block().x].from[group_.rank];
    if (first_) store(&flag->signature[call_ % 2], signature_);
    store_release<Scope::system>(&flag->published, event_ + 1);
  }

  // A rank that comes late finds the others' events, but not the others: so each call looks once.
  WEFT_DEVICE bool none_failed() const {
    Header* header = group_.header(group_.rank);
    if (load_relaxed<Scope::gpu>(&header->failed)) return false;
    for (uint32_t q = 0; first_ && q < static_cast<uint32_t>(group_.world); ++q) {
      const uint32_t told = load_relaxed<Scope::system>(&header->told[q]);
      if (told >= kGaveUp) return give_up(Trouble::gave_up, q, told - kGaveUp);
    }
    return true;
  }

  WEFT_DEVICE bool has_published(uint32_t r) const {
    const uint32_t count = load_acquire<Scope::system>(&state_->from[r].published);
    return static_cast<int32_t>(count - (event_ + 1)) >= 0;
  }

  WEFT_DEVICE bool await(uint32_t r) const {
    uint64_t begin = 0;  // of the wait, but for the first looks: the clock is slow
    for (uint32_t look = 1; !has_published(r); ++look) {
      if (look % kLooks != 0) continue;
      const uint64_t now = nanoseconds();
      if (begin == 0) begin = now;
      if (!is_worth_waiting(r, now - begin)) return false;
    }
    if (!first_) return true;
    const uint64_t theirs = load(&state_->from[r].signature[call_ % 2]);
    return theirs == signature_ || give_up(Trouble::mismatch, r, r, theirs);
  }

  WEFT_DEVICE bool is_worth_waiting(uint32_t r, uint64_t waited) const {
    Header* header = group_.header(group_.rank);
    if (load_relaxed<Scope::gpu>(&header->failed)) return false;
    WEFT_NO_UNROLL
    for (uint32_t q = 0; q < static_cast<uint32_t>(group_.world); ++q) {
      const uint32_t told = load_relaxed<Scope::system>(&header->told[q]);
      if (told >= kGaveUp) return give_up(Trouble::gave_up, q, told - kGaveUp);
      if (told == kClosed && q == r && !has_published(r)) return give_up(Trouble::closed, r, r);
    }
    return waited < group_.timeout || give_up(Trouble::late, r, r);
  }

  // The first thread of the rank to come here speaks for it.
  WEFT_DEVICE bool give_up(Trouble trouble, uint32_t r, uint32_t blamed,
                           uint64_t theirs = 0) const {
    const uint32_t rank = static_cast<uint32_t>(group_.rank);
    if (atomic_exchange(&group_.header(rank)->failed, 1u)) return false;
    Status* status = group_.status;
    store(&status->call, uint64_t{call_} + 1);
    store(&status->block, block().x);
    store(&status->mine, signature_);
    store(&status->theirs, theirs);
    store(&status->rank, r);
    store(&status->blamed, blamed);
    store_release<Scope::system>(&status->trouble, trouble);
    WEFT_NO_UNROLL
    for (uint32_t q = 0; q < static_cast<uint32_t>(group_.world); ++q)
      if (q != rank) store_relaxed<Scope::system>(&group_.header(q)->told[rank], kGaveUp + blamed);
    return false;
  }

  const Group& group_;
  uint64_t signature_;
  ChannelState* state_;
  uint32_t event_, call_;
  bool first_ = true;
};

}  // namespace weft::comm::cuda
