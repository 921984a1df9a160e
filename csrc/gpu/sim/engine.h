// The simulator's engine, as the words of gpu/ call it. What it does is described in
// docs/simulator.md; its parts are
//
//   engine.cpp   launches: streams, blocks, warps, fibers, the order in which threads run
//   sync.cpp     barriers and collectives: threads that wait for each other
//   memory.cpp   accesses to global and shared memory, and what is wrong with them
//   async.cpp    copies that go on by themselves, mbarriers
//   tensor.cpp   boxes of tensors
//   wgmma.cpp    products of a warpgroup
//   races.cpp    which accesses are ordered
//   report.cpp   what is said when something is wrong
//   fiber.h      a stack per simulated thread, and the switch between them
//
// An entry point that a kernel calls remembers its return address: a message names the source line.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>

#include "gpu/global.h"
#include "gpu/launch.h"
#include "gpu/sim/simulator.h"
#include "gpu/tma.h"

namespace weft::gpu::sim {

// What a thread knows of its block; the same for all threads of the block.
struct BlockFacts {
  Dim3 index, grid;
  uint32_t threads = 0;
  uint32_t cluster_rank = 0, cluster_blocks = 1;
};

// A simulated thread, as kernels see it.
struct Thread {
  uint32_t index = 0;  // in its block
  const BlockFacts* block = nullptr;
};

// The thread that runs.
#if defined(__x86_64__) || defined(__aarch64__)
[[gnu::tls_model("initial-exec")]]
#endif
extern thread_local Thread* running;

// ---- launches. `body` calls the kernel, once for each thread.
void run(const LaunchConfig& config, const char* kernel, std::function<void()> body);

// ---- errors: throws, naming kernel, block, thread and source line.
[[noreturn]] void error(const std::string& what);

// ---- memory. Each checks one access, of a power of two of up to 16 bytes, and says where the data
// lies on the host.
enum class Access : uint8_t {
  read,
  write,
  strong_read,   // relaxed, acquire: may race with other strong accesses by intent
  strong_write,  // relaxed, release
  update,        // atomics: strong, both
  sum,           // those that add floats: in another order another sum
};
template <class T>
constexpr Access kAdding = std::is_integral_v<T> ? Access::update : Access::sum;
void* global_access(const void* p, uint32_t bytes, Access access);
// The same for loads that take their data for constant while the kernel runs.
const void* constant_access(const void* p, uint32_t bytes);
void* shared_access(uint32_t offset, uint32_t bytes, Access access);
void* remote_access(uint32_t rank, uint32_t offset, uint32_t bytes, Access access);
void view_error(uint64_t i, uint32_t n, uint32_t count, uint32_t element_bytes);
// After a strong access: what it orders. `p` is what it accessed.
void synchronise(const void* p, Access access, Order order, Scope scope);
void memory_fence(Scope scope);
void fence_alias();
// Multicast memory: how many copies there are behind an address, and an access to one.
uint32_t replicas(const void* p);
void* replica_access(const void* p, uint32_t replica, uint32_t bytes, Access access);
uint32_t shared_window(uint32_t offset);  // an address as instructions take it

// ---- collectives, of which warp.h shows the use. Each of the lanes in `mask` calls collective()
// with the same body and arguments of its own. The last to come runs the body on all of them:
// lanes[i] are the arguments of lane i, null for those not in the mask. Then all go on. The
// arguments live on their threads' stacks, and results are written there.
//
// A body makes accesses to memory for lane i with shared_access_of(i, …), in that lane's name.
using CollectiveBody = void (*)(void* const* lanes, uint32_t mask);
void collective(const char* name, uint32_t mask, void* arguments, CollectiveBody body);
void* shared_access_of(uint32_t lane, uint32_t offset, uint32_t bytes, Access access);

// The same for the 128 threads of a warpgroup, all of them.
using GroupBody = void (*)(void* const* threads);
void group_collective(const char* name, void* arguments, GroupBody body);

// Asynchronous work of a warpgroup, like wgmma's. The body of a group_collective hands it over:
//
//   const GroupEngine engine = group_engine("wgmma");
//   group_add([=] { … engine.shared(warp, offset, 16, Access::read) … });
//
// The work is done at once or, with late_completion, when the group waits for it. It makes its
// accesses to shared memory as an actor of its own, through the asynchronous proxy, knowing what the
// warp that it names knew when it was handed over. It may write into the arguments' registers: they
// are on stacks that stay. All 128 threads call group_commit and group_wait, which count groups as
// wgmma.commit_group and wgmma.wait_group do.
class GroupEngine {
 public:
  const void* shared(uint32_t warp, uint32_t offset, uint32_t bytes, Access access) const;

 private:
  friend GroupEngine group_engine(const char* name);
  struct State;
  std::shared_ptr<const State> state_;
};
GroupEngine group_engine(const char* name);
void group_add(std::function<void()> work);
void group_commit();
void group_wait(uint32_t pending);

// The lane that elect() chooses: the hardware promises no particular one.
uint32_t elected_lane();

// The collective in the caller's terms: body(A* const* lanes, uint32_t mask), a lambda that captures
// nothing.
template <class A, class Body>
inline void warp_collective(const char* name, uint32_t mask, A& arguments, Body) {
  collective(name, mask, &arguments,
             [](void* const* lanes, uint32_t m) { Body{}(reinterpret_cast<A* const*>(lanes), m); });
}

// The time, which passes while nothing happens: a millisecond with each look of all that spin.
uint64_t clock();

// ---- barriers
void sync_warp(uint32_t mask);
enum class Vote : uint8_t { none, any, all };
bool sync_block(Vote vote, bool predicate);
void sync_named(uint32_t barrier, uint32_t threads, bool wait);
void cluster_arrive(bool release);
void cluster_wait();
void wait_for_prerequisites();
void set_registers(uint32_t count, bool increase);

// ---- mbarriers and copies, by the offset of a barrier or of data in shared memory
void mbarrier_init(uint32_t barrier, uint32_t arrivals);
void mbarrier_invalidate(uint32_t barrier);
void fence_mbarrier_init();
void mbarrier_arrive(uint32_t barrier, uint32_t arrivals, uint32_t bytes);
void mbarrier_arrive_remote(uint32_t rank, uint32_t barrier, Scope scope);
bool mbarrier_wait(uint32_t barrier, uint32_t parity, Scope scope, bool until_done);

void copy_async(uint32_t to, const void* from, uint32_t valid_bytes, uint32_t bytes);
void copy_async_commit();
void copy_async_wait(uint32_t pending);
void copy_async_arrive(uint32_t barrier);

// to[i] += from[i] on `count` elements.
struct Reduction {
  uint32_t element_bytes;
  Access access;
  void (*add)(void* to, const void* from, uint32_t count);
};

void fence_async();
void fence_async_global();
void store_async(uint32_t rank, uint32_t to, const void* value, uint32_t bytes, uint32_t barrier);
// `blocks`: a bit for each block of the cluster; 0 is this block alone.
void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint32_t blocks);
void bulk_store(void* to, uint32_t from, uint32_t bytes, const Reduction* reduction);
void tensor_load(uint32_t to, uint32_t room, const TensorMap& map, const int32_t* at, int ndim,
                 uint32_t barrier, uint32_t blocks);
void tensor_store(const TensorMap& map, const int32_t* at, int ndim, uint32_t from, uint32_t room,
                  const Reduction* reduction);
void bulk_commit();
void bulk_wait(uint32_t pending, bool read_only);

}  // namespace weft::gpu::sim
