// What the engine's parts share: the launch as data structures. Not for kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "gpu/sim/engine.h"
#include "gpu/sim/fiber.h"
#include "gpu/sim/shadow.h"

namespace weft::gpu::sim {

struct Block;
struct Cluster;
struct Warp;

// A simulated thread with its stack. Its stack, and hence the object, is used again by later blocks.
struct Task : Thread {
  Fiber fiber;
  Warp* warp = nullptr;
  bool exited = false;

  // What it waits for, for the deadlock report; null while it can run.
  const char* waits_for = nullptr;
  uint64_t detail = 0;
  const void* where = nullptr;  // the kernel's code behind the last call of the engine

  bool result = false;         // of a vote at a block barrier
  uint32_t cluster_phase = 0;  // of the cluster barrier at which it has arrived
  bool cluster_arrived = false;
};

// A collective that some lanes have reached.
struct Rendezvous {
  const char* name;
  void (*body)();
  uint32_t mask, arrived;
  void* arguments[kWarp];
};

struct Warp {
  Block* block = nullptr;
  Task* lanes[kWarp] = {};
  uint32_t ready = 0;  // lanes that can run
  int listed = -1;     // where in Engine::ready
  std::vector<Rendezvous> calls;
};

// The state of a warpgroup's collective.
struct GroupRendezvous {
  const char* name = nullptr;
  GroupBody body = nullptr;
  uint32_t arrived = 0;
  void* arguments[kWarpgroup];
};

struct Barrier {
  uint32_t expected = 0, arrived = 0;
  bool any = false, all = true;
  std::vector<Task*> waiting;
};

constexpr int kBarriers = 16;

struct Block {
  BlockFacts facts;
  Cluster* cluster = nullptr;
  std::vector<std::unique_ptr<Task>> tasks;  // at least facts.threads
  std::vector<Warp> warps;
  std::vector<GroupRendezvous> groups;
  Barrier barriers[kBarriers];
  uint32_t live = 0;  // threads that have not exited

  std::unique_ptr<std::byte[]> memory;  // shared, with room to align it
  size_t capacity = 0;
  std::byte* shared = nullptr;
  uint32_t shared_bytes = 0;
  Initialised initialised;

  std::vector<uint32_t> registers;  // of a thread, by warp
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  uint32_t live = 0;     // threads
  uint32_t arrived = 0;  // at the cluster barrier
  uint32_t phase = 0;
  std::vector<Task*> waiting;
};

// One launch at a time and process; see engine.cpp.
struct Engine {
  const LaunchConfig* config = nullptr;
  const char* kernel = nullptr;
  const FunctionRef<void()>* body = nullptr;
  Options options;

  Fiber host;
  std::vector<std::unique_ptr<Cluster>> resident;  // running
  std::vector<std::unique_ptr<Cluster>> idle;      // to be used again
  uint64_t admitted = 0, clusters = 0;             // of the grid
  uint64_t first = 0, stride = 1;                  // the order of clusters

  std::vector<Warp*> ready;
  size_t turn = 0;
  Warp* current = nullptr;
  std::vector<Task*> polling;  // threads that spin, to be tried again when nobody else can run
  bool progress = false;       // something changed since they last looked
  int fruitless = 0;           // rounds of looking in which nothing did
  uint64_t random = 0;
  std::exception_ptr failure;

  uint64_t draw();  // a random number
};

Engine& engine();
inline Task& self() { return *static_cast<Task*>(running); }
inline Block& block_of(const Task& task) { return *task.warp->block; }

// Every entry point begins with it.
#define WEFT_SIM_ENTER (self().where = __builtin_return_address(0))

// ---- scheduling
void wait(const char* for_what, uint64_t detail = 0);  // until wake()
void wake(Task& task);
void poll();  // lets the others run first
// At a barrier that completes when others exit.
void cluster_exit(Task& task);

// ---- memory
void prepare_shared(Block& block, uint32_t bytes);
// Held by launches, and while allocations come and go.
class RegistryLock {
 public:
  RegistryLock();
  ~RegistryLock();
};

// ---- reports
std::string deadlock_report(const Engine& e);
std::string context_of(const Task& task);  // kernel, block, thread, source line

}  // namespace weft::gpu::sim
