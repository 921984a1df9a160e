// What the engine's parts share: the launch as data structures. Not for kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "gpu/sim/engine.h"
#include "gpu/sim/fiber.h"
#include "gpu/sim/races.h"
#include "gpu/sim/shadow.h"

namespace weft::gpu::sim {

struct Block;
struct Cluster;
struct Warp;
struct WgmmaState;

// A piece of asynchronous work, done on behalf of a thread.
using Work = std::function<void()>;
struct PendingWork {
  const Cluster* of;
  Work work;
};

// Asynchronous work that a thread waits for in groups, which end in order. Early: done when added.
// Late: when waited for.
//
//   queue.add(work);   queue.commit();   queue.wait(1);
//
// The work makes its accesses as an actor of its own, whose epoch is queue.open() at the time of
// add; who has waited knows it up to queue.done().
class Queue {
 public:
  void add(Work work);
  void commit() { ++open_; }
  void wait(uint32_t pending);
  void finish(uint32_t group);  // and those before it
  uint32_t open() const { return open_; }
  uint32_t done() const { return done_; }
  bool unfinished() const { return last_ > done_; }
  void reset() {
    open_ = 1, done_ = last_ = 0;
    work_.clear();
  }

 private:
  std::vector<std::pair<uint32_t, Work>> work_;  // with its group, in order, where not done yet
  uint32_t open_ = 1, done_ = 0;
  uint32_t last_ = 0;  // the group of the latest work
};

// A simulated thread with its stack. Its stack, and hence the object, is used again by later blocks.
struct Task : Thread, Actor {
  Fiber fiber;
  Warp* warp = nullptr;
  bool exited = false;

  // What it waits for, for the deadlock report; null while it can run.
  const char* waits_for = nullptr;
  uint64_t detail = 0;

  bool result = false;         // of a vote at a block barrier
  uint32_t cluster_phase = 0;  // of the cluster barrier at which it has arrived
  bool cluster_arrived = false;

  Queue copies, bulk_reads, bulk_writes;
  // Of relaxed accesses with a fence before or after.
  ClockRef at_fence, pending;
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

// The state of a warpgroup's collective, and its asynchronous work.
struct GroupRendezvous {
  const char* name = nullptr;
  GroupBody body = nullptr;
  uint32_t arrived = 0;
  void* arguments[kWarpgroup];
  Queue queue;
  uint32_t engine = kNoActor;
  std::shared_ptr<WgmmaState> wgmma;  // once there is one
};

struct Barrier {
  uint32_t expected = 0, arrived = 0;
  bool any = false, all = true;
  std::vector<Task*> waiting;
  Join join;
};

// An mbarrier, whose bytes in shared memory are never written: to read them is an error.
struct MBarrierState {
  uint32_t arrivals = 0, pending = 0;
  int64_t bytes = 0;  // due
  uint32_t phase = 0;
  uint32_t initialiser = 0;  // actor
  bool fenced = false;       // seen by copies and by the cluster
  // What arrivals have published: for all, and for those who wait with Scope::cluster.
  Join join, cluster_join;
  ClockRef completed, cluster_completed;  // the last phase
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
  Cells cells{Space::shared};
  std::unordered_map<uint32_t, MBarrierState> mbarriers;

  Join ended;                       // what its threads knew when they exited
  std::vector<uint32_t> visitors;   // the last epoch of each actor from another block, here
  std::vector<uint32_t> registers;  // of a thread, by warp
  uint32_t register_pool = 0;       // their sum at the start
  std::vector<Task*> wants_registers;
};

// A launch.
struct Grid {
  LaunchConfig config;
  const char* kernel = nullptr;
  std::function<void()> body;
  uint64_t clusters = 0, admitted = 0, ended = 0;
  uint64_t first = 0, stride = 1;  // the order of clusters
  uint64_t room = 1;               // clusters that the GPU holds at a time
  uint64_t company = 1;            // … that run side by side once the grid talks:
  bool talks = false;              // its threads have met in global memory
  // What its threads know from the start, and, where another follows, what they knew at their ends.
  ClockRef before, after;
  bool followed = false;
};

// Launches that go one after the other.
struct Lane {
  Stream stream = nullptr;
  std::vector<std::unique_ptr<Grid>> grids;
  size_t turn = 0;        // which of them runs
  uint32_t resident = 0;  // clusters of it
};

struct Cluster {
  Lane* lane = nullptr;
  Grid* grid = nullptr;
  std::vector<std::unique_ptr<Block>> blocks;
  uint32_t live = 0;     // threads
  uint32_t arrived = 0;  // at the cluster barrier
  uint32_t phase = 0;
  std::vector<Task*> waiting;
  Join join;
  ClockRef completed;

  // Actors besides the threads, which come first: what they are, and for whom they work.
  struct Engine {
    const char* name;
    const Task* of;
  };
  std::vector<Engine> engines;
  uint32_t threads = 0;
  // Copies that an mbarrier counts take turns at these.
  static constexpr uint32_t kSlots = 64;
  uint32_t slots = 0;  // the first one's actor, 0: none yet
  uint32_t next_slot = 0;
  uint32_t slot_epochs[kSlots] = {};
};

// What a strong write has published at an address.
struct Published {
  ClockRef clock;
  Scope scope;
  uint64_t block;      // its number, for Scope::block
  const Lane* device;  // whose it is, for Scope::gpu
};

// One launch at a time and process, or those of several streams; see engine.cpp.
struct Engine {
  std::vector<Lane>* lanes = nullptr;
  bool dependent = false;  // LaunchConfig::dependent, of the only launch
  Options options;

  Fiber* host = nullptr;                           // who called
  std::vector<std::unique_ptr<Cluster>> resident;  // running
  std::vector<std::unique_ptr<Block>> spare;       // to be used again
  uint64_t admitted = 0;                           // clusters

  std::vector<Warp*> ready;
  size_t turn = 0;
  Warp* current = nullptr;
  std::vector<Task*> polling;  // threads that spin, to be tried again when nobody else can run
  bool progress = false;       // something changed since they last looked
  int fruitless = 0;           // rounds of looking in which nothing did
  uint64_t now = 0;            // what the clock says, in nanoseconds
  uint64_t random = 0;
  std::exception_ptr failure;

  std::vector<PendingWork> pending;  // asynchronous work that nobody can be waiting for by name
  std::unordered_map<uintptr_t, Published> published;
  uint64_t launch = 0;            // counts what runs together
  const Actor* acting = nullptr;  // who does asynchronous work now, if anybody
  const Task* acting_for = nullptr;

  uint64_t draw();  // a random number
};

Engine& engine();
inline Task& self() { return *static_cast<Task*>(running); }
inline Block& block_of(const Task& task) { return *task.warp->block; }
inline Grid& grid_of(const Task& task) { return *block_of(task).cluster->grid; }

// Every entry point begins with it.
#define WEFT_SIM_ENTER (self().where = __builtin_return_address(0))

// ---- scheduling
void wait(const char* for_what, uint64_t detail = 0);  // until wake()
void wake(Task& task);
void poll();    // lets the others run first
void linger();  // lets others run meanwhile: what is waited for takes its time
// The running thread's grid meets in global memory: from now on several of its clusters run.
void talk();
// Asynchronous work without a queue: now, or when nobody can run.
void start_work(Work work);
// At a barrier that completes when others exit.
void cluster_exit(Task& task);
void check_exit(Task& task);

// group_collective, from within the engine.
void group_meet(const char* name, void* arguments, GroupBody body);
// In its body: waits for all but so many of the groups of the warpgroup's work.
void finish_groups(uint32_t pending);

// ---- actors
// Asynchronous work of a thread: what it knows now, under the name of one of its engines.
Actor engine_actor(Task& task, OwnIndex engine, const char* name, uint32_t epoch, bool async);
Actor slot_actor(Task& task, const char* name);  // an engine that an mbarrier counts
// Errors name the thread that the work is done for, while this object lives.
class Acting {
 public:
  Acting(const Actor& actor, const Task& of);
  ~Acting();
};

// ---- bulk and tensor copies
struct BoxPiece {
  uint32_t shared, bytes;
  std::byte* global;  // null: filled
  std::byte fill[8];
};
// `bytes` are counted by the barrier of each block.
void load_boxes(Task& task, const char* name, uint32_t barrier, uint32_t blocks, uint32_t bytes,
                const std::vector<BoxPiece>& pieces);
void store_boxes(Task& task, const char* name, const Reduction* reduction,
                 const std::vector<BoxPiece>& pieces);

// ---- memory: accesses by an actor who is not the running thread
void* shared_access_by(const Actor& actor, Block& block, uint32_t offset, uint32_t bytes,
                       Access access);
void* global_access_by(const Actor& actor, const void* p, uint32_t bytes, Access access);
// An access from another block is due before this one ends.
void note_visitor(const Actor& actor, Block& block);
Block& block_of_rank(Task& task, uint32_t rank);
void prepare_shared(Block& block, uint32_t bytes);
// Held by launches, and while allocations come and go.
class RegistryLock {
 public:
  RegistryLock();
  ~RegistryLock();
};

// ---- reports
std::string deadlock_report(const Engine& e);
std::string context_of(const Task& task, const void* where);  // kernel, block, thread, line
std::string source_line(const void* address);
std::string name_of_actor(uint64_t cluster, uint32_t actor);

}  // namespace weft::gpu::sim
