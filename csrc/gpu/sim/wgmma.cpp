// Matrix products of a warpgroup: what their descriptors say, when they are made, and who touches
// their registers meanwhile.
//
// A product is handed to the warpgroup's engine, which makes it at once or, with late completion,
// when it is waited for. The sums of an accumulator are kept aside while products into it are under
// way; in late mode its registers hold a NaN meanwhile. Registers are known by their address: what
// they held at the fence, or since a product was put there, they must still hold at the next wgmma.
#include "gpu/sim/wgmma.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "gpu/sim/matrix.h"
#include "gpu/sim/state.h"

namespace weft::gpu::sim {
namespace {

constexpr uint32_t kM = 64;
// A signalling NaN, whose bits change when somebody calculates with it; and a large number.
constexpr uint32_t kPoison = 0x7FBBFBFB;

// Registers that a thread has named in wgmma_fence, or that a wgmma has written, as they are left.
struct Named {
  Registers registers;
  std::vector<std::byte> content;
};

// An accumulator of the warpgroup with products under way.
struct Flight {
  Registers d[kWarpgroup];
  uint32_t n, group = 0;  // the latest product's
  bool integer;
  std::variant<std::vector<float>, std::vector<int32_t>> sums;  // [64, n]
  uint32_t products = 0;                                        // that have not been made
  std::vector<std::byte> content;                               // of the registers, by thread
};

std::string of_thread(uint32_t thread) {
  return " of thread " + std::to_string(thread) + " of the warpgroup";
}

}  // namespace

struct WgmmaState {
  std::vector<Named> named[kWarpgroup];
  std::vector<std::shared_ptr<Flight>> flights;

  // That of the thread's accumulator; null if it has no products under way.
  std::shared_ptr<Flight> flight(uint32_t thread, const void* d) const {
    for (const auto& f : flights)
      if (f->d[thread].at == d) return f;
    return nullptr;
  }
  void name(uint32_t thread, const Registers& r) {
    forget(thread, r);
    const auto* from = static_cast<const std::byte*>(r.at);
    named[thread].push_back({r, {from, from + r.bytes}});
  }
  void forget(uint32_t thread, const Registers& r) {
    auto& all = named[thread];
    all.erase(std::remove_if(all.begin(), all.end(),
                             [&](const Named& n) { return n.registers.at == r.at; }),
              all.end());
  }
  // That they may be used by a product.
  void expect_fenced(uint32_t thread, const Registers& r, const char* what) const {
    for (const Named& n : named[thread]) {
      if (n.registers.at != r.at || n.registers.bytes != r.bytes) continue;
      if (std::memcmp(r.at, n.content.data(), r.bytes) != 0)
        error(std::string("wgmma: the ") + what + of_thread(thread) +
              " has changed since the wgmma_fence that named it");
      return;
    }
    error(std::string("wgmma without wgmma_fence: the ") + what + of_thread(thread) +
          " has not been named in one, or not since the wgmma_wait that did");
  }
};

namespace {

GroupRendezvous& group() { return block_of(self()).groups[self().index / kWarpgroup]; }
WgmmaState& state() {
  GroupRendezvous& g = group();
  if (!g.wgmma) g.wgmma = std::make_shared<WgmmaState>();
  return *g.wgmma;
}

std::byte* content_of(Flight& f, uint32_t thread) {
  return f.content.data() + size_t{thread} * f.d[0].bytes;
}

// That nobody has written to the registers since the products have been handed over.
void expect_untouched(Flight& f, uint32_t first, uint32_t count) {
  for (uint32_t t = first; t < first + count; ++t)
    if (std::memcmp(f.d[t].at, content_of(f, t), f.d[t].bytes) != 0)
      error("the accumulator" + of_thread(t) +
            " was written to while a wgmma was under way: no wgmma_wait covers it");
}

// f(thread, i, sum) for each element of the accumulator.
template <class D, class F>
void each_element(Flight& flight, const F& f) {
  auto& sums = std::get<std::vector<D>>(flight.sums);
  for (uint32_t t = 0; t < kWarpgroup; ++t)
    for (uint32_t i = 0; i < flight.n / 2; ++i) {
      const Place at = WgmmaAccumulator<D, 8>::place(t, i);
      f(t, i, sums[at.row * flight.n + at.column]);
    }
}

// The registers become the sums.
template <class D>
void land(Flight& f) {
  expect_untouched(f, 0, kWarpgroup);
  each_element<D>(f, [&](uint32_t t, uint32_t i, const D& sum) {
    std::memcpy(static_cast<std::byte*>(f.d[t].at) + i * sizeof(D), &sum, sizeof(D));
  });
  for (uint32_t t = 0; t < kWarpgroup; ++t) std::memcpy(content_of(f, t), f.d[t].at, f.d[t].bytes);
}

// The registers go into the sums, and are poisoned where the products come late.
template <class D>
std::shared_ptr<Flight> take_off(const WgmmaCall* const* calls) {
  auto flight = std::make_shared<Flight>();
  Flight& f = *flight;
  for (uint32_t t = 0; t < kWarpgroup; ++t) f.d[t] = calls[t]->d;
  f.n = calls[0]->n;
  f.integer = std::is_same_v<D, int32_t>;
  f.sums = std::vector<D>(size_t{kM} * f.n);
  each_element<D>(f, [&](uint32_t t, uint32_t i, D& sum) {
    std::memcpy(&sum, static_cast<std::byte*>(f.d[t].at) + i * sizeof(D), sizeof(D));
  });
  f.content.resize(size_t{f.d[0].bytes} * kWarpgroup);
  for (uint32_t t = 0; t < kWarpgroup; ++t) {
    if (engine().options.late_completion)
      for (uint32_t i = 0; i < f.n / 2; ++i)
        std::memcpy(static_cast<std::byte*>(f.d[t].at) + i * 4, &kPoison, 4);
    std::memcpy(content_of(f, t), f.d[t].at, f.d[t].bytes);
  }
  return flight;
}

// ---- operands

// A descriptor; PTX ISA: Matrix Descriptor Format.
struct Operand {
  uint32_t start, leading, stride;  // bytes
  uint32_t swizzle;                 // bytes of a row: 16, 32, 64, 128

  explicit Operand(uint64_t bits) {
    constexpr uint64_t kZero = 0x3FF1'C000'C000'C000;
    if (bits & kZero) error("wgmma: a matrix descriptor has bits set that are always 0");
    if (bits >> 49 & 7)
      error("wgmma: a matrix descriptor with a base offset: tiles are aligned to 1024 bytes here");
    start = (bits & 0x3FFF) << 4;
    leading = (bits >> 16 & 0x3FFF) << 4;
    stride = (bits >> 32 & 0x3FFF) << 4;
    swizzle = bits >> 62 ? 256u >> (bits >> 62) : 16;
  }

  // Where 16 bytes of the matrix lie, an offset in shared memory: the first one is (mn, k), and
  // they go on in the operand's direction. `elements` are in 16 bytes.
  uint32_t at(Major major, uint32_t mn, uint32_t k, uint32_t elements) const {
    const bool plain = swizzle == 16;
    const uint32_t along = (major == Major::k ? k : mn) / elements;  // in units of 16 bytes
    const uint32_t row = major == Major::k ? mn : k;
    const uint32_t in_row = swizzle / 16;
    uint32_t offset = start + row % 8 * swizzle;
    if (major == Major::k)
      offset += row / 8 * stride + (plain ? along * leading : along * 16);
    else if (plain)
      offset += along * stride + row / 8 * leading;
    else
      offset += along % in_row * 16 + along / in_row * leading + row / 8 * stride;
    offset ^= (offset >> 7 & (in_row - 1)) << 4;
    if (offset < shared_window(0))
      error("wgmma: a matrix descriptor leads to an address before shared memory");
    return offset - shared_window(0);
  }
};

// One product, as it was handed over.
template <class T>
struct Product {
  using D = std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>;
  static constexpr uint32_t kK = 32 / sizeof(T), kUnit = 16 / sizeof(T);

  WgmmaCall call;
  GroupEngine engine;
  std::vector<float> a;  // from registers: [64, K]

  // [MN, K] at `to`, an element (mn, k) at mn · mn_step + k · k_step. warp_of(row) reads it.
  template <class WarpOf>
  void read(uint64_t descriptor, Major major, uint32_t mn_size, float* to, uint32_t mn_step,
            uint32_t k_step, const WarpOf& warp_of) const {
    const Operand operand(descriptor);
    const uint32_t mn_unit = major == Major::mn ? kUnit : 1, k_unit = major == Major::k ? kUnit : 1;
    for (uint32_t mn = 0; mn < mn_size; mn += mn_unit)
      for (uint32_t k = 0; k < kK; k += k_unit) {
        T elements[kUnit];
        std::memcpy(elements,
                    engine.shared(warp_of(mn), operand.at(major, mn, k, kUnit), 16, Access::read),
                    16);
        float* first = to + mn * mn_step + k * k_step;
        for (uint32_t i = 0; i < kUnit; ++i)
          first[i * (major == Major::k ? k_step : mn_step)] = decoded(elements[i]);
      }
  }

  void make(Flight& f) {
    if (a.empty()) {
      a.resize(kM * kK);
      read(call.desc_a, call.major_a, kM, a.data(), kK, 1, [](uint32_t m) { return m / 16; });
    }
    std::vector<float> b(kK * call.n);
    // All warps read all of B; each is asked for its share.
    read(call.desc_b, call.major_b, call.n, b.data(), 1, call.n,
         [](uint32_t n) { return n / 8 % 4; });
    auto& sums = std::get<std::vector<D>>(f.sums);
    if (!call.accumulate) std::fill(sums.begin(), sums.end(), D{});
    if (call.minus)
      for (float& x : a) x = -x;
    multiply_add(sums.data(), a.data(), b.data(), kM, call.n, kK);
    if (--f.products == 0) land<D>(f);
  }
};

void expect_same(const WgmmaCall* const* calls) {
  const WgmmaCall& first = *calls[0];
  for (uint32_t t = 1; t < kWarpgroup; ++t) {
    const WgmmaCall& other = *calls[t];
    if (other.desc_a != first.desc_a || other.desc_b != first.desc_b)
      error("wgmma: the descriptors" + of_thread(t) + " are not those of thread 0");
    if (other.accumulate != first.accumulate || other.n != first.n || other.type != first.type ||
        other.minus != first.minus || !other.a.at != !first.a.at ||
        other.major_a != first.major_a || other.major_b != first.major_b)
      error("wgmma: the call" + of_thread(t) + " is not that of thread 0");
  }
}

template <class T>
void hand_over(const WgmmaCall* const* calls) {
  using P = Product<T>;
  const WgmmaCall& first = *calls[0];
  WgmmaState& s = state();
  std::shared_ptr<Flight> flight = s.flight(0, first.d.at);
  if (!flight) {
    for (uint32_t t = 0; t < kWarpgroup; ++t) {
      s.expect_fenced(t, calls[t]->d, "accumulator");
      s.forget(t, calls[t]->d);
    }
    flight = take_off<typename P::D>(calls);
    s.flights.push_back(flight);
  } else {
    if (flight->n != first.n || flight->integer != std::is_same_v<T, int8_t>)
      error("wgmma into an accumulator that a wgmma of another shape has under way");
    expect_untouched(*flight, 0, kWarpgroup);
  }
  const auto product = std::make_shared<P>();
  product->call = first;
  if (first.a.at) {
    product->a.resize(kM * P::kK);
    for (uint32_t t = 0; t < kWarpgroup; ++t) {
      s.expect_fenced(t, calls[t]->a, "A in registers");
      std::array<T, FragmentA<T>::kSize> elements;
      std::memcpy(elements.data(), calls[t]->a.at, sizeof elements);
      for (uint32_t i = 0; i < elements.size(); ++i) {
        const Place at = FragmentA<T>::place(t % kWarp, i);
        product->a[(t / kWarp * 16 + at.row) * P::kK + at.column] = decoded(elements[i]);
      }
    }
  } else {
    Operand{first.desc_a};  // what is wrong with it is said here
  }
  Operand{first.desc_b};
  product->engine = group_engine("wgmma");
  flight->group = group().queue.open();
  ++flight->products;
  group_add([product, flight] { product->make(*flight); });
}

struct Wait {
  uint32_t pending;
  const Registers* registers;
  size_t count;
};

// Accumulators whose products are all done are their threads' again.
void finish(const Wait* const* waits) {
  finish_groups(waits[0]->pending);
  WgmmaState& s = state();
  const uint32_t done = group().queue.done();
  auto& flights = s.flights;
  for (size_t i = 0; i < flights.size();) {
    Flight& f = *flights[i];
    if (f.group > done) {
      ++i;
      continue;
    }
    expect_untouched(f, 0, kWarpgroup);
    for (uint32_t t = 0; t < kWarpgroup; ++t) s.name(t, f.d[t]);
    flights.erase(flights.begin() + static_cast<std::ptrdiff_t>(i));
  }
  for (uint32_t t = 0; t < kWarpgroup; ++t)
    for (size_t i = 0; i < waits[t]->count; ++i) {
      if (s.flight(t, waits[t]->registers[i].at))
        error("wgmma_wait<" + std::to_string(waits[t]->pending) +
              "> names an accumulator with a wgmma that it does not cover");
      s.forget(t, waits[t]->registers[i]);
    }
}

}  // namespace

void wgmma(WgmmaCall& call) {
  WEFT_SIM_ENTER;
  group_meet("wgmma", &call, [](void* const* threads) {
    const auto* calls = reinterpret_cast<const WgmmaCall* const*>(threads);
    expect_same(calls);
    switch (calls[0]->type) {
      case WgmmaType::bf16:
        return hand_over<bf16>(calls);
      case WgmmaType::f16:
        return hand_over<f16>(calls);
      case WgmmaType::i8:
        return hand_over<int8_t>(calls);
    }
  });
}

void wgmma_fence(const Registers* registers, size_t count) {
  WEFT_SIM_ENTER;
  const uint32_t thread = self().index % kWarpgroup;
  if (block_of(self()).facts.threads < self().index / kWarpgroup * kWarpgroup + kWarpgroup)
    error("wgmma_fence in a warpgroup that is not whole");
  WgmmaState& s = state();
  for (size_t i = 0; i < count; ++i) {
    if (const auto flight = s.flight(thread, registers[i].at))
      expect_untouched(*flight, thread, 1);
    else
      s.name(thread, registers[i]);
  }
}

void wgmma_commit() {
  WEFT_SIM_ENTER;
  group_meet("wgmma_commit", nullptr, [](void* const*) { group().queue.commit(); });
}

void wgmma_wait(uint32_t pending, const Registers* registers, size_t count) {
  WEFT_SIM_ENTER;
  Wait mine{pending, registers, count};
  group_meet("wgmma_wait", &mine,
             [](void* const* threads) { finish(reinterpret_cast<const Wait* const*>(threads)); });
}

}  // namespace weft::gpu::sim
