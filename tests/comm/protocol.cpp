// The protocol between threads of one process, for ThreadSanitizer: every rank is a thread, slots
// are plain memory, and what the counters order the sanitizer sees as ordered or not. Each event
// carries other numbers, so that a slot read too early or overwritten too soon shows as a wrong sum,
// too.
//
//   protocol <world> <calls> [mutant]
//   protocol slow    a call that works for longer than it waits
//
// Calls go by turns as communicator.cpp and as products.cpp have them: one piece ahead, and two.
//
// mutant: a fault put in on purpose, which must be found: `early` reads before waiting, `late` reads
// an event again when it may have been overwritten.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/cpu/protocol.h"

using namespace weft::comm::cpu;

namespace {

struct Everyone final : Peers {
  bool alive(int) const override { return true; }
};

constexpr int kWords = 8;
struct Slot {
  uint64_t words[kWords];
};

struct Shared {
  explicit Shared(int world) : flags(new Flag[world]), slots(world * kRing) {}
  std::unique_ptr<Flag[]> flags;
  std::vector<Slot> slots;
  Slot& slot(int r, uint32_t event) { return slots[r * kRing + event % kRing]; }
};

uint64_t number(int r, uint64_t call, int k) {
  return call * 1000 + static_cast<uint64_t>(r * 10 + k);
}

void work(Shared& shared, int rank, int world, uint64_t calls, const std::string& mutant,
          std::atomic<long>& wrong) {
  const Everyone everyone;
  Turns turns(shared.flags.get(), rank, world, Patience{50, 20, std::chrono::seconds(60)},
              everyone);
  const auto sum_is_right = [&](uint64_t call, int k, uint32_t event) {
    uint64_t sum = 0, want = 0;
    for (int r = 0; r < world; ++r) {
      for (const uint64_t word : shared.slot(r, event).words) sum += word;
      want += number(r, call, k) * kWords;
    }
    return sum == want;
  };
  volatile bool again = false;  // so that what computes it is not left out
  for (uint64_t call = 0; call < calls; ++call) {
    const int pieces = 1 + static_cast<int>(call % 5);
    turns.begin(call);
    const auto put = [&](int k) {
      const uint32_t event = turns.next();
      for (uint64_t& word : shared.slot(rank, event).words) word = number(rank, call, k);
      turns.publish();
      return event;
    };
    const int ahead = 1 + static_cast<int>(call / 5 % 2);
    uint32_t events[3];
    for (int k = 0; k < pieces + ahead; ++k) {
      if (k < pieces) events[k % 3] = put(k);
      const int due = k - ahead;
      if (due < 0) continue;
      const uint32_t now = events[due % 3];
      if (due == 0 || mutant != "early") turns.wait(now);
      if (due == 0 && turns.odd_one_out() >= 0) ++wrong;
      if (!sum_is_right(call, due, now)) ++wrong;
      if (mutant == "late" && due > 0) again = sum_is_right(call, due, now - 2 * kReads);
    }
    if (call % 97 == static_cast<uint64_t>(rank))
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  (void)again;
}

// Rank 0 waits, works for longer than its patience, and waits again: for a peer that is late by a
// moment only, and not to blame for the work.
int work_longer_than_the_deadline() {
  using namespace std::chrono_literals;
  const Everyone everyone;
  Shared shared(2);
  const auto turns = [&](int rank) {
    return Turns(shared.flags.get(), rank, 2, Patience{1, 1, 1s}, everyone);
  };
  std::thread peer([&] {
    Turns late = turns(1);
    late.begin(0);
    for (int k = 0; k < 2; ++k) {
      while (shared.flags[1].sleepers == 0) std::this_thread::yield();
      std::this_thread::sleep_for(20ms);  // some slices
      late.next();
      late.publish();
      while (shared.flags[1].sleepers != 0) std::this_thread::yield();
    }
  });
  Turns mine = turns(0);
  mine.begin(0);
  int late = 0;
  for (int k = 0; k < 2; ++k) {
    const uint32_t event = mine.next();
    mine.publish();
    try {
      mine.wait(event);
    } catch (const Broken&) {
      ++late;
    }
    if (k == 0) std::this_thread::sleep_for(1100ms);
    mine.worked();
  }
  peer.join();
  return late;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "slow") return work_longer_than_the_deadline();
  const int world = argc > 1 ? std::atoi(argv[1]) : 2;
  const uint64_t calls = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1000;
  const std::string mutant = argc > 3 ? argv[3] : "";
  Shared shared(world);
  std::atomic<long> wrong{0};
  std::vector<std::thread> threads;
  for (int r = 0; r < world; ++r)
    threads.emplace_back([&, r] { work(shared, r, world, calls, mutant, wrong); });
  for (std::thread& thread : threads) thread.join();
  std::printf("%ld wrong\n", wrong.load());
  return wrong == 0 ? 0 : 1;
}
