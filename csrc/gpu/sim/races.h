// Who knows of whom: the order that synchronisation gives to memory accesses, and the accesses that
// it leaves without.
//
// The method is FastTrack's (Flanagan, Freund: PLDI 2009). An actor is a thread, or an engine that
// works for one: asynchronous copies are actors of their own, since the order of the program does
// not hold for them. An actor counts epochs; a clock says up to which epoch each other actor is
// known to have come. Releasing publishes one's clock and begins a new epoch, acquiring joins what
// was published. A memory word remembers its last write and the reads since; an access is ordered
// when all that it conflicts with is known to its actor.
//
// Most clocks of a block are equal, so they are shared and never changed: an actor's own epoch is
// kept beside its clock.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "gpu/sim/engine.h"

namespace weft::gpu::sim {

struct Clock;

// Other ways to global memory than a thread's own, which see what a thread knows past a fence alone:
// asynchronous copies, and memory by another of its addresses.
enum Proxy : uint8_t { kAsyncProxy, kAliasProxy, kProxies };

// A counted reference, for one thread of the host.
class ClockRef {
 public:
  ClockRef() = default;
  explicit ClockRef(Clock* clock);
  ClockRef(const ClockRef& other);
  ClockRef(ClockRef&& other) noexcept : clock_(std::exchange(other.clock_, nullptr)) {}
  ClockRef& operator=(ClockRef other) noexcept {
    std::swap(clock_, other.clock_);
    return *this;
  }
  ~ClockRef();

  Clock* operator->() const { return clock_; }
  Clock& operator*() const { return *clock_; }
  Clock* get() const { return clock_; }
  explicit operator bool() const { return clock_ != nullptr; }

 private:
  Clock* clock_ = nullptr;
};

struct Clock {
  uint32_t references = 0;
  uint64_t cluster = 0;          // whose actors `seen` counts
  std::vector<uint32_t> seen;    // epochs, by actor; those missing are 0
  std::vector<uint32_t> read;    // of which the reads are known, if not all
  std::vector<uint32_t> fenced;  // of which the writes can be seen by asynchronous copies, too
  std::vector<std::pair<uint64_t, ClockRef>> foreign;  // of other clusters
  ClockRef at_fence[kProxies];  // what each may know of global memory: the clock at its last fence
  bool prerequisites = false;   // wait_for_prerequisites has been passed

  uint32_t read_of(uint32_t actor) const { return actor < read.size() ? read[actor] : 0; }
  uint32_t seen_of(uint32_t actor) const { return actor < seen.size() ? seen[actor] : 0; }
  uint32_t fenced_of(uint32_t actor) const { return actor < fenced.size() ? fenced[actor] : 0; }
};

ClockRef new_clock(uint64_t cluster);

constexpr uint32_t kNoActor = 0xFFFFFF;

// An actor of which somebody keeps the epoch beside his clock: himself, and his copy engines.
struct Own {
  uint32_t actor = kNoActor;
  uint32_t known = 0;
  uint32_t fenced = 0;
};
enum OwnIndex { kSelf, kCopies, kBulkReads, kBulkWrites, kGroup, kOwns };

// Who makes an access.
struct Actor {
  uint64_t cluster = 0;
  uint32_t id = 0, epoch = 1;
  bool async = false;  // through the asynchronous proxy: sees only what was fenced for it
  bool alias = false;  // by a multicast address
  const void* where = nullptr;
  ClockRef clock;
  Own own[kOwns];

  void advance() {
    if (!async) own[kSelf].known = ++epoch;
  }
};

// Clocks that come together at a barrier.
class Join {
 public:
  void add(Actor& actor);        // publishes all that the actor knows; its next epoch begins
  void add_reads(Actor& actor);  // the same, but of its reads alone
  void add(uint64_t cluster, const Own& own);  // of one engine alone
  ClockRef take();                             // the sum, and begins anew

 private:
  Clock& mutable_sum(uint64_t cluster);
  ClockRef sum_, last_;
};

void acquire(Actor& actor, const ClockRef& published);
ClockRef merge(const ClockRef& a, const ClockRef& b);  // from a's point of view
void fence_for_async(Actor& actor);
void fence_global(Actor& actor, Proxy proxy);
ClockRef fenced_global(const ClockRef& clock);                  // all that it knows, by every proxy
bool seen(const Actor& actor, uint32_t other, uint32_t epoch);  // of the same cluster

// One access, as a word of memory remembers it.
struct Stamp {
  uint32_t epoch = 0;  // 0: none
  uint32_t where = 0;  // the lower half of the address in the kernel's code
  uint64_t cluster : 32 = 0, actor : 24 = 0, write : 1 = 0, strong : 1 = 0, sum : 1 = 0,
                     async : 1 = 0, alias : 1 = 0;
};

// What a word, or a byte of one, remembers.
struct Cell {
  Stamp write;
  Stamp read;           // the only other access that matters, unless there are
  uint32_t others = 0;  // more of them: an index into a pool
  uint32_t bytes = 0;   // another: a cell for each byte instead of this one
};

enum class Space : bool { shared, global };

// Is the access known to have happened?
bool known(const Stamp& stamp, const Actor& actor, Space space);

// The memory of a stretch of memory.
class Cells {
 public:
  explicit Cells(Space space) : space_(space) {}
  ~Cells() { clear(); }
  // Forgets everything; for `bytes` bytes.
  void reset(size_t bytes);
  // Notes an access within 16 bytes. Gives back an earlier one that it is not ordered with.
  bool note(size_t at, uint32_t bytes, Access access, const Actor& actor, Stamp& earlier);
  // Was it written since the reset?
  bool written(size_t at, uint32_t bytes);

 private:
  static constexpr size_t kPageWords = 256;
  struct Page {
    uint32_t generation;
    Cell cells[kPageWords];
  };

  void clear();
  Cell& cell(size_t word);

  const Space space_;
  std::vector<std::unique_ptr<Page>> pages_;
  uint32_t generation_ = 0;
};

}  // namespace weft::gpu::sim
