// Clocks and cells; see races.h.
#include "gpu/sim/races.h"

#include <algorithm>

namespace weft::gpu::sim {
namespace {

std::vector<Clock*>& spare_clocks() {
  static std::vector<Clock*> pool;
  return pool;
}

void raise(std::vector<uint32_t>& to, const std::vector<uint32_t>& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

void raise(std::vector<uint32_t>& to, uint32_t actor, uint32_t epoch) {
  if (to.size() <= actor) to.resize(actor + 1);
  to[actor] = std::max(to[actor], epoch);
}

ClockRef copy_of(const Clock& clock) {
  ClockRef copy = new_clock(clock.cluster);
  copy->seen = clock.seen;
  copy->read = clock.read;
  copy->fenced = clock.fenced;
  copy->foreign = clock.foreign;
  for (int p = 0; p < kProxies; ++p) copy->at_fence[p] = clock.at_fence[p];
  copy->prerequisites = clock.prerequisites;
  return copy;
}

ClockRef without_fences(const Clock& clock) {
  ClockRef copy = copy_of(clock);
  for (ClockRef& at_fence : copy->at_fence) at_fence = {};
  return copy;
}

void learn_foreign(Clock& to, uint64_t cluster, const ClockRef& clock);

// to := to joined with from, each in its own cluster's terms.
void join_into(Clock& to, const ClockRef& from) {
  to.prerequisites |= from->prerequisites;
  if (from->cluster == to.cluster) {
    raise(to.seen, from->seen);
    raise(to.read, from->read);
    raise(to.fenced, from->fenced);
  } else {
    learn_foreign(to, from->cluster, from);
  }
  for (const auto& [cluster, clock] : from->foreign) {
    if (cluster == to.cluster)
      raise(to.seen, clock->seen);
    else
      learn_foreign(to, cluster, clock);
  }
  for (int p = 0; p < kProxies; ++p) {
    const ClockRef& theirs = from->at_fence[p];
    ClockRef& own = to.at_fence[p];
    if (!theirs || theirs.get() == own.get()) continue;
    if (!own)
      own = new_clock(to.cluster);
    else if (own->references > 1)
      own = copy_of(*own);
    join_into(*own, theirs);
  }
}

void learn_foreign(Clock& to, uint64_t cluster, const ClockRef& clock) {
  for (auto& [known, at] : to.foreign) {
    if (known != cluster) continue;
    if (at.get() == clock.get()) return;
    ClockRef sum = copy_of(*at);
    raise(sum->seen, clock->seen);
    at = std::move(sum);
    return;
  }
  ClockRef theirs = new_clock(cluster);
  theirs->seen = clock->seen;
  to.foreign.emplace_back(cluster, std::move(theirs));
}

using Others = std::vector<Stamp>;

// Vectors for cells with many readers; a cell holds an index, 0 is none.
struct Pool {
  std::vector<Others> sets{1};
  std::vector<uint32_t> spare;

  uint32_t take() {
    if (spare.empty()) {
      sets.emplace_back();
      return static_cast<uint32_t>(sets.size() - 1);
    }
    const uint32_t i = spare.back();
    spare.pop_back();
    return i;
  }
  void give(uint32_t i) {
    sets[i].clear();
    spare.push_back(i);
  }
};
Pool& pool() {
  static Pool instance;
  return instance;
}

struct Quad {
  Cell bytes[4];
};
struct QuadPool {
  std::vector<std::unique_ptr<Quad>> quads{1};
  std::vector<uint32_t> spare;
};
QuadPool& quads() {
  static QuadPool instance;
  return instance;
}

void forget(Cell& cell) {
  if (cell.others) pool().give(cell.others);
  if (cell.bytes) {
    for (Cell& byte : quads().quads[cell.bytes]->bytes) forget(byte);
    quads().spare.push_back(cell.bytes);
  }
  cell = {};
}

// A counter may be the target of any number of atomics; so many are remembered.
constexpr size_t kMostStrong = 64;

// Another access that a later write has to be ordered with.
void remember(Cell& cell, const Stamp& stamp, const Actor& actor, Space space) {
  const auto covered = [&](const Stamp& old) {  // whoever is ordered after the new one is after it
    return old.strong >= stamp.strong && old.write <= stamp.write && old.sum <= stamp.sum &&
           old.async == stamp.async && old.alias == stamp.alias && known(old, actor, space);
  };
  if (!cell.others) {
    if (!cell.read.epoch || covered(cell.read)) {
      cell.read = stamp;
      return;
    }
    cell.others = pool().take();
    pool().sets[cell.others] = {cell.read};
    cell.read = {};
  }
  Others& set = pool().sets[cell.others];
  if (set.back().actor == stamp.actor || set.size() >= 8)
    set.erase(std::remove_if(set.begin(), set.end(), covered), set.end());
  if (stamp.strong && set.size() >= kMostStrong) set.erase(set.begin());
  set.push_back(stamp);
}

bool conflict(const Stamp& earlier, const Stamp& now, const Actor& actor, Space space) {
  const bool by_intent = earlier.strong && now.strong && !(earlier.sum && now.sum);
  return earlier.epoch && (earlier.write || now.write) && !by_intent &&
         !known(earlier, actor, space);
}

bool note_cell(Cell& cell, const Stamp& now, const Actor& actor, Space space, Stamp& earlier) {
  if (conflict(cell.write, now, actor, space)) return earlier = cell.write, false;
  if (!now.write) {
    if (cell.others)
      for (const Stamp& other : pool().sets[cell.others])
        if (conflict(other, now, actor, space)) return earlier = other, false;
    if (cell.read.actor != now.actor || cell.read.epoch != now.epoch ||
        cell.read.cluster != now.cluster || cell.read.strong != now.strong ||
        cell.read.alias != now.alias)
      remember(cell, now, actor, space);
    return true;
  }
  if (conflict(cell.read, now, actor, space)) return earlier = cell.read, false;
  if (cell.others)
    for (const Stamp& other : pool().sets[cell.others])
      if (conflict(other, now, actor, space)) return earlier = other, false;
  if (now.strong) {  // strong accesses that are not ordered with it stay
    const Stamp before = cell.write;
    if (before.epoch && before.strong && (before.sum > now.sum || !known(before, actor, space)))
      remember(cell, before, actor, space);
  } else {
    if (cell.others) pool().give(cell.others);
    cell.others = 0;
    cell.read = {};
  }
  cell.write = now;
  return true;
}

}  // namespace

// ---- clocks

ClockRef::ClockRef(Clock* clock) : clock_(clock) {
  if (clock_) ++clock_->references;
}
ClockRef::ClockRef(const ClockRef& other) : ClockRef(other.clock_) {}
ClockRef::~ClockRef() {
  if (clock_ && --clock_->references == 0) {
    clock_->foreign.clear();
    for (ClockRef& at_fence : clock_->at_fence) at_fence = {};
    spare_clocks().push_back(clock_);
  }
}

ClockRef new_clock(uint64_t cluster) {
  auto& spare = spare_clocks();
  Clock* clock;
  if (spare.empty()) {
    clock = new Clock;
  } else {
    clock = spare.back();
    spare.pop_back();
    clock->seen.clear();
    clock->read.clear();
    clock->fenced.clear();
    clock->prerequisites = false;
  }
  clock->cluster = cluster;
  return ClockRef(clock);
}

Clock& Join::mutable_sum(uint64_t cluster) {
  if (!sum_)
    sum_ = new_clock(cluster);
  else if (sum_->references > 1)
    sum_ = copy_of(*sum_);
  return *sum_;
}

void Join::add(Actor& actor) {
  Clock& sum = mutable_sum(actor.cluster);
  if (last_.get() != actor.clock.get()) {
    join_into(sum, actor.clock);
    last_ = actor.clock;
  }
  if (sum.cluster == actor.cluster) {
    for (const Own& own : actor.own) {
      if (own.actor == kNoActor) continue;
      if (own.known) raise(sum.seen, own.actor, own.known);
      if (own.fenced) raise(sum.fenced, own.actor, own.fenced);
    }
  } else {
    ClockRef mine = copy_of(*actor.clock);
    for (const Own& own : actor.own)
      if (own.actor != kNoActor) raise(mine->seen, own.actor, own.known);
    learn_foreign(sum, actor.cluster, mine);
  }
  actor.advance();
}

void Join::add_reads(Actor& actor) {
  Clock& sum = mutable_sum(actor.cluster);
  raise(sum.read, actor.clock->seen);
  raise(sum.read, actor.clock->read);
  for (const Own& own : actor.own)
    if (own.actor != kNoActor && own.known) raise(sum.read, own.actor, own.known);
  actor.advance();
}

void Join::add(uint64_t cluster, const Own& own) {
  raise(mutable_sum(cluster).seen, own.actor, own.known);
}

ClockRef Join::take() {
  last_ = {};
  return std::move(sum_);
}

ClockRef merge(const ClockRef& a, const ClockRef& b) {
  if (!b || a.get() == b.get()) return a;
  // A whole warp acquires the same clock, each lane from the same one.
  static ClockRef last_a, last_b, last_sum;
  if (last_a.get() == a.get() && last_b.get() == b.get()) return last_sum;
  ClockRef sum = copy_of(*a);
  join_into(*sum, b);
  last_a = a, last_b = b, last_sum = sum;
  return sum;
}

void acquire(Actor& actor, const ClockRef& published) {
  actor.clock = merge(actor.clock, published);
}

void fence_for_async(Actor& actor) {
  static ClockRef last, last_fenced;
  if (last.get() != actor.clock.get()) {
    ClockRef fenced = copy_of(*actor.clock);
    fenced->fenced = fenced->seen;
    last = actor.clock;
    last_fenced = std::move(fenced);
  }
  actor.clock = last_fenced;
  for (Own& own : actor.own) own.fenced = own.known;
  actor.advance();
}

ClockRef fenced_global(const ClockRef& clock) {
  ClockRef fenced = copy_of(*clock);
  const ClockRef now = without_fences(*clock);
  for (ClockRef& at_fence : fenced->at_fence) at_fence = now;
  return fenced;
}

void fence_global(Actor& actor, Proxy proxy) {
  const ClockRef now = without_fences(*actor.clock);
  for (const Own& own : actor.own)
    if (own.actor != kNoActor) raise(now->seen, own.actor, own.known);
  actor.clock = copy_of(*actor.clock);
  actor.clock->at_fence[proxy] = now;
  actor.advance();
}

bool seen(const Actor& actor, uint32_t other, uint32_t epoch) {
  uint32_t until = std::max(actor.clock->seen_of(other), actor.clock->read_of(other));
  for (const Own& own : actor.own)
    if (own.actor == other) until = std::max(until, own.known);
  return epoch <= until;
}

// ---- cells

bool known(const Stamp& stamp, const Actor& actor, Space space) {
  const bool own_cluster = stamp.cluster == (actor.cluster & 0xFFFFFFFF);
  // Through a fence alone the asynchronous proxy sees what threads have written, and what the copies
  // of other blocks have.
  const bool needs_fence = actor.async && stamp.write && !(stamp.async && own_cluster),
             aliased = actor.alias != stamp.alias,
             fenced = aliased || (needs_fence && space == Space::global);
  const Clock* clock =
      fenced ? actor.clock->at_fence[aliased ? kAliasProxy : kAsyncProxy].get() : actor.clock.get();
  if (!clock) return false;
  if (!own_cluster) {
    for (const auto& [cluster, theirs] : clock->foreign)
      if ((cluster & 0xFFFFFFFF) == stamp.cluster)
        return stamp.epoch <= theirs->seen_of(stamp.actor);
    return false;
  }
  if (fenced) return stamp.epoch <= clock->seen_of(stamp.actor);
  if (stamp.actor == actor.id && stamp.epoch == actor.epoch) return true;
  uint32_t until = needs_fence ? clock->fenced_of(stamp.actor) : clock->seen_of(stamp.actor);
  if (!stamp.write) until = std::max(until, clock->read_of(stamp.actor));
  for (const Own& own : actor.own)
    if (own.actor == stamp.actor) until = std::max(until, needs_fence ? own.fenced : own.known);
  return stamp.epoch <= until;
}

void Cells::clear() {
  for (auto& page : pages_)
    if (page)
      for (Cell& cell : page->cells) forget(cell);
  pages_.clear();
}

void Cells::reset(size_t bytes) {
  ++generation_;
  const size_t pages = (bytes / 4 + kPageWords) / kPageWords;
  if (pages_.size() < pages) pages_.resize(pages);
}

Cell& Cells::cell(size_t word) {
  std::unique_ptr<Page>& page = pages_[word / kPageWords];
  if (!page) {
    page = std::make_unique<Page>();
    page->generation = generation_;
  } else if (page->generation != generation_) {
    for (Cell& cell : page->cells)
      if (cell.write.epoch || cell.read.epoch || cell.others || cell.bytes) forget(cell);
    page->generation = generation_;
  }
  return page->cells[word % kPageWords];
}

bool Cells::note(size_t at, uint32_t bytes, Access access, const Actor& actor, Stamp& earlier) {
  Stamp now;
  now.epoch = actor.epoch;
  now.where = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(actor.where));
  now.cluster = actor.cluster & 0xFFFFFFFF;
  now.actor = actor.id;
  now.write = access != Access::read && access != Access::strong_read;
  now.strong = access != Access::read && access != Access::write;
  now.sum = access == Access::sum;
  now.async = actor.async;
  now.alias = actor.alias;
  while (bytes > 0) {
    Cell& whole = cell(at / 4);
    const uint32_t first = at % 4, n = std::min(bytes, 4 - first);
    if (n < 4 && !whole.bytes) {  // from now on, byte by byte
      QuadPool& q = quads();
      uint32_t index;
      if (q.spare.empty()) {
        index = static_cast<uint32_t>(q.quads.size());
        q.quads.push_back(std::make_unique<Quad>());
      } else {
        index = q.spare.back();
        q.spare.pop_back();
      }
      for (Cell& byte : q.quads[index]->bytes) {
        byte = whole;
        if (!whole.others) continue;
        byte.others = pool().take();
        pool().sets[byte.others] = pool().sets[whole.others];
      }
      if (whole.others) pool().give(whole.others);
      whole = {};
      whole.bytes = index;
    }
    if (whole.bytes) {
      for (uint32_t i = first; i < first + n; ++i)
        if (!note_cell(quads().quads[whole.bytes]->bytes[i], now, actor, space_, earlier))
          return false;
    } else if (!note_cell(whole, now, actor, space_, earlier)) {
      return false;
    }
    at += n, bytes -= n;
  }
  return true;
}

bool Cells::written(size_t at, uint32_t bytes) {
  for (size_t i = at; i < at + bytes; i += 4 - i % 4) {
    const Cell& c = cell(i / 4);
    if (c.write.epoch) return true;
    if (!c.bytes) continue;
    for (size_t b = i; b < at + bytes && b / 4 == i / 4; ++b)
      if (quads().quads[c.bytes]->bytes[b % 4].write.epoch) return true;
  }
  return false;
}

}  // namespace weft::gpu::sim
