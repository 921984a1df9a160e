// How ranks that share memory take turns. This file is the whole protocol, and tests/model/ring.pml
// is its model.
//
// Every rank owns a ring of kRing slots and a counter. Event e of a rank is: it writes slot
// e mod kRing of its ring, then raises its counter to e + 1 (release). Its peers read the slot
// once they have seen the counter (acquire). All ranks have the same events, in the same order.
//
//   rank r at event e        its counter   slot e mod kRing of r    what a peer p may do
//   ---------------------    -----------   ---------------------    -------------------------------
//   e not begun              <= e          e - kRing, whole         read event e - kRing
//   writing                  e             r's alone                wait, read its other slots
//   published                e + 1         e, whole                 read event e
//   r published e + kReads   e + 1 + …     e, whole                 read event e: r itself read it
//
// Rule of reading: who has published event e + kReads has read all that it will of the events up to
// e, of every rank. Rule of writing: event e is written once every counter is at least
// e - kRing + kReads + 1, for then all have read event e - kRing, which it overwrites. So no
// barrier closes a round, and a rank may run up to kRing - kReads events ahead of a peer.
//
// Counters are of 32 bits and wrap; as they never differ by more than kRing, their difference as a
// signed number tells who is ahead. A count that comes again (ABA) is 2^32 events away.
//
// A call's first event carries its signature, in one of two words by turns: call c + 2 writes the
// word of call c, and nobody comes there before every peer has begun call c + 1, for the first
// event of c + 1 is awaited by all. Ranks that call different things learn it there.
//
// Waiting: spin, yield, then sleep on the counter (futex), in slices after which deadline, the
// peer's life and everyone's state are looked at. A rank that gives up sets its state, with whom it
// blames, and all others find it within a slice. Nobody waits longer than its deadline.
#pragma once

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace weft::comm::cpu {

constexpr uint32_t kRing = 8;
constexpr uint32_t kReads = 3;       // as far as the algorithms in communicator.cpp go
constexpr uint32_t kFirst = -1000u;  // event: counters wrap early, and not after a week

enum class State : uint32_t { running, closed, failed };

// What a rank shows to its peers: a cache line that it alone writes, but for `sleepers`.
struct alignas(64) Flag {
  std::atomic<uint32_t> published{kFirst};  // its next event, modulo 2^32
  std::atomic<uint32_t> sleepers{0};        // peers that sleep until it publishes
  std::atomic<State> state{State::running};
  std::atomic<uint32_t> blamed{0};  // the rank for whose sake it failed
  std::atomic<uint64_t> signature[2] = {};
};
static_assert(sizeof(Flag) == 64 && std::atomic<uint64_t>::is_always_lock_free);

// Why a wait ended without what was waited for.
enum class Trouble { late, dead, closed, failed };
struct Broken {
  Trouble trouble;
  int rank;    // whose counter was waited for, or who has failed
  int blamed;  // of `failed`: whom that rank blames
};

struct Patience {
  int spins = 0, yields = 0;  // looks at a counter before the next, dearer way of waiting
  std::chrono::nanoseconds timeout{};
};

inline void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

constexpr long kSliceNanoseconds = 5'000'000;

// Sleeps while *word is `value`, a slice at most. Across processes: not FUTEX_PRIVATE.
inline void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
#if defined(__linux__)
  const timespec slice = {0, kSliceNanoseconds};
  syscall(SYS_futex, &word, FUTEX_WAIT, value, &slice, nullptr, 0);
#else
  const timespec slice = {0, 50'000};
  if (word.load() == value) nanosleep(&slice, nullptr);
#endif
}
inline void wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

// Whether rank r's process still runs.
class Peers {
 public:
  virtual bool alive(int r) const = 0;

 protected:
  ~Peers() = default;
};

// One rank's part in it. Not for two threads at once.
class Turns {
 public:
  // flags: of all ranks, in shared memory.
  Turns(Flag* flags, int rank, int world, Patience patience, const Peers& peers)
      : flags_(flags), peers_(peers), patience_(patience), rank_(rank), world_(world) {}

  // Begins a call: what it does, to be compared by the peers at its first event.
  void begin(uint64_t signature) {
    ++call_;
    deadline_ = {};
    flags_[rank_].signature[call_ % 2].store(signature, std::memory_order_relaxed);
  }
  uint64_t call() const { return call_; }

  // The event that this rank writes next; returns once its slot may be overwritten.
  uint32_t next() {
    const uint32_t needed = event_ - kRing + kReads + 1;
    if (behind(seen_, needed)) wait_until(needed);
    return event_;
  }

  // The slot of next() is written.
  void publish() {
    Flag& mine = flags_[rank_];
    // Sequentially consistent, as are the sleepers' steps: either they see the count, or we them.
    mine.published.store(++event_, std::memory_order_seq_cst);
    if (mine.sleepers.load(std::memory_order_seq_cst)) wake_all(mine.published);
  }

  // Work of the call's own lies behind, in which the peers were not waited for: the deadline starts
  // anew at the next long wait.
  void worked() { deadline_ = {}; }

  // Until every peer has published `event`. Throws Broken.
  void wait(uint32_t event) { wait_until(event + 1); }

  // The first peer whose call is another than this rank's, or -1. After wait(first event).
  int odd_one_out() const {
    const uint64_t mine = signature_of(rank_);
    for (int r = 0; r < world_; ++r) {
      if (signature_of(r) != mine) return r;
    }
    return -1;
  }
  uint64_t signature_of(int r) const {
    return flags_[r].signature[call_ % 2].load(std::memory_order_relaxed);
  }

  // Throws where a peer has given up. A rank that comes late finds the others' events, but not the
  // others, so each call looks once.
  void none_failed() const {
    if (const int r = who_failed(); r >= 0) throw given_up(r);
  }

  // No more events from this rank.
  void stop(State state, int blamed = 0) {
    Flag& mine = flags_[rank_];
    mine.blamed.store(static_cast<uint32_t>(blamed), std::memory_order_relaxed);
    mine.state.store(state, std::memory_order_release);
    wake_all(mine.published);
  }

 private:
  // The first peer that has given up, or -1.
  int who_failed() const {
    for (int r = 0; r < world_; ++r) {
      if (r != rank_ && flags_[r].state.load(std::memory_order_acquire) == State::failed) return r;
    }
    return -1;
  }
  Broken given_up(int r) const {
    return {Trouble::failed, r, static_cast<int>(flags_[r].blamed.load())};
  }

  static bool behind(uint32_t count, uint32_t target) {
    return static_cast<int32_t>(count - target) < 0;
  }
  bool reached(int r, uint32_t target) const {
    return !behind(flags_[r].published.load(std::memory_order_acquire), target);
  }

  // Begins with the next rank, so that not all look at the same one.
  void wait_until(uint32_t target) {
    for (int i = 1; i < world_; ++i) {
      const int r = rank_ + i < world_ ? rank_ + i : rank_ + i - world_;
      if (!reached(r, target)) wait_for(r, target);
    }
    if (behind(seen_, target)) seen_ = target;
  }

  void wait_for(int r, uint32_t target) {
    for (int i = 0; i < patience_.spins; ++i) {
      pause_cpu();
      if (reached(r, target)) return;
    }
    for (int i = 0; i < patience_.yields; ++i) {
      sched_yield();
      if (reached(r, target)) return;
    }
    using Clock = std::chrono::steady_clock;
    if (deadline_ == Clock::time_point{}) deadline_ = Clock::now() + patience_.timeout;
    Flag& theirs = flags_[r];
    for (;;) {
      theirs.sleepers.fetch_add(1, std::memory_order_seq_cst);
      const uint32_t count = theirs.published.load(std::memory_order_seq_cst);
      if (behind(count, target) && theirs.state.load() == State::running)
        sleep_while(theirs.published, count);
      theirs.sleepers.fetch_sub(1, std::memory_order_seq_cst);
      if (reached(r, target)) return;
      look_around(r, target);
      if (Clock::now() >= deadline_) throw Broken{Trouble::late, r, r};
    }
  }

  // Throws where rank r will not come any more, or somebody has given up: unless rank r had done
  // its part before.
  void look_around(int r, uint32_t target) const {
    const bool alive = peers_.alive(r);  // before its state, which it sets before it goes
    const int failed = who_failed();
    const bool closed = flags_[r].state.load(std::memory_order_acquire) == State::closed;
    if ((alive && failed < 0 && !closed) || reached(r, target)) return;
    if (failed >= 0) throw given_up(failed);
    throw Broken{closed ? Trouble::closed : Trouble::dead, r, r};
  }

  Flag* flags_;
  const Peers& peers_;
  Patience patience_;
  int rank_, world_;
  uint32_t event_ = kFirst;  // as this rank's counter
  uint32_t seen_ = kFirst;   // every peer's counter is at least this
  uint64_t call_ = 0;
  std::chrono::steady_clock::time_point deadline_{};  // from the first long wait on
};

}  // namespace weft::comm::cpu
