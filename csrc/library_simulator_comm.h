// The collectives in the simulator: all ranks in one process, their memory the host's. Calls wait
// until run(), which lets every rank's go beside those of the others.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "comm/cuda/communicator.h"
#include "library_comm.h"
#include "library_fused.h"
#include "library_simulator.h"
#include "library_simulator_int8.h"
#include "library_simulator_norm.h"

namespace weft::simulator {

using comm::cuda::Group;
using comm::cuda::Header;
using comm::cuda::Status;

// What is between begin() and run().
struct Round {
  sim::Streams streams;
  gpu::Stream last = nullptr;                 // of the collective before
  std::vector<std::function<void()>> checks;  // of what has been written, which hold the memory
};
inline std::unique_ptr<Round>& round() {
  static std::unique_ptr<Round> instance;
  return instance;
}

// One rank's memory, as every rank of the process may reach it.
class RankMemory {
 public:
  RankMemory(uint32_t blocks, int64_t slot_bytes)
      : bytes_(static_cast<size_t>(Group::bytes(blocks, slot_bytes))),
        data_(static_cast<std::byte*>(::operator new(bytes_, kAlign))) {
    comm::cuda::initialise(*reinterpret_cast<Header*>(data_));
    using sim::Allocation;
    const size_t head = sizeof(Header);
    allowed_.emplace_back(data_, head, Allocation::Rights::read_write,
                          Allocation::Contents::initialised);
    allowed_.emplace_back(data_ + head, bytes_ - head, Allocation::Rights::read_write,
                          Allocation::Contents::poison);
    allowed_.emplace_back(&status_, sizeof status_, Allocation::Rights::read_write,
                          Allocation::Contents::initialised);
  }
  ~RankMemory() {
    allowed_.clear();
    ::operator delete(data_, kAlign);
  }
  RankMemory(const RankMemory&) = delete;
  RankMemory& operator=(const RankMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Status* status() { return &status_; }

 private:
  static constexpr std::align_val_t kAlign{128};

  size_t bytes_;
  std::byte* data_;
  Status status_{};
  std::vector<sim::Allocation> allowed_;
};

struct RankMemories {
  std::vector<std::unique_ptr<RankMemory>> ranks;
  std::unique_ptr<sim::Multicast> multicast;
};

class Rank final : public comm::cuda::Communicator {
 public:
  Rank(const comm::cuda::Options& options, int rank, std::shared_ptr<RankMemories> memories)
      : Communicator(options), memories_(std::move(memories)) {
    group_.rank = rank;
    for (int r = 0; r < group_.world; ++r) group_.memory[r] = memories_->ranks[r]->data();
    if (memories_->multicast)
      group_.multicast = const_cast<std::byte*>(memories_->multicast->address);
    group_.status = memories_->ranks[rank]->status();
  }

  using Communicator::run;
  void run(const comm::Collective& c) override {
    check(round() != nullptr, "simulator: a collective outside of begin() and run()");
    const auto memory = std::make_shared<Memory>();
    const bool scatters = c.kind == comm::Kind::reduce_scatter,
               gathers = c.kind == comm::Kind::all_gather;
    const int64_t in = scatters ? c.n * world() : c.n, out = gathers ? c.n * world() : c.n;
    if (c.x == c.y) {
      memory->update(c.y, c.dtype, out);
    } else {
      memory->input(c.x, c.dtype, in);
      memory->output(c.y, c.dtype, out);
    }
    if (c.bias) memory->input(c.bias, c.dtype, c.columns);
    round()->checks.push_back([memory] { memory->check_written(); });
    round()->last = reinterpret_cast<gpu::Stream>(handle());
    launch(c, round()->last);
  }

  // As a rank that has finished what it had to do.
  void close() const {
    for (int r = 0; r < world(); ++r)
      if (r != rank()) group_.header(r)->told[rank()] = comm::cuda::kClosed;
  }

 private:
  void fork(const comm::Collective& c) override { run(c); }
  void join() override {}

  std::shared_ptr<RankMemories> memories_;
};

// blocks: of each rank, which are as many on all where nothing is to go wrong.
inline std::vector<int64_t> create_ranks(std::vector<int64_t> blocks, int64_t slot_bytes,
                                         double timeout, bool nvlink, bool multicast,
                                         std::vector<int64_t> sizes, std::string algorithms) {
  comm::cuda::Options options{timeout,
                              {static_cast<int>(blocks.size()), nvlink, multicast},
                              {0, slot_bytes},
                              comm::cuda::table_of(sizes, algorithms)};
  const auto most = static_cast<uint32_t>(*std::max_element(blocks.begin(), blocks.end()));
  auto memories = std::make_shared<RankMemories>();
  std::vector<void*> copies;
  for (size_t r = 0; r < blocks.size(); ++r) {
    memories->ranks.push_back(std::make_unique<RankMemory>(most, slot_bytes));
    copies.push_back(memories->ranks.back()->data());
  }
  static uintptr_t address = uintptr_t{1} << 60;  // nobody's
  if (multicast) {
    const size_t bytes = memories->ranks[0]->bytes();
    memories->multicast = std::make_unique<sim::Multicast>(reinterpret_cast<void*>(address), bytes,
                                                           std::move(copies));
    address += (bytes + 127) / 128 * 128;
  }
  static int64_t next = 0;
  std::vector<int64_t> handles;
  for (size_t r = 0; r < blocks.size(); ++r) {
    handles.push_back(++next);
    options.budget.blocks = static_cast<uint32_t>(blocks[r]);
    comm::cuda::Communicator::enter(next,
                                    std::make_shared<Rank>(options, static_cast<int>(r), memories));
  }
  return handles;
}

inline void begin_round() {
  round().reset();
  round() = std::make_unique<Round>();
}

// What begin_round() has let wait. Whoever calls a rank that fails finds results unwritten.
inline void run_round(bool whole) {
  const std::unique_ptr<Round> all = std::move(round());
  all->streams.run();
  for (const auto& check_written : all->checks)
    if (whole) check_written();
}

}  // namespace weft::simulator

namespace weft {

struct SimulatorComm : simulator::Backend {
  using Communicator = comm::cuda::Communicator;
};

// Products at once, as torch's are.
struct SimulatorProducts : SimulatorInt8 {
  static void linear(const int8::Linear& p) {
    const gpu::sim::Streams::Pause at_once;
    SimulatorInt8::linear(p);
  }
};

// Norms behind a collective, in its stream.
struct SimulatorFused : SimulatorNorm {
  static constexpr bool kKeepsProducts = true;
  using Communicator = comm::cuda::Communicator;
  using Int8 = SimulatorProducts;
  static void keep(const Tensor& t) {
    if (simulator::round()) simulator::round()->checks.push_back([t] {});
  }
  static void forward(const norm::Forward& p) {
    const auto memory = std::make_shared<NormMemory>(p.N, p.C);
    describe(p, *memory);
    norm::cuda::forward(p, {simulator::limits(), simulator::round()->last});
    simulator::round()->checks.push_back([memory] { memory->check_written(); });
  }
};

}  // namespace weft
