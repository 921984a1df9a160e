// The kernels of csrc/comm/cuda on the simulator, as they are and with a fault each: three ranks of one
// process, each of which is a stream. test_cuda_mutants.py makes the copies with faults and variants.h,
// which includes them, each in a namespace of its own.
//
//   mutants <variant> <kernel> <case> <seed>
//
// calls       all ranks call several times, and get what they should
// absent      rank 2 does not come until the others have given up
// different   rank 2 calls something else
// closed      rank 2 has closed
//
// says what has gone wrong, and fails where anything has.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "gpu/sim/simulator.h"
#include "variants.h"

namespace weft::comm::cuda {
namespace {

using gpu::LaunchConfig;
using gpu::sim::Allocation;

constexpr int kWorld = 3;
constexpr uint32_t kBlocks = 2, kThreads = 64;
constexpr int64_t kPiece = 32, kMost = 300;  // elements
constexpr int64_t kSlotBytes = kPiece * kWorld * 4;
constexpr uint64_t kSoon = 100'000'000, kLater = 500'000'000;  // nanoseconds

using Launch = void (*)(const Collective&, const Group&, const LaunchConfig&);
template <auto kKernel, class Call>
void start(const Collective& c, const Group& group, const LaunchConfig& config) {
  gpu::launch<kKernel>(config,
                       Call{c, group, c.signature(), kPiece, c.n % gpu::kVecSize<float> == 0});
}

struct Variant {
  std::string name, kernel;
  Launch launch;

  Kind kind() const {
    return kernel == "all_gather"       ? Kind::all_gather
           : kernel == "reduce_scatter" ? Kind::reduce_scatter
           : kernel == "int8"           ? Kind::all_reduce_int8
                                        : Kind::all_reduce;
  }
};
#define VARIANT(name, kernel) {#name, #kernel, start<name::kernel##_kernel<float>, name::Call>},
const Variant kVariants[] = {VARIANTS};
#undef VARIANT

float value(int rank, int call, int64_t i) {
  return static_cast<float>(1000 * rank + 7 * call + i);
}

// A rank's x and y in one call.
struct Arrays {
  std::vector<float> x, y;
  Allocation in, out;

  Arrays(Kind kind, int rank, int call, int64_t n)
      : x(static_cast<size_t>(kind == Kind::reduce_scatter ? kWorld * n : n)),
        y(static_cast<size_t>(kind == Kind::all_gather ? kWorld * n : n)),
        in(x.data(), x.size() * 4, Allocation::Rights::read, Allocation::Contents::initialised),
        out(y.data(), y.size() * 4, Allocation::Rights::read_write, Allocation::Contents::poison) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = value(rank, call, static_cast<int64_t>(i));
  }
};

class Rank {
 public:
  Rank()
      : memory_(static_cast<std::byte*>(std::aligned_alloc(128, kBytes))),
        allocations_{{memory_.get(), sizeof(Header), Allocation::Rights::read_write,
                      Allocation::Contents::initialised},
                     {slots(), kBytes - sizeof(Header), Allocation::Rights::read_write,
                      Allocation::Contents::poison},
                     {&status, sizeof status, Allocation::Rights::read_write,
                      Allocation::Contents::initialised}} {
    initialise(header());
    for (ChannelState& channel : header().channels) {  // the first call's counters wrap
      channel.event = -3u;
      for (Flag& flag : channel.from) flag.published = -3u;
    }
  }

  std::byte* memory() const { return memory_.get(); }
  Header& header() const { return *reinterpret_cast<Header*>(memory_.get()); }
  std::string slot_bytes() const {
    return {reinterpret_cast<const char*>(slots()), kBytes - sizeof(Header)};
  }

  Group group;
  Status status{};
  std::vector<std::unique_ptr<Arrays>> calls;

  static constexpr size_t kBytes = sizeof(Header) + kBlocks * 2 * kSlotBytes;

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::byte* slots() const { return memory_.get() + sizeof(Header); }

  std::unique_ptr<std::byte, Free> memory_;
  Allocation allocations_[3];
};

class Ranks {
 public:
  explicit Ranks(const Variant& variant) : variant_(variant) {
    for (int r = 0; r < kWorld; ++r) {
      Group& group = ranks_[r].group;
      for (int s = 0; s < kWorld; ++s) group.memory[s] = ranks_[s].memory();
      group.multicast = const_cast<std::byte*>(multicast_.address);
      group.status = &ranks_[r].status;
      group.slot_bytes = kSlotBytes;
      group.timeout = r == 0 ? kSoon : kLater;
      group.rank = r;
      group.world = kWorld;
    }
  }

  Rank& operator[](int r) { return ranks_[r]; }

  // Puts a call of some ranks into their streams.
  void call(const std::vector<int>& who, int64_t n, Reduction of_rank_2 = Reduction::sum) {
    for (const int r : who) {
      auto& calls = ranks_[r].calls;
      calls.push_back(
          std::make_unique<Arrays>(variant_.kind(), r, static_cast<int>(calls.size()), n));
      Collective c;
      c.kind = variant_.kind();
      if (c.kind == Kind::all_reduce_int8) c.group = kPiece;
      c.reduction = r == 2 ? of_rank_2 : Reduction::sum;
      c.n = n;
      c.x = calls.back()->x.data();
      c.y = calls.back()->y.data();
      variant_.launch(c, ranks_[r].group,
                      {.grid = {kBlocks}, .block = kThreads, .stream = &ranks_[r].status});
    }
  }

  void expect(int r, Trouble trouble) {
    constexpr const char* kNames[] = {"none", "late", "mismatch", "gave_up", "closed"};
    const auto name = [&](Trouble t) { return kNames[static_cast<int>(t)]; };
    const Trouble found = ranks_[r].status.trouble;
    check(found == trouble, "rank ", r, " has trouble ", name(found), ", expected ", name(trouble));
  }

  void expect_results() {
    // Of int8: what rounding takes from values of up to 2400.
    const float tolerance = variant_.kind() == Kind::all_reduce_int8 ? kWorld * 2400 / 254.0f : 0;
    for (int r = 0; r < kWorld; ++r) {
      expect(r, Trouble::none);
      for (int call = 0; call < static_cast<int>(ranks_[r].calls.size()); ++call) {
        const Arrays& arrays = *ranks_[r].calls[static_cast<size_t>(call)];
        check(arrays.out.written(), "rank ", r, ", call ", call, ": y has not been written");
        for (int64_t i = 0; i < static_cast<int64_t>(arrays.y.size()); ++i) {
          const float y = arrays.y[static_cast<size_t>(i)], want = expected(arrays, r, call, i);
          check(std::abs(y - want) <= tolerance, "rank ", r, ", call ", call, ": y is wrong, ", y,
                ", expected ", want);
        }
      }
    }
  }

 private:
  float expected(const Arrays& arrays, int rank, int call, int64_t i) const {
    const auto n = static_cast<int64_t>(std::min(arrays.x.size(), arrays.y.size()));
    if (variant_.kind() == Kind::all_gather) return value(static_cast<int>(i / n), call, i % n);
    if (variant_.kind() == Kind::reduce_scatter) i += rank * n;
    float sum = 0;
    for (int s = 0; s < kWorld; ++s) sum += value(s, call, i);
    return sum;
  }

  const Variant& variant_;
  Rank ranks_[kWorld];
  gpu::sim::Multicast multicast_{reinterpret_cast<void*>(uintptr_t{1} << 60),
                                 Rank::kBytes,
                                 {ranks_[0].memory(), ranks_[1].memory(), ranks_[2].memory()}};
};

void calls(Ranks& ranks) {
  gpu::sim::Streams streams;
  for (const int64_t n : {kMost, int64_t{7}, kMost, int64_t{1}, int64_t{100}})
    ranks.call({0, 1, 2}, n);
  streams.run();
  ranks.expect_results();
}

void absent(Ranks& ranks) {
  gpu::sim::Streams streams;
  ranks.call({0, 1}, kPiece);
  streams.run();
  ranks.expect(0, Trouble::late);
  ranks.expect(1, Trouble::gave_up);
  const std::string before = ranks[0].slot_bytes();
  ranks.call({0, 1, 2}, kPiece);
  streams.run();
  ranks.expect(2, Trouble::gave_up);
  check(ranks[0].slot_bytes() == before, "rank 0 has failed, and still writes");
}

void different(Ranks& ranks) {
  gpu::sim::Streams streams;
  ranks.call({0, 1, 2}, kMost, Reduction::max);
  streams.run();
  bool found = false;
  for (int r = 0; r < kWorld; ++r) {
    const Trouble trouble = ranks[r].status.trouble;
    found |= trouble == Trouble::mismatch;
    if (trouble != Trouble::mismatch) ranks.expect(r, Trouble::gave_up);
  }
  check(found, "no rank has found that rank 2 calls something else");
}

void closed(Ranks& ranks) {
  for (const int r : {0, 1}) ranks[r].header().told[2] = kClosed;
  gpu::sim::Streams streams;
  ranks.call({0}, kMost);
  streams.run();
  ranks.expect(0, Trouble::closed);
}

struct Case {
  std::string name;
  void (*run)(Ranks&);
};
const Case kCases[] = {
    {"calls", calls}, {"absent", absent}, {"different", different}, {"closed", closed}};

void run(const std::string& name, const std::string& kernel, const std::string& which) {
  for (const Variant& variant : kVariants)
    for (const Case& c : kCases)
      if (variant.name == name && variant.kernel == kernel && c.name == which) {
        Ranks ranks(variant);
        return c.run(ranks);
      }
  weft::fail("there is no variant ", name, " of ", kernel, ", or no case ", which);
}

}  // namespace
}  // namespace weft::comm::cuda

int main(int argc, char** argv) {
  if (argc != 5) return std::puts("mutants <variant> <kernel> <case> <seed>"), 2;
  weft::gpu::sim::options() = {std::strtoull(argv[4], nullptr, 10), false, true, 4};
  try {
    weft::comm::cuda::run(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
}
