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
  uintptr_t begin, end;  // begin is a multiple of 16
  std::vector<Record*> records;
  Initialised initialised;
};

struct Registry {
  std::mutex mutex;
  std::map<uintptr_t, std::unique_ptr<Region>> regions;  // by where they begin
  Region* last = nullptr;                                // the one looked up last

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

void* shared_of(Block& block, uint32_t offset, uint32_t bytes, Access access) {
  const auto place = [&] {
    return " offset " + std::to_string(offset) + " of block " +
           std::to_string(block.facts.cluster_rank) + " of its cluster";
  };
  if (offset % bytes) bad_access(access, bytes, "shared", place(), ": not aligned");
  if (offset + uint64_t{bytes} > block.shared_bytes)
    bad_access(access, bytes, "shared", place(), ", which has ", block.shared_bytes, " bytes");
  if (reads(access) && !block.initialised.get(offset, bytes))
    bad_access(access, bytes, "shared", place(), ", which has not been written");
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
  merged->begin = record_->begin / 16 * 16;
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
  merged->initialised.reset(merged->end - merged->begin);
  for (const auto& region : old)
    for (Record* record : region->records) {
      merged->records.push_back(record);
      Initialised::pieces(record->begin - region->begin, record->end - record->begin,
                          [&](size_t at, uint32_t n) {
                            for (uint32_t i = 0; i < n; ++i)
                              if (region->initialised.get(at + i, 1))
                                merged->initialised.set(at + i + region->begin - merged->begin, 1);
                          });
    }
  merged->records.push_back(record_.get());
  if (contents == Contents::initialised)
    Initialised::pieces(record_->begin - merged->begin, bytes,
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
  Initialised::pieces(record_->begin - region.begin, record_->end - record_->begin,
                      [&](size_t at, uint32_t n) { all &= region.initialised.get(at, n); });
  return all;
}

namespace {

void check_global(const void* p, uint32_t bytes, Access access) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  if (at % bytes) bad_access(access, bytes, "global address ", p, ": not aligned");
  Region* region = registry().find(at);
  if (!region) bad_access(access, bytes, "global address ", p, neighbour(at));
  check_rights(*region, at, bytes, access);
  const size_t offset = at - region->begin;
  if (reads(access) && !region->initialised.get(offset, bytes))
    bad_access(access, bytes, "global address ", p, ", which has not been written");
  if (writes(access)) {
    region->initialised.set(offset, bytes);
    engine().progress = true;
  }
}

}  // namespace

void* global_access(const void* p, uint32_t bytes, Access access) {
  WEFT_SIM_ENTER;
  check_global(p, bytes, access);
  return const_cast<void*>(p);
}

const void* constant_access(const void* p, uint32_t bytes) {
  WEFT_SIM_ENTER;
  check_global(p, bytes, Access::read);
  return p;
}

void* shared_access(uint32_t offset, uint32_t bytes, Access access) {
  WEFT_SIM_ENTER;
  return shared_of(block_of(self()), offset, bytes, access);
}

void* remote_access(uint32_t rank, uint32_t offset, uint32_t bytes, Access access) {
  WEFT_SIM_ENTER;
  Cluster& cluster = *block_of(self()).cluster;
  if (rank >= cluster.blocks.size())
    error("access to the shared memory of block " + std::to_string(rank) + " of a cluster of " +
          std::to_string(cluster.blocks.size()));
  Block& block = *cluster.blocks[rank];
  if (block.live == 0)
    error("access to the shared memory of block " + std::to_string(rank) +
          " of the cluster, which has ended");
  return shared_of(block, offset, bytes, access);
}

void view_error(uint64_t i, uint32_t n, uint32_t count, uint32_t element_bytes) {
  WEFT_SIM_ENTER;
  std::ostringstream text;
  text << "shared memory: elements " << i << " to " << i + n << " of a view of " << count
       << " elements of " << element_bytes << " bytes";
  error(text.str());
}

void synchronise(const void*, Access access, Order, Scope) {
  WEFT_SIM_ENTER;
  if (access == Access::strong_read) poll();
}

void memory_fence(Scope) { WEFT_SIM_ENTER; }

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
  if (bytes > 0) std::memset(block.shared, 0xFB, bytes);  // bits of NaN, and of -1028 or so
}

}  // namespace weft::gpu::sim
