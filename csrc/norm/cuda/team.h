// The threads that share a row: a part of a warp, a block, or a cluster of blocks.
#pragma once

#include "gpu/gpu.h"
#include "norm/cuda/plan.h"

namespace weft::norm::cuda {

using namespace ::weft::gpu;

using Two = Vec<float, 2>;

struct Add {
  WEFT_DEVICE Two operator()(const Two& a, const Two& b) const {
    return {{a[0] + b[0], a[1] + b[1]}};
  }
};

class Team {
 public:
  // Reductions take turns with so many sets of slots: who writes to a set again has met all who
  // read it at the barrier of the reduction in between.
  static constexpr uint32_t kRounds = 2;

  // slots: of shared memory, kRounds times as many as the geometry says.
  WEFT_DEVICE Team(const Geometry& g, Shared<Two> slots) : g_(g), slots_(slots) {
    if (g.split > 1) cluster_arrive_relaxed();  // no block may be written to before it has begun
  }

  WEFT_DEVICE uint32_t thread() const { return gpu::thread() % g_.lanes; }
  WEFT_DEVICE uint32_t index() const { return gpu::thread() / g_.lanes; }  // in the block
  WEFT_DEVICE uint32_t part() const { return g_.split > 1 ? cluster_rank() : 0; }
  WEFT_DEVICE bool first() const { return thread() == 0 && part() == 0; }

  // The row of the team: the k-th for the blocks of this launch.
  WEFT_DEVICE int64_t row() const {
    return static_cast<int64_t>(block().x / g_.split) * g_.rows + index();
  }

  // For shared memory that the team's threads in this block write and read.
  WEFT_DEVICE void sync() const { g_.lanes > kWarp ? sync_block() : sync_warp(); }

  // Does it hold for a team of the warp? What wider teams ask is the same in all their threads.
  WEFT_DEVICE bool any(bool predicate) const {
    return g_.lanes > kWarp ? predicate : gpu::any(predicate);
  }

  // op over all threads of the row, in an order that the geometry fixes; op(v, {0, 0}) is v.
  template <class Op>
  WEFT_DEVICE Two reduce(Two v, const Op& op) {
    for (uint32_t lanes = min<uint32_t>(g_.lanes, kWarp) / 2; lanes > 0; lanes /= 2)
      v = op(v, shuffle_xor(v, lanes));
    if (g_.lanes <= kWarp) return v;
    const uint32_t warps = g_.lanes / kWarp, all = warps * g_.split;
    const Shared<Two> slots = slots_.from(round_ % kRounds * all, all);
    if (g_.split == 1) {
      if (lane() == 0) slots[warp()] = v;
      sync_block();
    } else {
      if (round_ == 0) cluster_wait();
      if (lane() < g_.split) slots.in_block(lane()).store(part() * warps + warp(), v);
      sync_cluster();
    }
    ++round_;
    v = {};
    for (uint32_t i = lane(); i < all; i += kWarp) v = op(v, slots[i]);
    return warp_reduce(v, op);
  }

 private:
  const Geometry& g_;
  Shared<Two> slots_;
  uint32_t round_ = 0;
};

// A sum over many chunks: no accumulator takes more than 8 before it is added to the next.
class Cascade {
 public:
  WEFT_DEVICE void add(float v) {
    inner_ += v;
    if (++count_ % 8 != 0) return;
    outer_ += inner_;
    inner_ = 0;
  }
  WEFT_DEVICE float total() const { return outer_ + inner_; }

 private:
  float inner_ = 0, outer_ = 0;
  int count_ = 0;
};

}  // namespace weft::norm::cuda
