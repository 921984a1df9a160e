// Launches. A grid's clusters run one after the other, each until all its threads have exited. From
// the first atomic, or other access that synchronises in global memory, on, several run side by side,
// as many as the seed says, and when all threads do nothing but look at memory, waiting for somebody
// else to change it, one more joins; but never more than the GPU has room for. Where there are several
// streams, each is a GPU of its own. A thread runs until it has to wait, and the choice of the next is
// drawn from the seed: mostly a lane of the same warp, whose stacks are in the cache.
#include "gpu/sim/engine.h"
#include "gpu/math.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "gpu/sim/state.h"

namespace weft::gpu::sim {

thread_local Thread* running = nullptr;

namespace {

// Limits of sm_90, which no weft kernel may exceed.
constexpr uint32_t kMostThreads = 1024, kMostSharedBytes = 227 << 10, kMostClusterBlocks = 16;
// Spinning threads look so often, with nothing happening, before they are declared stuck.
constexpr int kPatience = 1000;
constexpr uint64_t kRound = 1'000'000;  // nanoseconds that pass meanwhile

// A multiprocessor of sm_90. Registers do not count: nobody knows here how many a thread has.
constexpr uint32_t kMostWarps = 64, kMostBlocks = 32, kSharedBytes = 228 << 10,
                   kSystemBytes = 1 << 10;  // of a block's shared memory
// Clusters that run side by side where the grid talks, and threads of theirs: stacks take memory.
constexpr uint64_t kMostCompany = 4, kMostCompanyThreads = 4096;

Engine* active = nullptr;

// Runs the threads that this fiber is used for, one after the other.
[[noreturn]] void fiber_main();

Task* next_task(Engine& e);

void list(Engine& e, Warp& warp) {
  if (warp.listed >= 0) return;
  warp.listed = static_cast<int>(e.ready.size());
  e.ready.push_back(&warp);
}

void unlist(Engine& e, Warp& warp) {
  Warp* last = e.ready.back();
  e.ready[warp.listed] = last;
  last->listed = warp.listed;
  e.ready.pop_back();
  warp.listed = -1;
}

void make_ready(Engine& e, Task& task) {
  task.warp->ready |= 1u << task.index % kWarp;
  list(e, *task.warp);
}

// Everything of a block but its index: threads, warps, barriers, shared memory.
void prepare(Engine& e, Block& block, Cluster& cluster, const ClockRef& start) {
  const LaunchConfig& config = cluster.grid->config;
  block.cluster = &cluster;
  block.live = config.block;
  block.warps.resize((config.block + kWarp - 1) / kWarp);
  block.groups.clear();
  block.groups.resize((config.block + kWarpgroup - 1) / kWarpgroup);
  // What the compiler gives a kernel whose bounds name one block: all registers, in eights.
  const uint32_t registers =
      std::min<uint32_t>(255, 65536 / round_up<uint32_t>(config.block, kWarpgroup)) & ~7u;
  block.registers.assign(block.warps.size(), registers);
  block.register_pool = registers * static_cast<uint32_t>(block.warps.size());
  for (Barrier& barrier : block.barriers) barrier = {};
  block.ended = {};
  block.visitors.clear();
  block.wants_registers.clear();
  block.mbarriers.clear();
  while (block.tasks.size() < config.block) block.tasks.push_back(std::make_unique<Task>());
  for (Warp& warp : block.warps) {
    warp.block = &block;
    warp.ready = 0;
    warp.listed = -1;
    warp.calls.clear();
    std::fill(std::begin(warp.lanes), std::end(warp.lanes), nullptr);
  }
  for (uint32_t i = 0; i < config.block; ++i) {
    Task& task = *block.tasks[i];
    task.index = i;
    task.block = &block.facts;
    task.warp = &block.warps[i / kWarp];
    task.warp->lanes[i % kWarp] = &task;
    task.exited = false;
    task.waits_for = nullptr;
    task.cluster_arrived = false;
    task.copies.reset();
    task.bulk_reads.reset();
    task.bulk_writes.reset();
    task.at_fence = task.pending = {};
    static_cast<Actor&>(task) = {};
    task.cluster = start->cluster;
    task.id = block.facts.cluster_rank * config.block + i;
    task.clock = start;
    task.own[kSelf] = {task.id, task.epoch, 0};
    task.fiber.start(fiber_main);
    make_ready(e, task);
  }
  prepare_shared(block, config.shared_bytes);
}

// The next cluster of the stream's grid begins to run.
void admit(Engine& e, Lane& lane) {
  Grid& grid = *lane.grids[lane.turn];
  const LaunchConfig& config = grid.config;
  const Dim3 size = config.cluster;
  const Dim3 shape = {config.grid.x / size.x, config.grid.y / size.y, config.grid.z / size.z};
  const uint64_t index = (grid.first + grid.admitted++ * grid.stride) % grid.clusters;
  const uint32_t x = static_cast<uint32_t>(index % shape.x) * size.x;
  const uint32_t y = static_cast<uint32_t>(index / shape.x % shape.y) * size.y;
  const uint32_t z = static_cast<uint32_t>(index / shape.x / shape.y) * size.z;

  e.resident.push_back(std::make_unique<Cluster>());
  Cluster& cluster = *e.resident.back();
  cluster.lane = &lane;
  cluster.grid = &grid;
  ++lane.resident;
  const uint32_t blocks = static_cast<uint32_t>(size.count());
  cluster.live = cluster.threads = blocks * config.block;
  ClockRef start = new_clock(++e.admitted);
  if (grid.before) start = fenced_global(merge(start, grid.before));
  for (uint32_t rank = 0; rank < blocks; ++rank) {
    if (e.spare.empty()) e.spare.push_back(std::make_unique<Block>());
    cluster.blocks.push_back(std::move(e.spare.back()));
    e.spare.pop_back();
    Block& block = *cluster.blocks.back();
    block.facts = {{x + rank % size.x, y + rank / size.x % size.y, z + rank / size.x / size.y},
                   config.grid,
                   config.block,
                   rank,
                   blocks};
    prepare(e, block, cluster, start);
  }
}

uint64_t room_for(const LaunchConfig& c, uint32_t multiprocessors) {
  const uint32_t blocks = std::min({kMostBlocks, kMostWarps / ceil_div<uint32_t>(c.block, kWarp),
                                    kSharedBytes / (c.shared_bytes + kSystemBytes)});
  return std::max<uint64_t>(1, uint64_t{multiprocessors} * blocks / c.cluster.count());
}

// Has the stream's grid clusters that do not run yet, and the GPU room for one?
bool may_admit(const Lane& lane) {
  if (lane.turn == lane.grids.size()) return false;
  const Grid& grid = *lane.grids[lane.turn];
  return grid.admitted < grid.clusters && lane.resident < grid.room;
}

// A stream with a cluster that may join those that run; null if there is none.
Lane* next_lane(Engine& e) {
  std::vector<Lane>& lanes = *e.lanes;
  const size_t start = e.options.seed != 0 && lanes.size() > 1 ? e.draw() % lanes.size() : 0;
  for (size_t i = 0; i < lanes.size(); ++i) {
    Lane& lane = lanes[(start + i) % lanes.size()];
    if (may_admit(lane)) return &lane;
  }
  return nullptr;
}

// Streams whose grid has ended go on to the next, and each has as many clusters that run as it should.
void fill(Engine& e) {
  for (Lane& lane : *e.lanes) {
    while (lane.turn < lane.grids.size() &&
           lane.grids[lane.turn]->ended == lane.grids[lane.turn]->clusters) {
      ClockRef known = std::move(lane.grids[lane.turn]->after);
      if (++lane.turn < lane.grids.size()) lane.grids[lane.turn]->before = std::move(known);
    }
    while (may_admit(lane)) {
      const Grid& grid = *lane.grids[lane.turn];
      if (lane.resident >= (grid.talks ? grid.company : 1)) break;
      admit(e, lane);
    }
  }
}

void do_pending(Engine& e, size_t i) {
  const Work work = std::move(e.pending[i].work);
  e.pending.erase(e.pending.begin() + static_cast<std::ptrdiff_t>(i));
  e.progress = true;
  try {
    work();
  } catch (...) {
    e.failure = std::current_exception();
  }
}

// What an ended cluster has left.
void finish_pending(Engine& e, const Cluster& cluster) {
  for (size_t i = 0; i < e.pending.size() && !e.failure;)
    if (e.pending[i].of == &cluster)
      do_pending(e, i);
    else
      ++i;
}

void wake_polling(Engine& e) {
  e.progress = false;
  for (Task* task : e.polling) {
    task->waits_for = nullptr;
    make_ready(e, *task);
  }
  e.polling.clear();
}

// Nobody can run. Lets something happen that may change that; false if there is nothing.
bool stir(Engine& e) {
  if (e.failure) return false;
  if (e.polling.empty() || !e.progress) {
    if (!e.pending.empty()) {  // the oldest where no seed says otherwise
      do_pending(e, e.options.seed == 0 ? 0 : e.draw() % e.pending.size());
      return !e.failure;
    }
    if (e.polling.empty()) return false;
    if (Lane* lane = next_lane(e))
      admit(e, *lane);
    else if (++e.fruitless > kPatience)
      return false;
    else
      e.now += kRound;
  } else {
    e.fruitless = 0;
  }
  wake_polling(e);
  return true;
}

// The thread to run, which is taken from those that can; null where none can.
Task* next_task(Engine& e) {
  const bool random = e.options.seed != 0;
  while (e.ready.empty())
    if (!stir(e)) return nullptr;
  const uint64_t drawn = random ? e.draw() : 0;
  // Who waits for memory need not be the last to see that it has changed.
  if (random && e.progress && drawn >> 58 == 0 && !e.polling.empty()) {
    e.fruitless = 0;
    wake_polling(e);
  }
  Warp* warp = e.current;
  if (!warp || warp->listed < 0 || drawn % 8 == 7) {
    const size_t n = e.ready.size();
    warp = e.ready[random ? (drawn >> 8) % n : e.turn++ % n];
    e.current = warp;
  }
  const int start = static_cast<int>(drawn >> 3 & 31);
  const int l = (std::countr_zero(std::rotr(warp->ready, start)) + start) % kWarp;
  warp->ready &= ~(1u << l);
  if (!warp->ready) unlist(e, *warp);
  return warp->lanes[l];
}

// Leaves the running fiber, `from`, for that of `task`.
void go(Fiber& from, Task& task) {
  running = &task;
  from.switch_to(task.fiber);
}

void fail_launch(Engine& e, std::exception_ptr failure) {
  if (!e.failure) e.failure = std::move(failure);
  self().fiber.switch_to(*e.host);
}

// From a thread that cannot go on.
void leave(Engine& e, Task& task) {
  Task* next = next_task(e);
  if (!next) {
    fail_launch(
        e, e.failure ? e.failure : std::make_exception_ptr(std::runtime_error(deadlock_report(e))));
  } else if (next != &task) {
    go(task.fiber, *next);
  }
}

void exit_thread(Engine& e, Task& task) {
  Block& block = block_of(task);
  Cluster& cluster = *block.cluster;
  task.exited = true;
  e.progress = true;
  --block.live;
  --cluster.live;
  cluster_exit(task);
  if (cluster.live == 0)
    task.fiber.switch_to(*e.host);
  else
    leave(e, task);
}

[[noreturn]] void fiber_main() {
  Engine& e = engine();
  self().fiber.entered(*e.host);
  std::exception_ptr failure;
  try {
    grid_of(self()).body();
    check_exit(self());
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure)
    fail_launch(e, std::move(failure));
  else
    exit_thread(e, self());
  __builtin_unreachable();  // the fiber is started anew for its next thread
}

void check_config(const LaunchConfig& c, const char* kernel) {
  const auto expect = [&](bool good, auto&&... what) {
    check(good, "simulator: launch of ", kernel, ": ", what...);
  };
  expect(c.grid.count() > 0 && c.grid.y <= 65535 && c.grid.z <= 65535, "grid of ", c.grid.x, " × ",
         c.grid.y, " × ", c.grid.z, " blocks");
  expect(c.block > 0 && c.block <= kMostThreads, "blocks of ", c.block, " threads");
  expect(c.shared_bytes <= kMostSharedBytes, c.shared_bytes, " bytes of shared memory");
  expect(c.cluster.count() > 0 && c.cluster.count() <= kMostClusterBlocks &&
             c.grid.x % c.cluster.x == 0 && c.grid.y % c.cluster.y == 0 &&
             c.grid.z % c.cluster.z == 0,
         "clusters of ", c.cluster.x, " × ", c.cluster.y, " × ", c.cluster.z,
         " blocks in a grid of ", c.grid.x, " × ", c.grid.y, " × ", c.grid.z);
}

}  // namespace

Options& options() {
  static Options instance;
  return instance;
}

Engine& engine() { return *active; }

uint64_t clock() {
  WEFT_SIM_ENTER;
  return ++engine().now;
}

uint64_t Engine::draw() {  // splitmix64, Steele, Lea, Flood: OOPSLA 2014
  uint64_t z = random += 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

namespace {

std::unique_ptr<Grid> make_grid(const LaunchConfig& config, const char* kernel,
                                std::function<void()> body) {
  check_config(config, kernel);
  auto grid = std::make_unique<Grid>();
  grid->config = config;
  grid->kernel = kernel;
  grid->body = std::move(body);
  grid->clusters = config.grid.count() / config.cluster.count();
  return grid;
}

void run_together(std::vector<Lane>& lanes) {
  const RegistryLock lock;
  static Engine& e = *new Engine;  // its stacks and blocks serve the next launch, too
  active = &e;
  Fiber host;
  e.host = &host;
  e.lanes = &lanes;
  e.dependent = lanes.size() == 1 && lanes[0].grids[0]->config.dependent;
  e.options = options();
  e.random = e.options.seed;
  e.admitted = e.turn = e.now = 0;
  for (Lane& lane : lanes)
    for (const auto& grid : lane.grids) {
      const LaunchConfig& config = grid->config;
      grid->room = room_for(config, e.options.multiprocessors);
      if (e.options.seed == 0 || grid->clusters <= 1) continue;
      const uint64_t most = kMostCompanyThreads / (config.cluster.count() * config.block);
      grid->company = 1 + e.draw() % std::clamp<uint64_t>(most, 1, kMostCompany);
      grid->first = e.draw() % grid->clusters;
      do grid->stride = 1 + e.draw() % (grid->clusters - 1);
      while (std::gcd(grid->stride, grid->clusters) != 1);
    }
  e.current = nullptr;
  e.progress = false;
  e.fruitless = 0;
  e.failure = nullptr;
  e.acting = nullptr;
  e.acting_for = nullptr;
  ++e.launch;

  for (fill(e); !e.failure && !e.resident.empty(); fill(e)) {
    if (Task* task = next_task(e))
      go(host, *task);  // comes back when a cluster has ended, or with a failure
    else if (!e.failure)
      e.failure = std::make_exception_ptr(std::runtime_error(deadlock_report(e)));
    running = nullptr;
    e.current = nullptr;
    for (size_t i = e.resident.size(); i-- > 0;) {
      Cluster& cluster = *e.resident[i];
      if (cluster.live == 0) finish_pending(e, cluster);
      if (cluster.live > 0 && !e.failure) continue;
      ++cluster.grid->ended;
      --cluster.lane->resident;
      for (auto& block : cluster.blocks) e.spare.push_back(std::move(block));
      e.resident.erase(e.resident.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  e.resident.clear();
  e.ready.clear();
  e.polling.clear();
  e.published.clear();
  e.pending.clear();
  if (e.failure) std::rethrow_exception(e.failure);
}

}  // namespace

struct Streams::Launches {
  std::vector<Lane> lanes;
};

namespace {
thread_local Streams::Launches* waiting = nullptr;
}  // namespace

Streams::Streams() : launches_(new Launches) {
  check(!waiting, "simulator: Streams within Streams");
  waiting = launches_.get();
}
Streams::~Streams() { waiting = nullptr; }
Streams::Pause::Pause() : streams_(std::exchange(waiting, nullptr)) {}
Streams::Pause::~Pause() { waiting = streams_; }

void Streams::run() {
  Launches now = std::move(*launches_);
  launches_->lanes.clear();
  for (Lane& lane : now.lanes)
    for (size_t i = 0; i + 1 < lane.grids.size(); ++i) lane.grids[i]->followed = true;
  run_together(now.lanes);
}

void run(const LaunchConfig& config, const char* kernel, std::function<void()> body) {
  std::unique_ptr<Grid> grid = make_grid(config, kernel, std::move(body));
  if (!waiting) {
    std::vector<Lane> lanes(1);
    lanes[0].grids.push_back(std::move(grid));
    return run_together(lanes);
  }
  check(!config.dependent, "simulator: launch of ", kernel, ": dependent, among Streams");
  auto lane = std::find_if(waiting->lanes.begin(), waiting->lanes.end(),
                           [&](const Lane& l) { return l.stream == config.stream; });
  if (lane == waiting->lanes.end()) {
    waiting->lanes.emplace_back().stream = config.stream;
    lane = waiting->lanes.end() - 1;
  }
  lane->grids.push_back(std::move(grid));
}

void wait(const char* for_what, uint64_t detail) {
  Task& task = self();
  task.waits_for = for_what;
  task.detail = detail;
  leave(engine(), task);
}

void wake(Task& task) {
  Engine& e = engine();
  task.waits_for = nullptr;
  e.progress = true;
  make_ready(e, task);
}

void start_work(Work work) {
  Engine& e = engine();
  if (e.options.late_completion)
    e.pending.push_back({block_of(self()).cluster, std::move(work)});
  else
    work();
}

void talk() {
  Grid& grid = grid_of(self());
  if (grid.talks) return;
  grid.talks = true;
  fill(engine());
}

void poll() {
  Engine& e = engine();
  Task& task = self();
  e.polling.push_back(&task);
  wait("memory that it looks at to change");
}

void linger() {
  Engine& e = engine();
  if (e.options.seed == 0 || e.draw() % 2) return;
  wake_polling(e);
  make_ready(e, self());
  e.current = nullptr;
  leave(e, self());
}

}  // namespace weft::gpu::sim
