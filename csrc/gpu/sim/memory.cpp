// Accesses to memory: is the address one's own, is it aligned, may it be written, has it been?
//
// Global memory is known by regions, maximal unions of allocations that overlap; each keeps a bit
// for each byte that has been written.
#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>

#include "gpu/shared.h"
#include "gpu/sim/state.h"

namespace weft::gpu::sim {

struct Allocation::Record {
  uintptr_t begin, end;
  bool writable;
};

namespace {

using Record = Allocation::Record;

struct Region {
  uintptr_t begin, end;
  uintptr_t base =
      0;  // of what is said below of bytes: begin, or up to 15 less, so that it is aligned
  std::vector<Record*> records;
  bool writable = false;  // one of them is
  Initialised initialised;
  Cells cells{Space::global};
  uint64_t launch = 0;                      // of which `cells` tell
  uint64_t written_by = 0, touched_by = 0;  // the latest launch that did
};

struct Registry {
  std::mutex mutex;
  std::map<uintptr_t, std::unique_ptr<Region>> regions;  // by where they begin
  Region* last = nullptr;                                // the one looked up last
  std::vector<const Multicast*> multicasts;

  Region* find(uintptr_t at) {
    if (last && last->begin <= at && at < last->end) return last;
    auto next = regions.upper_bound(at);
    if (next == regions.begin()) return nullptr;
    Region* region = std::prev(next)->second.get();
    return at < region->end ? last = region : nullptr;
  }
};

Registry& registry() {
  static Registry instance;
  return instance;
}

const char* verb(Access access) {
  switch (access) {
    case Access::read:
    case Access::strong_read:
      return "read";
    case Access::write:
    case Access::strong_write:
      return "write";
    default:
      return "atomic";
  }
}
bool reads(Access a) { return a != Access::write && a != Access::strong_write; }
bool writes(Access a) { return a != Access::read && a != Access::strong_read; }

template <class... Parts>
[[noreturn]] void bad_access(Access access, uint32_t bytes, const Parts&... parts) {
  std::ostringstream text;
  text << verb(access) << " of " << bytes << " bytes at ";
  ((text << parts), ...);
  error(text.str());
}

// Where the allocation nearest to `at` lies, in words.
std::string neighbour(uintptr_t at) {
  Registry& r = registry();
  std::ostringstream text;
  auto next = r.regions.upper_bound(at);
  if (next != r.regions.begin()) {
    const Region& region = *std::prev(next)->second;
    text << ", " << at - region.end << " bytes past the end of an allocation of "
         << region.end - region.begin;
  } else if (next != r.regions.end()) {
    text << ", " << next->first - at << " bytes before an allocation";
  }
  return text.str();
}

// No allocation of the region allows it: why?
[[noreturn]] void refuse(const Region& region, uintptr_t at, uint32_t bytes, Access access) {
  const void* p = reinterpret_cast<const void*>(at);
  for (const Record* record : region.records)
    if (record->begin <= at && at + bytes <= record->end)
      bad_access(access, bytes, "global address ", p, ", which is read-only");
  const Record* nearest = region.records.front();
  for (const Record* record : region.records)
    if (record->begin <= at && record->begin >= nearest->begin) nearest = record;
  bad_access(access, bytes, "global address ", p, ", byte ",
             static_cast<int64_t>(at - nearest->begin), " of an allocation of ",
             nearest->end - nearest->begin, " bytes");
}

void check_rights(const Region& region, uintptr_t at, uint32_t bytes, Access access) {
  for (const Record* record : region.records)
    if (record->begin <= at && at + bytes <= record->end && (record->writable || !writes(access)))
      return;
  refuse(region, at, bytes, access);
}

// "write by thread 3 of block (0, 0, 0), row_sum.h:23"
std::string earlier_access(const Stamp& stamp, const Actor& now) {
  constexpr uintptr_t kHigh = ~uintptr_t{0xFFFFFFFF};
  const uintptr_t where = (reinterpret_cast<uintptr_t>(now.where) & kHigh) | stamp.where;
  std::ostringstream text;
  text << (stamp.strong ? "strong " : "") << (stamp.write ? "write" : "read") << " by "
       << name_of_actor(stamp.cluster, stamp.actor) << ", "
       << source_line(reinterpret_cast<const void*>(where));
  return text.str();
}

// Two accesses that nothing orders.
[[noreturn]] void race(const Stamp& stamp, const Actor& now, Access access, uint32_t bytes,
                       Space space, const std::string& place) {
  std::ostringstream text;
  text << "race: " << verb(access) << " of " << bytes << " bytes at " << place << " by "
       << name_of_actor(now.cluster, now.id) << ", not ordered with a "
       << earlier_access(stamp, now);
  Actor thread = now;
  thread.async = false;
  thread.alias = stamp.alias;
  const char* fence = now.alias != stamp.alias ? "alias"
                      : space == Space::global ? "async_global"
                                               : "async";
  if (known(stamp, thread, space))
    text << ": there is no fence_" << fence << " between them";
  else if (access == Access::sum && stamp.sum)
    text << ": floats that are added in no order have no one sum";
  error(text.str());
}

void* shared_of(const Actor& actor, Block& block, uint32_t offset, uint32_t bytes, Access access) {
  const auto place = [&] {
    return " offset " + std::to_string(offset) + " of block " +
           std::to_string(block.facts.cluster_rank) + " of its cluster";
  };
  if (offset % bytes) bad_access(access, bytes, "shared", place(), ": not aligned");
  if (offset + uint64_t{bytes} > block.shared_bytes)
    bad_access(access, bytes, "shared", place(), ", which has ", block.shared_bytes, " bytes");
  if (reads(access) && !block.initialised.get(offset, bytes))
    bad_access(access, bytes, "shared", place(),
               ", which has not been written, or is being written by a copy");
  if (!block.mbarriers.empty() && block.mbarriers.count(offset / 8 * 8))
    bad_access(access, bytes, "shared", place(), ", which is in an mbarrier");
  if (engine().options.check_races) {
    Stamp earlier;
    if (!block.cells.note(offset, bytes, access, actor, earlier))
      race(earlier, actor, access, bytes, Space::shared, "shared" + place());
  }
  if (writes(access)) {
    block.initialised.set(offset, bytes);
    engine().progress = true;
  }
  return block.shared + offset;
}

}  // namespace

RegistryLock::RegistryLock() { registry().mutex.lock(); }
RegistryLock::~RegistryLock() { registry().mutex.unlock(); }

Allocation::Allocation(const void* data, size_t bytes, Rights rights, Contents contents)
    : record_(new Record{reinterpret_cast<uintptr_t>(data),
                         reinterpret_cast<uintptr_t>(data) + bytes, rights == Rights::read_write}) {
  if (bytes == 0) return;
  const RegistryLock lock;
  Registry& r = registry();
  auto merged = std::make_unique<Region>();
  merged->begin = record_->begin;
  merged->end = record_->end;

  // The regions that it touches become one.
  std::vector<std::unique_ptr<Region>> old;
  auto it = r.regions.upper_bound(record_->begin);
  if (it != r.regions.begin()) --it;
  while (it != r.regions.end() && it->first < record_->end) {
    if (it->second->end <= record_->begin) {
      ++it;
      continue;
    }
    merged->begin = std::min(merged->begin, it->second->begin);
    merged->end = std::max(merged->end, it->second->end);
    old.push_back(std::move(it->second));
    it = r.regions.erase(it);
  }
  merged->base = merged->begin / 16 * 16;
  merged->initialised.reset(merged->end - merged->base);
  for (const auto& region : old)
    for (Record* record : region->records) {
      merged->records.push_back(record);
      Initialised::pieces(
          record->begin - region->base, record->end - record->begin, [&](size_t at, uint32_t n) {
            merged->initialised.merge(at + region->base - merged->base, n, region->initialised, at);
          });
    }
  for (const auto& region : old) {
    merged->written_by = std::max(merged->written_by, region->written_by);
    merged->touched_by = std::max(merged->touched_by, region->touched_by);
  }
  merged->records.push_back(record_.get());
  for (const Record* record : merged->records) merged->writable |= record->writable;
  if (contents == Contents::initialised)
    Initialised::pieces(record_->begin - merged->base, bytes,
                        [&](size_t at, uint32_t n) { merged->initialised.set(at, n); });
  r.last = nullptr;
  const uintptr_t begin = merged->begin;
  r.regions[begin] = std::move(merged);
}

Allocation::Allocation(Allocation&&) noexcept = default;
Allocation& Allocation::operator=(Allocation&& other) noexcept {
  record_.swap(other.record_);
  return *this;
}

Allocation::~Allocation() {
  if (!record_ || record_->begin == record_->end) return;
  const RegistryLock lock;
  Registry& r = registry();
  r.last = nullptr;
  auto it = std::prev(r.regions.upper_bound(record_->begin));
  std::vector<Record*>& records = it->second->records;
  records.erase(std::find(records.begin(), records.end(), record_.get()));
  if (records.empty()) r.regions.erase(it);
}

bool Allocation::written() const {
  if (record_->begin == record_->end) return true;
  const RegistryLock lock;
  const Region& region = *registry().find(record_->begin);
  bool all = true;
  Initialised::pieces(record_->begin - region.base, record_->end - record_->begin,
                      [&](size_t at, uint32_t n) { all &= region.initialised.get(at, n); });
  return all;
}

namespace {

void check_global(const Actor& actor, const void* p, uint32_t bytes, Access access,
                  bool constant = false) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  if (at % bytes) bad_access(access, bytes, "global address ", p, ": not aligned");
  Region* region = registry().find(at);
  if (!region) bad_access(access, bytes, "global address ", p, neighbour(at));
  check_rights(*region, at, bytes, access);
  const size_t offset = at - region->base;
  if (reads(access) && !region->initialised.get(offset, bytes))
    bad_access(access, bytes, "global address ", p, ", which has not been written");
  Engine& e = engine();
  if (e.options.check_races && region->writable) {
    if (region->launch != e.launch) {
      region->cells.reset(region->end - region->base);
      region->launch = e.launch;
    }
    Stamp earlier;
    if (constant && region->cells.written(offset, bytes))
      bad_access(access, bytes, "global address ", p,
                 " as Cache::read_only, which this kernel has written");
    if (!region->cells.note(offset, bytes, access, actor, earlier)) {
      std::ostringstream place;
      place << "global address " << p;
      race(earlier, actor, access, bytes, Space::global, place.str());
    }
    if (e.dependent && !actor.clock->prerequisites &&
        (writes(access) ? region->touched_by : region->written_by) == e.launch - 1)
      bad_access(access, bytes, "global address ", p, ", which the kernel before this one ",
                 writes(access) ? "uses" : "writes", ", without wait_for_prerequisites");
  }
  region->touched_by = e.launch;
  if (writes(access)) {
    region->initialised.set(offset, bytes);
    region->written_by = e.launch;
    e.progress = true;
  }
}

}  // namespace

void* global_access(const void* p, uint32_t bytes, Access access) {
  WEFT_SIM_ENTER;
  check_global(self(), p, bytes, access);
  return const_cast<void*>(p);
}

void* global_access_by(const Actor& actor, const void* p, uint32_t bytes, Access access) {
  check_global(actor, p, bytes, access);
  return const_cast<void*>(p);
}

const void* constant_access(const void* p, uint32_t bytes) {
  WEFT_SIM_ENTER;
  check_global(self(), p, bytes, Access::read, true);
  return p;
}

void* shared_access(uint32_t offset, uint32_t bytes, Access access) {
  WEFT_SIM_ENTER;
  return shared_of(self(), block_of(self()), offset, bytes, access);
}

void* shared_access_of(uint32_t lane, uint32_t offset, uint32_t bytes, Access access) {
  Task& task = *self().warp->lanes[lane];
  return shared_of(task, block_of(task), offset, bytes, access);
}

void* shared_access_by(const Actor& actor, Block& block, uint32_t offset, uint32_t bytes,
                       Access access) {
  return shared_of(actor, block, offset, bytes, access);
}

void* remote_access(uint32_t rank, uint32_t offset, uint32_t bytes, Access access) {
  WEFT_SIM_ENTER;
  Block& block = block_of_rank(self(), rank);
  note_visitor(self(), block);
  return shared_of(self(), block, offset, bytes, access);
}

Block& block_of_rank(Task& task, uint32_t rank) {
  Block& own = block_of(task);
  if (rank == own.facts.cluster_rank) return own;
  Cluster& cluster = *own.cluster;
  if (rank >= cluster.blocks.size())
    error("access to the shared memory of block " + std::to_string(rank) + " of a cluster of " +
          std::to_string(cluster.blocks.size()));
  if (cluster.phase == 0)
    error("access to the shared memory of block " + std::to_string(rank) +
          " of the cluster, which may not have begun: a cluster barrier comes first");
  Block& block = *cluster.blocks[rank];
  if (block.live == 0)
    error("access to the shared memory of block " + std::to_string(rank) +
          " of the cluster, which has ended");
  return block;
}

void note_visitor(const Actor& actor, Block& block) {
  if (!engine().options.check_races) return;
  if (block.visitors.size() <= actor.id) block.visitors.resize(actor.id + 1);
  block.visitors[actor.id] = std::max(block.visitors[actor.id], actor.epoch);
}

Multicast::Multicast(const void* from, size_t size, std::vector<void*> copies)
    : address(static_cast<const std::byte*>(from)), bytes(size), replicas(std::move(copies)) {
  const RegistryLock lock;
  registry().multicasts.push_back(this);
}

Multicast::~Multicast() {
  const RegistryLock lock;
  auto& all = registry().multicasts;
  all.erase(std::find(all.begin(), all.end(), this));
}

namespace {

const Multicast& find_multicast(const void* p) {
  for (const Multicast* m : registry().multicasts)
    if (m->address <= p && p < m->address + m->bytes) return *m;
  error("multimem access to an address that is no multicast memory");
}

}  // namespace

uint32_t replicas(const void* p) {
  WEFT_SIM_ENTER;
  return static_cast<uint32_t>(find_multicast(p).replicas.size());
}

void* replica_access(const void* p, uint32_t replica, uint32_t bytes, Access access) {
  WEFT_SIM_ENTER;
  const Multicast& m = find_multicast(p);
  auto* at =
      static_cast<std::byte*>(m.replicas[replica]) + (static_cast<const std::byte*>(p) - m.address);
  Actor actor = self();
  actor.alias = true;
  check_global(actor, at, bytes, access);
  return at;
}

void view_error(uint64_t i, uint32_t n, uint32_t count, uint32_t element_bytes) {
  WEFT_SIM_ENTER;
  std::ostringstream text;
  text << "shared memory: elements " << i << " to " << i + n << " of a view of " << count
       << " elements of " << element_bytes << " bytes";
  error(text.str());
}

// What is published at an address is found by those who read it. A relaxed access publishes what
// was known at the last fence, and what it reads is known from the next fence on.
void synchronise(const void* p, Access access, Order order, Scope scope) {
  WEFT_SIM_ENTER;
  Engine& e = engine();
  talk();
  // Half of the looks come before what the others do meanwhile.
  if (access == Access::strong_read && (e.options.seed == 0 || e.draw() % 2)) poll();
  if (!e.options.check_races) return;
  Task& task = self();
  const auto at = reinterpret_cast<uintptr_t>(p);
  const bool acquires = order == Order::acquire || order == Order::acquire_release;
  const bool releases = order == Order::release || order == Order::acquire_release;
  const uint64_t block = task.cluster << 8 | task.block->cluster_rank;
  const auto found = e.published.find(at);
  const bool chained = found != e.published.end() && access != Access::strong_write;
  const Lane* device = block_of(task).cluster->lane;
  const auto covers = [&](Scope s) {
    return s == Scope::system ||
           (found->second.device == device && (s != Scope::block || found->second.block == block));
  };
  if (chained && covers(scope) && covers(found->second.scope)) {
    if (acquires)
      acquire(task, found->second.clock);
    else
      task.pending = task.pending ? merge(task.pending, found->second.clock) : found->second.clock;
  }
  if (!writes(access)) return;
  ClockRef mine = task.at_fence;
  if (releases) {
    Join join;
    join.add(task);
    mine = join.take();
  }
  if (chained && mine)
    found->second.clock = merge(found->second.clock, mine);
  else if (mine)
    e.published[at] = {mine, scope, block, device};
  else if (!chained && found != e.published.end())
    e.published.erase(found);
}

void fence_alias() {
  WEFT_SIM_ENTER;
  if (engine().options.check_races) fence_global(self(), kAliasProxy);
}

void memory_fence(Scope) {
  WEFT_SIM_ENTER;
  if (!engine().options.check_races) return;
  Task& task = self();
  acquire(task, task.pending);
  task.pending = {};
  Join join;
  join.add(task);
  task.at_fence = join.take();
}

uint32_t shared_window(uint32_t offset) {
  return offset + kSharedAlignment;  // the first kilobyte of the window is the system's
}

void prepare_shared(Block& block, uint32_t bytes) {
  if (block.capacity < bytes) {
    block.memory.reset(new std::byte[bytes + kSharedAlignment]);
    block.capacity = bytes;
    const auto at = reinterpret_cast<uintptr_t>(block.memory.get());
    block.shared = block.memory.get() +
                   ((at + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment - at);
  }
  block.shared_bytes = bytes;
  block.initialised.reset(bytes);
  block.cells.reset(bytes);
  if (bytes > 0) std::memset(block.shared, 0xFB, bytes);  // bits of NaN, and of -1028 or so
}

}  // namespace weft::gpu::sim
