// Kernels of several streams that wait for each other, right and wrong. For library.cpp alone: on a
// GPU they might not run side by side.
#pragma once

#include "case.h"
#include "mutants.h"

namespace weft::gpu::tests {

// A rank: two slots of a warp's values and a counter that its peer raises.
struct Peer {
  float* slots;
  uint32_t* flag;
};

// Two ranks add up what both write, for two rounds a launch: y[t] = Σ own + theirs. Rounds are
// counted in `round`, from launch to launch. A rank looks at it for a while before it begins.
template <Mistake kMistake>
WEFT_KERNEL void handshake_kernel(Peer own, Peer peer, uint32_t* round, uint32_t looks, float* y) {
  for (uint32_t i = 0; i < looks; ++i) load_relaxed<Scope::gpu>(round);
  uint32_t now = load(round);
  if (kMistake == Mistake::wrong_phase) now = 0;
  float sum = 0;
  for (int n = 0; n < 2; ++n) {
    const uint32_t slot = kMistake == Mistake::early_reuse ? 0 : now % 2;
    const float mine = static_cast<float>(now * kWarp + thread());
    store(own.slots + slot * kWarp + thread(), mine);
    sync_block();
    ++now;
    if (thread() == 0) {
      if (kMistake == Mistake::no_release)
        store_relaxed<Scope::system>(peer.flag, now);
      else if (kMistake == Mistake::narrow_scope)
        store_release<Scope::gpu>(peer.flag, now);
      else
        store_release<Scope::system>(peer.flag, now);
      if (kMistake == Mistake::no_fence)
        while (load_relaxed<Scope::system>(own.flag) < now) {
        }
      else if (kMistake != Mistake::no_wait)
        while (load_acquire<Scope::system>(own.flag) < now) {
        }
    }
    if (kMistake != Mistake::no_barrier) sync_block();
    sum += mine + load(peer.slots + slot * kWarp + thread());
  }
  sync_block();
  if (thread() == 0) store(round, now);
  store(y + thread(), sum);
}

// inouts: the flag and the round of each rank; outputs: slots and results of each. numbers: launches.
template <Mistake kMistake>
void handshake(const Call& call) {
  sim::Streams streams;
  for (int64_t n = 0; n < call.numbers[0]; ++n)
    for (int r = 0; r < 2; ++r) {
      const auto peer = [&](int i) {
        return Peer{call.outputs[i].as<float>(), call.inouts[i].as<uint32_t>()};
      };
      launch<handshake_kernel<kMistake>>({.block = kWarp, .stream = call.inouts[r].data}, peer(r),
                                         peer(1 - r), call.inouts[2 + r].as<uint32_t>(), 20 * r,
                                         call.outputs[2 + r].as<float>());
    }
  streams.run();
}
const Register handshake_case("handshake", handshake<Mistake::none>);
const Register handshake_no_release("handshake_no_release", handshake<Mistake::no_release>);
const Register handshake_narrow_scope("handshake_narrow_scope", handshake<Mistake::narrow_scope>);
const Register handshake_no_fence("handshake_no_fence", handshake<Mistake::no_fence>);
const Register handshake_no_wait("handshake_no_wait", handshake<Mistake::no_wait>);
const Register handshake_no_barrier("handshake_no_barrier", handshake<Mistake::no_barrier>);
const Register handshake_early_reuse("handshake_early_reuse", handshake<Mistake::early_reuse>);
const Register handshake_wrong_phase("handshake_wrong_phase", handshake<Mistake::wrong_phase>);

// One rank of the two is never launched.
const Register handshake_alone("handshake_alone", [](const Call& call) {
  sim::Streams streams;
  const auto peer = [&](int i) {
    return Peer{call.outputs[i].as<float>(), call.inouts[i].as<uint32_t>()};
  };
  launch<handshake_kernel<Mistake::none>>({.block = kWarp}, peer(0), peer(1),
                                          call.inouts[2].as<uint32_t>(), 0,
                                          call.outputs[2].as<float>());
  streams.run();
});

// Waits a tenth of a second for a flag that nobody sets: y = 1 where the time is up.
WEFT_KERNEL void deadline_kernel(uint32_t* flag, float* y) {
  const uint64_t begin = nanoseconds();
  while (load_acquire<Scope::system>(flag) == 0 && nanoseconds() - begin < 100'000'000) {
  }
  store(y + thread(), load_relaxed<Scope::system>(flag) == 0 ? 1.0f : 0.0f);
}
const Register deadline("deadline", [](const Call& call) {
  launch<deadline_kernel>({.block = kWarp}, call.inouts[0].as<uint32_t>(),
                          call.outputs[0].as<float>());
});

}  // namespace weft::gpu::tests
