// Barriers in the simulator.
#pragma once

#include "gpu/sim/engine.h"
#include "gpu/sync.h"

namespace weft::gpu {

WEFT_DEVICE void sync_warp(uint32_t mask) { sim::sync_warp(mask); }
WEFT_DEVICE void sync_block() { sim::sync_block(sim::Vote::none, false); }
WEFT_DEVICE bool sync_block_or(bool predicate) {
  return sim::sync_block(sim::Vote::any, predicate);
}
WEFT_DEVICE bool sync_block_and(bool predicate) {
  return sim::sync_block(sim::Vote::all, predicate);
}
WEFT_DEVICE void sync_named(uint32_t barrier, uint32_t threads) {
  sim::sync_named(barrier, threads, true);
}
WEFT_DEVICE void arrive_named(uint32_t barrier, uint32_t threads) {
  sim::sync_named(barrier, threads, false);
}
WEFT_DEVICE void cluster_arrive() { sim::cluster_arrive(true); }
WEFT_DEVICE void cluster_arrive_relaxed() { sim::cluster_arrive(false); }
WEFT_DEVICE void cluster_wait() { sim::cluster_wait(); }
WEFT_DEVICE void wait_for_prerequisites() { sim::wait_for_prerequisites(); }
WEFT_DEVICE void allow_dependents() {}

template <int kRegisters>
WEFT_DEVICE void increase_registers() {
  sim::set_registers(kRegisters, true);
}
template <int kRegisters>
WEFT_DEVICE void decrease_registers() {
  sim::set_registers(kRegisters, false);
}

}  // namespace weft::gpu
