// Threads that wait for each other: collectives of a warp and of a warpgroup, barriers of a block
// and of a cluster. Whoever comes last does the work and wakes the others.
#include <cstdio>
#include <string>

#include "core/error.h"
#include "gpu/sim/state.h"

namespace weft::gpu::sim {
namespace {

std::string hex(uint32_t mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

// The call of the warp that this lane joins, or begins.
Rendezvous& join_call(Warp& warp, uint32_t lane, const char* name, uint32_t mask, void (*body)()) {
  const uint32_t bit = 1u << lane;
  if (!(mask & bit))
    error(std::string(name) + " with mask " + hex(mask) + ", which lacks the caller");
  for (Rendezvous& call : warp.calls) {
    if (!(call.mask & mask)) continue;
    if (call.mask != mask || call.body != body)
      error(std::string(name) + " with mask " + hex(mask) +
            ", while other lanes of the warp are at " + call.name + " with mask " + hex(call.mask));
    return call;
  }
  for (uint32_t l = 0; l < kWarp; ++l)
    if (mask >> l & 1 && (!warp.lanes[l] || warp.lanes[l]->exited))
      error(std::string(name) + " with mask " + hex(mask) + ", in which lane " + std::to_string(l) +
            (warp.lanes[l] ? " has exited" : " does not exist"));
  return warp.calls.emplace_back(Rendezvous{name, body, mask, 0, {}});
}

// `last` is the thread that completes it, where it waits, too.
void complete(Barrier& barrier, Task* last) {
  const ClockRef done = barrier.join.take();
  if (done && last) last->clock = done;
  for (Task* task : barrier.waiting) {
    if (done) task->clock = done;
    wake(*task);
  }
  barrier.waiting.clear();
  barrier.arrived = barrier.expected = 0;
  barrier.any = false, barrier.all = true;
}

// Counts this thread in; true if that completes the barrier.
bool arrive(uint32_t index, uint32_t threads) {
  Block& block = block_of(self());
  Barrier& barrier = block.barriers[index];
  if (barrier.arrived == 0) barrier.expected = threads;
  if (barrier.expected != threads)
    error("barrier " + std::to_string(index) + " of " + std::to_string(threads) +
          " threads, at which others have arrived as one of " + std::to_string(barrier.expected));
  if (engine().options.check_races) barrier.join.add(self());
  return ++barrier.arrived == threads;
}

void complete_cluster(Cluster& cluster) {
  cluster.arrived = 0;
  ++cluster.phase;
  cluster.completed = cluster.join.take();
  for (Task* task : cluster.waiting) wake(*task);
  cluster.waiting.clear();
}

void meet(const char* name, uint32_t mask, void* arguments, CollectiveBody body) {
  Task& task = self();
  Warp& warp = *task.warp;
  const uint32_t lane = task.index % kWarp;
  Rendezvous& call = join_call(warp, lane, name, mask, reinterpret_cast<void (*)()>(body));
  call.arguments[lane] = arguments;
  call.arrived |= 1u << lane;
  if (call.arrived != mask) {
    wait(name, mask);
    return;
  }
  const Rendezvous done = call;
  warp.calls.erase(warp.calls.begin() + (&call - warp.calls.data()));
  body(done.arguments, mask);
  for (uint32_t l = 0; l < kWarp; ++l)
    if (l != lane && mask >> l & 1) wake(*warp.lanes[l]);
}

}  // namespace

void collective(const char* name, uint32_t mask, void* arguments, CollectiveBody body) {
  WEFT_SIM_ENTER;
  meet(name, mask, arguments, body);
}

void group_collective(const char* name, void* arguments, GroupBody body) {
  WEFT_SIM_ENTER;
  group_meet(name, arguments, body);
}

void group_meet(const char* name, void* arguments, GroupBody body) {
  Task& task = self();
  Block& block = block_of(task);
  const uint32_t first = task.index / kWarpgroup * kWarpgroup;
  GroupRendezvous& group = block.groups[task.index / kWarpgroup];
  if (first + kWarpgroup > block.facts.threads)
    error(std::string(name) + " in a block of " + std::to_string(block.facts.threads) +
          " threads, where this warpgroup is not whole");
  if (group.arrived > 0 && group.body != body)
    error(std::string(name) + ", while other threads of the warpgroup are at " + group.name);
  group.name = name;
  group.body = body;
  group.arguments[task.index - first] = arguments;
  if (++group.arrived < kWarpgroup) {
    wait(name);
    return;
  }
  group.arrived = 0;
  body(group.arguments);
  for (uint32_t i = first; i < first + kWarpgroup; ++i)
    if (i != task.index) wake(*block.tasks[i]);
}

uint32_t elected_lane() { return static_cast<uint32_t>(engine().options.seed % kWarp); }

void sync_warp(uint32_t mask) {
  WEFT_SIM_ENTER;
  meet("sync_warp", mask, &self(), [](void* const* lanes, uint32_t m) {
    if (!engine().options.check_races) return;
    Join join;
    for (uint32_t l = 0; l < kWarp; ++l)
      if (m >> l & 1) join.add(*static_cast<Task*>(lanes[l]));
    const ClockRef sum = join.take();
    for (uint32_t l = 0; l < kWarp; ++l)
      if (m >> l & 1) static_cast<Task*>(lanes[l])->clock = sum;
  });
}

bool sync_block(Vote vote, bool predicate) {
  WEFT_SIM_ENTER;
  Block& block = block_of(self());
  Barrier& barrier = block.barriers[0];
  const bool last = arrive(0, block.facts.threads);
  barrier.any |= predicate;
  barrier.all &= predicate;
  if (!last) {
    barrier.waiting.push_back(&self());
    wait("sync_block", 0);
    return self().result;
  }
  const bool result = vote == Vote::any ? barrier.any : barrier.all;
  for (Task* task : barrier.waiting) task->result = result;
  complete(barrier, &self());
  return result;
}

void sync_named(uint32_t index, uint32_t threads, bool wait_too) {
  WEFT_SIM_ENTER;
  const uint32_t size = block_of(self()).facts.threads;
  if (index == 0 || index >= kBarriers)
    error("barrier " + std::to_string(index) + ", expected 1 to 15");
  if (threads == 0 || threads % kWarp || threads > (size + kWarp - 1) / kWarp * kWarp)
    error("barrier " + std::to_string(index) + " of " + std::to_string(threads) +
          " threads, expected a multiple of 32 up to the block's " + std::to_string(size));
  Barrier& barrier = block_of(self()).barriers[index];
  const bool last = arrive(index, threads);
  if (last) {
    complete(barrier, wait_too ? &self() : nullptr);
  } else if (wait_too) {
    barrier.waiting.push_back(&self());
    wait("sync_named", index);
  }
}

void cluster_arrive(bool release) {
  WEFT_SIM_ENTER;
  Task& task = self();
  Cluster& cluster = *block_of(task).cluster;
  if (task.cluster_arrived) error("cluster_arrive twice without cluster_wait");
  task.cluster_arrived = true;
  task.cluster_phase = cluster.phase;
  if (release && engine().options.check_races) cluster.join.add(task);
  if (++cluster.arrived == cluster.live) complete_cluster(cluster);
}

void cluster_wait() {
  WEFT_SIM_ENTER;
  Task& task = self();
  Cluster& cluster = *block_of(task).cluster;
  if (!task.cluster_arrived) error("cluster_wait without cluster_arrive");
  task.cluster_arrived = false;
  if (cluster.phase == task.cluster_phase) {
    cluster.waiting.push_back(&task);
    wait("cluster_wait");
  }
  acquire(task, cluster.completed);
}

void cluster_exit(Task& task) {
  Cluster& cluster = *block_of(task).cluster;
  if (task.cluster_arrived && task.cluster_phase == cluster.phase) --cluster.arrived;
  if (cluster.live > 0 && cluster.arrived == cluster.live) complete_cluster(cluster);
}

void check_exit(Task& task) {
  Block& block = block_of(task);
  if (task.copies.unfinished()) error("the thread ends before its copy_async have");
  if (block.groups[task.index / kWarpgroup].queue.unfinished())
    error("the thread ends before the asynchronous work of its warpgroup has");
  task.bulk_reads.wait(0);
  task.bulk_writes.wait(0);
  if (!engine().options.check_races) return;
  block.ended.add(task);
  if (block.live > 1) return;
  Actor last = task;
  last.clock = block.ended.take();
  for (uint32_t actor = 0; actor < block.visitors.size(); ++actor)
    if (block.visitors[actor] > 0 && !seen(last, actor, block.visitors[actor]))
      error("the block ends while " + name_of_actor(task.cluster, actor) +
            " may still access its shared memory");
  Grid& grid = grid_of(task);
  if (grid.followed) grid.after = grid.after ? merge(grid.after, last.clock) : last.clock;
}

void wait_for_prerequisites() {
  WEFT_SIM_ENTER;
  if (!engine().options.check_races) return;
  const ClockRef known = new_clock(self().cluster);
  known->prerequisites = true;
  acquire(self(), known);
}

// Registers are the block's: the warps that have given some back leave them to the others.
void set_registers(uint32_t count, bool increase) {
  WEFT_SIM_ENTER;
  Task& task = self();
  Block& block = block_of(task);
  const char* name = increase ? "increase_registers" : "decrease_registers";
  if (count < 24 || count > 256 || count % 8)
    error(std::string(name) + " to " + std::to_string(count) +
          ", expected a multiple of 8 in 24 to 256");
  struct Call {
    uint32_t count;
    bool increase, waits;
    Block* block;
    uint32_t warp;
  } call{count, increase, false, &block, task.index / kWarp};
  warp_collective(name, kAllLanes, call, [](Call* const* lanes, uint32_t) {
    const Call& mine = *lanes[0];
    uint32_t& now = mine.block->registers[mine.warp];
    if (mine.increase ? mine.count < now : mine.count > now)
      error(std::string(mine.increase ? "increase" : "decrease") + "_registers from " +
            std::to_string(now) + " to " + std::to_string(mine.count));
    for (uint32_t l = 0; l < kWarp; ++l) lanes[l]->waits = mine.increase;
    if (mine.increase) return;
    now = mine.count;
    for (Task* waiting : mine.block->wants_registers) wake(*waiting);
    mine.block->wants_registers.clear();
  });
  if (!call.waits) return;
  const auto fits = [&] {
    uint32_t used = 0;
    for (const uint32_t registers : block.registers) used += registers;
    return used - block.registers[call.warp] + count <= block.register_pool;
  };
  while (block.registers[call.warp] != count) {
    if (fits()) {
      block.registers[call.warp] = count;
    } else {
      block.wants_registers.push_back(&task);
      wait(name, count);
    }
  }
}

}  // namespace weft::gpu::sim
