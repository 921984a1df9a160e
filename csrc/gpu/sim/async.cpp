// Copies that go on by themselves, and the mbarriers that count them.
//
// A copy is two pieces of knowledge: what its data are, which depends on when it is made, early or
// late; and when others may rely on it, which depends on barriers and waits alone. While a late
// copy is under way its destination is poisoned.
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "gpu/sim/state.h"

namespace weft::gpu::sim {
namespace {

constexpr int64_t kMostBytes = (1 << 20) - 1;  // that an mbarrier can count
constexpr uint32_t kMostArrivals = (1 << 20) - 1;

MBarrierState& find_mbarrier(Block& block, uint32_t barrier, const char* name) {
  const auto found = block.mbarriers.find(barrier);
  if (found == block.mbarriers.end())
    error(std::string(name) + ": no mbarrier has been initialised at shared offset " +
          std::to_string(barrier));
  return found->second;
}

// An mbarrier is memory, too: who uses it knows that it has been initialised.
void note_mbarrier(Block& block, uint32_t barrier, Access access) {
  if (!engine().options.check_races) return;
  Stamp earlier;
  if (!block.cells.note(barrier, sizeof(MBarrier), access, self(), earlier))
    error("race: use of the mbarrier at shared offset " + std::to_string(barrier) +
          ", not ordered with that of " + name_of_actor(earlier.cluster, earlier.actor));
}

// Ends the phase when nothing is due.
void settle(MBarrierState& m) {
  if (m.pending > 0 || m.bytes != 0) return;
  ++m.phase;
  m.pending = m.arrivals;
  m.completed = m.join.take();
  m.cluster_completed = m.cluster_join.take();
  for (Task* task : m.waiting) wake(*task);
  m.waiting.clear();
}

void count_bytes(Block& block, uint32_t barrier, uint32_t bytes, const Actor& actor) {
  MBarrierState& m = find_mbarrier(block, barrier, "copy");
  m.bytes -= bytes;
  if (m.bytes < -kMostBytes) error("an mbarrier counts too many bytes");
  if (engine().options.check_races) m.join.add(actor.cluster, {actor.id, actor.epoch, 0});
  settle(m);
}

// A copy needs to see its barrier.
void expect_fenced(Block& block, uint32_t barrier, const char* name) {
  if (!find_mbarrier(block, barrier, name).fenced)
    error(std::string(name) + ": its mbarrier was initialised without fence_mbarrier_init");
}

void expect_aligned(const char* name, uint32_t offset, const void* p, uint32_t bytes) {
  if (offset % 16 || reinterpret_cast<uintptr_t>(p) % 16 || bytes % 16 || bytes == 0)
    error(std::string(name) + " of " + std::to_string(bytes) + " bytes, shared offset " +
          std::to_string(offset) + ", global address " +
          std::to_string(reinterpret_cast<uintptr_t>(p)) + ": expected multiples of 16");
}

}  // namespace

// ---- queues and engines

void Queue::add(Work work) {
  last_ = open_;
  if (engine().options.late_completion)
    work_.emplace_back(open_, std::move(work));
  else
    work();
}

void Queue::wait(uint32_t pending) {
  const uint32_t closed = open_ - 1;
  const uint32_t due = closed > pending ? closed - pending : 0;
  if (due > done_) done_ = due;
  size_t n = 0;
  while (n < work_.size() && work_[n].first <= done_) work_[n++].second();
  work_.erase(work_.begin(), work_.begin() + static_cast<std::ptrdiff_t>(n));
}

Actor engine_actor(Task& task, OwnIndex index, const char* name, uint32_t epoch, bool async) {
  Own& own = task.own[index];
  if (own.actor == kNoActor) {
    Cluster& cluster = *block_of(task).cluster;
    own = {cluster.threads + static_cast<uint32_t>(cluster.engines.size()), 0, 0};
    cluster.engines.push_back({name, &task});
  }
  Actor actor = task;
  actor.id = own.actor;
  actor.epoch = epoch;
  actor.async = async;
  task.advance();  // what the thread does from here on is not before the copy
  return actor;
}

Actor slot_actor(Task& task, const char* name) {
  Cluster& cluster = *block_of(task).cluster;
  if (cluster.slots == 0) {
    cluster.slots = cluster.threads + static_cast<uint32_t>(cluster.engines.size());
    cluster.engines.resize(cluster.engines.size() + Cluster::kSlots);
  }
  const uint32_t slot = cluster.next_slot++ % Cluster::kSlots;
  Actor actor = task;
  actor.id = cluster.slots + slot;
  actor.epoch = ++cluster.slot_epochs[slot];
  actor.async = true;
  cluster.engines[actor.id - cluster.threads] = {name, &task};
  task.advance();
  return actor;
}

Acting::Acting(const Actor& actor, const Task& of) {
  engine().acting = &actor;
  engine().acting_for = &of;
}
Acting::~Acting() { engine().acting = nullptr; }

// ---- warpgroups

namespace {

GroupRendezvous& group_of(Task& task) { return block_of(task).groups[task.index / kWarpgroup]; }
Task& group_thread(Task& task, uint32_t i) {
  return *block_of(task).tasks[task.index / kWarpgroup * kWarpgroup + i];
}

}  // namespace

struct GroupEngine::State {
  Actor warps[4];
  Task* task;
};

GroupEngine group_engine(const char* name) {
  Task& task = self();
  GroupRendezvous& group = group_of(task);
  Cluster& cluster = *block_of(task).cluster;
  if (group.engine == kNoActor) {
    group.engine = cluster.threads + static_cast<uint32_t>(cluster.engines.size());
    cluster.engines.push_back({name, &group_thread(task, 0)});
  }
  const auto state = std::make_shared<GroupEngine::State>();
  state->task = &task;
  for (uint32_t w = 0; w < 4; ++w) {
    Actor& actor = state->warps[w];
    actor = group_thread(task, w * kWarp);
    actor.id = group.engine;
    actor.epoch = group.queue.open();
    actor.async = true;
    actor.where = task.where;
  }
  for (uint32_t i = 0; i < kWarpgroup; ++i) group_thread(task, i).advance();
  GroupEngine engine;
  engine.state_ = state;
  return engine;
}

const void* GroupEngine::shared(uint32_t warp, uint32_t offset, uint32_t bytes,
                                Access access) const {
  const Actor& actor = state_->warps[warp];
  const Acting acting(actor, *state_->task);
  return shared_access_by(actor, block_of(*state_->task), offset, bytes, access);
}

void group_add(std::function<void()> work) { group_of(self()).queue.add(std::move(work)); }

void group_commit() {
  WEFT_SIM_ENTER;
  group_meet("group_commit", nullptr, [](void* const*) { group_of(self()).queue.commit(); });
}

void finish_groups(uint32_t pending) {
  Task& task = self();
  GroupRendezvous& group = group_of(task);
  group.queue.wait(pending);
  for (uint32_t i = 0; i < kWarpgroup; ++i)
    group_thread(task, i).own[kGroup] = {group.engine, group.queue.done(), 0};
}

void group_wait(uint32_t pending) {
  WEFT_SIM_ENTER;
  group_meet("group_wait", &pending, [](void* const* threads) {
    finish_groups(*static_cast<const uint32_t*>(threads[0]));
  });
}

// ---- mbarriers

void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  WEFT_SIM_ENTER;
  Block& block = block_of(self());
  if (barrier % sizeof(MBarrier) || barrier + sizeof(MBarrier) > block.shared_bytes)
    error("mbarrier_init at shared offset " + std::to_string(barrier) + " of " +
          std::to_string(block.shared_bytes) + " bytes");
  if (arrivals == 0 || arrivals > kMostArrivals)
    error("mbarrier_init for " + std::to_string(arrivals) + " arrivals");
  if (block.mbarriers.count(barrier))
    error("mbarrier_init of an mbarrier that is in use: mbarrier_invalidate comes first");
  note_mbarrier(block, barrier, Access::write);
  block.initialised.clear(barrier, sizeof(MBarrier));
  MBarrierState& m = block.mbarriers[barrier];
  m.arrivals = m.pending = arrivals;
  m.initialiser = self().id;
}

void mbarrier_invalidate(uint32_t barrier) {
  WEFT_SIM_ENTER;
  Block& block = block_of(self());
  if (!find_mbarrier(block, barrier, "mbarrier_invalidate").waiting.empty())
    error("mbarrier_invalidate while others wait for the mbarrier");
  note_mbarrier(block, barrier, Access::write);
  block.mbarriers.erase(barrier);
}

void fence_mbarrier_init() {
  WEFT_SIM_ENTER;
  for (auto& [offset, m] : block_of(self()).mbarriers)
    if (m.initialiser == self().id) m.fenced = true;
}

namespace {

MBarrierState& count_arrivals(Block& block, uint32_t barrier, uint32_t arrivals, uint32_t bytes) {
  MBarrierState& m = find_mbarrier(block, barrier, "mbarrier_arrive");
  note_mbarrier(block, barrier, Access::update);
  m.bytes += bytes;  // before the arrival, which might end the phase
  if (m.bytes > kMostBytes) error("an mbarrier counts too many bytes");
  if (arrivals > m.pending)
    error("mbarrier_arrive of " + std::to_string(arrivals) + " at an mbarrier that expects " +
          std::to_string(m.pending) + " more in this phase");
  m.pending -= arrivals;
  return m;
}

}  // namespace

void mbarrier_arrive(uint32_t barrier, uint32_t arrivals, uint32_t bytes) {
  WEFT_SIM_ENTER;
  Task& task = self();
  MBarrierState& m = count_arrivals(block_of(task), barrier, arrivals, bytes);
  if (arrivals > 0 && engine().options.check_races) m.join.add(task);
  settle(m);
}

void mbarrier_arrive_remote(uint32_t rank, uint32_t barrier, Scope scope) {
  WEFT_SIM_ENTER;
  Task& task = self();
  Block& block = block_of_rank(task, rank);
  const bool remote = &block != &block_of(task);
  if (remote) note_visitor(task, block);
  MBarrierState& m = count_arrivals(block, barrier, 1, 0);
  if (engine().options.check_races) {
    if (remote) m.join.add_reads(task);
    if (remote && scope == Scope::cluster) m.cluster_join.add(task);
    if (!remote) m.join.add(task);
  }
  settle(m);
}

bool mbarrier_wait(uint32_t barrier, uint32_t parity, Scope scope, bool until_done) {
  WEFT_SIM_ENTER;
  Task& task = self();
  Block& block = block_of(task);
  MBarrierState* m = &find_mbarrier(block, barrier, "mbarrier_wait");
  note_mbarrier(block, barrier, Access::strong_read);
  const auto done = [&] { return (m->phase & 1) != (parity & 1); };
  if (!done() && !until_done) {
    poll();
    m = &find_mbarrier(block, barrier, "mbarrier_try_wait");
  }
  while (!done() && until_done) {
    m->waiting.push_back(&task);
    wait("mbarrier_wait", barrier);
    m = &find_mbarrier(block, barrier, "mbarrier_wait");
  }
  if (!done()) return false;
  if (m->completed) acquire(task, m->completed);
  if (m->cluster_completed && scope == Scope::cluster) acquire(task, m->cluster_completed);
  return true;
}

// ---- copy_async

void copy_async(uint32_t to, const void* from, uint32_t valid, uint32_t bytes) {
  WEFT_SIM_ENTER;
  Task& task = self();
  Block& block = block_of(task);
  if (valid > bytes || to % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    error("copy_async of " + std::to_string(valid) + " in " + std::to_string(bytes) +
          " bytes to shared offset " + std::to_string(to) + ": not aligned, or too many");
  if (uint64_t{to} + bytes > block.shared_bytes)
    error("copy_async to shared offset " + std::to_string(to) + " of " +
          std::to_string(block.shared_bytes) + " bytes");
  const Actor actor = engine_actor(task, kCopies, "copy_async", task.copies.open(), false);
  if (engine().options.late_completion) block.initialised.clear(to, bytes);
  task.copies.add([=, &task, &block] {
    const Acting acting(actor, task);
    alignas(16) std::byte data[16] = {};
    // Pieces of a power of two: the valid part may have any length.
    Initialised::pieces(0, valid, [&](size_t at, uint32_t n) {
      for (uint32_t i = 0; i < n;) {
        uint32_t piece = bytes;
        while ((at + i) % piece || i + piece > n) piece /= 2;
        const auto* source = static_cast<const std::byte*>(from) + at + i;
        std::memcpy(data + at + i, global_access_by(actor, source, piece, Access::read), piece);
        i += piece;
      }
    });
    std::memcpy(shared_access_by(actor, block, to, bytes, Access::write), data, bytes);
  });
}

void copy_async_commit() {
  WEFT_SIM_ENTER;
  self().copies.commit();
}

void copy_async_wait(uint32_t pending) {
  WEFT_SIM_ENTER;
  Task& task = self();
  task.copies.wait(pending);
  task.own[kCopies].known = task.copies.done();
}

void copy_async_arrive(uint32_t barrier) {
  WEFT_SIM_ENTER;
  Task& task = self();
  Block& block = block_of(task);
  find_mbarrier(block, barrier, "copy_async_arrive");
  note_mbarrier(block, barrier, Access::update);
  const Actor actor = engine_actor(task, kCopies, "copy_async", task.copies.open(), false);
  task.copies.commit();
  Task* const thread = &task;
  start_work([=, &block] {
    const Acting acting(actor, *thread);
    // Groups end in order, and those before this one are known with it.
    thread->copies.finish(actor.epoch);
    MBarrierState& m = find_mbarrier(block, barrier, "copy_async_arrive");
    if (m.pending == 0) error("copy_async_arrive at an mbarrier that expects no more arrivals");
    --m.pending;
    if (engine().options.check_races) m.join.add(actor.cluster, {actor.id, actor.epoch, 0});
    settle(m);
  });
}

void Queue::finish(uint32_t group) {
  if (group > done_) wait(open_ - 1 - group);
}

// ---- the asynchronous proxy

void fence_async() {
  WEFT_SIM_ENTER;
  if (engine().options.check_races) fence_for_async(self());
  for (auto& [offset, m] : block_of(self()).mbarriers)
    if (m.initialiser == self().id) m.fenced = true;
}

void fence_async_global() {
  WEFT_SIM_ENTER;
  if (engine().options.check_races) fence_global(self(), kAsyncProxy);
}

void load_boxes(Task& task, const char* name, uint32_t barrier, uint32_t blocks, uint32_t bytes,
                const std::vector<BoxPiece>& pieces) {
  Block& own = block_of(task);
  std::vector<Block*> targets;
  if (blocks == 0) targets.push_back(&own);
  for (uint32_t rank = 0; rank < 16; ++rank)
    if (blocks >> rank & 1) targets.push_back(&block_of_rank(task, rank));
  const Actor actor = slot_actor(task, name);
  for (Block* block : targets) {
    expect_fenced(*block, barrier, name);
    note_visitor(actor, *block);
    if (!engine().options.late_completion) continue;
    for (const BoxPiece& piece : pieces)
      if (piece.shared + piece.bytes <= block->shared_bytes)
        block->initialised.clear(piece.shared, piece.bytes);
  }
  start_work([=, &task] {
    const Acting acting(actor, task);
    for (Block* block : targets) {
      if (block->live == 0) error(std::string(name) + " to a block that has ended");
      for (const BoxPiece& piece : pieces) {
        void* to = shared_access_by(actor, *block, piece.shared, piece.bytes, Access::write);
        if (piece.global)
          std::memcpy(to, global_access_by(actor, piece.global, piece.bytes, Access::read),
                      piece.bytes);
        else
          std::memcpy(to, piece.fill, piece.bytes);
      }
      count_bytes(*block, barrier, bytes, actor);
    }
  });
}

void store_boxes(Task& task, const char* name, const Reduction* reduction,
                 const std::vector<BoxPiece>& pieces) {
  Block& block = block_of(task);
  if (reduction) talk();
  const Actor reader = engine_actor(task, kBulkReads, name, task.bulk_reads.open(), true);
  const Actor writer = engine_actor(task, kBulkWrites, name, task.bulk_writes.open(), true);
  note_visitor(reader, block);
  const auto data = std::make_shared<std::vector<std::byte>>();
  task.bulk_reads.add([=, &task, &block] {
    const Acting acting(reader, task);
    for (const BoxPiece& piece : pieces) {
      const auto* from = static_cast<const std::byte*>(
          shared_access_by(reader, block, piece.shared, piece.bytes, Access::read));
      data->insert(data->end(), from, from + piece.bytes);
    }
  });
  task.bulk_writes.add([=, &task] {
    const Acting acting(writer, task);
    const std::byte* from = data->data();
    for (const BoxPiece& piece : pieces) {
      if (reduction) {
        const uint32_t n = reduction->element_bytes;
        for (uint32_t i = 0; i < piece.bytes; i += n)
          reduction->add(global_access_by(writer, piece.global + i, n, reduction->access), from + i,
                         1);
      } else {
        std::memcpy(global_access_by(writer, piece.global, piece.bytes, Access::write), from,
                    piece.bytes);
      }
      from += piece.bytes;
    }
  });
}

void store_async(uint32_t rank, uint32_t to, const void* value, uint32_t bytes, uint32_t barrier) {
  WEFT_SIM_ENTER;
  Task& task = self();
  Block& block = block_of_rank(task, rank);
  find_mbarrier(block, barrier, "store_async");
  Actor actor = slot_actor(task, "store_async");
  actor.async = false;
  note_visitor(actor, block);
  if (engine().options.late_completion && uint64_t{to} + bytes <= block.shared_bytes)
    block.initialised.clear(to, bytes);
  alignas(16) std::array<std::byte, 16> data;
  std::memcpy(data.data(), value, bytes);
  start_work([=, &task, &block] {
    const Acting acting(actor, task);
    if (block.live == 0) error("store_async to a block that has ended");
    std::memcpy(shared_access_by(actor, block, to, bytes, Access::write), data.data(), bytes);
    count_bytes(block, barrier, bytes, actor);
  });
}

void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint32_t blocks) {
  WEFT_SIM_ENTER;
  expect_aligned("bulk_load", to, from, bytes);
  std::vector<BoxPiece> pieces;
  for (uint32_t i = 0; i < bytes; i += 16)
    pieces.push_back({to + i, 16, static_cast<std::byte*>(const_cast<void*>(from)) + i, {}});
  load_boxes(self(), "bulk_load", barrier, blocks, bytes, pieces);
}

void bulk_store(void* to, uint32_t from, uint32_t bytes, const Reduction* reduction) {
  WEFT_SIM_ENTER;
  expect_aligned("bulk_store", from, to, bytes);
  std::vector<BoxPiece> pieces;
  for (uint32_t i = 0; i < bytes; i += 16)
    pieces.push_back({from + i, 16, static_cast<std::byte*>(to) + i, {}});
  store_boxes(self(), reduction ? "bulk_reduce_add" : "bulk_store", reduction, pieces);
}

void bulk_commit() {
  WEFT_SIM_ENTER;
  self().bulk_reads.commit();
  self().bulk_writes.commit();
}

void bulk_wait(uint32_t pending, bool read_only) {
  WEFT_SIM_ENTER;
  Task& task = self();
  if (!read_only) linger();
  task.bulk_reads.wait(pending);
  task.own[kBulkReads].known = task.bulk_reads.done();
  if (read_only) return;
  task.bulk_writes.wait(pending);
  task.own[kBulkWrites].known = task.bulk_writes.done();
}

}  // namespace weft::gpu::sim
