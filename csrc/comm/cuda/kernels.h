// The collectives of comm/params.h between the GPUs of a node. In elements, for W ranks:
//
//   all_reduce       y[i] = ⊕ x_r[i]
//   all_reduce_int8  y[i] = ⊕ s_r[i / group] · q_r[i]
//   reduce_scatter   y[i] = ⊕ x_r[rank · n + i]
//   all_gather       y[r · n + i] = x_r[i]
//
// Plan. Block b of every rank is a channel (channel.h) and takes the pieces b, b + blocks, … of the
// message: puts its rank's part of x into its slot, exchanges, and reads the peers' slots. Sums run
// over the ranks in order, in fp32, on whichever rank: the same bits everywhere and every time.
//
//                    into slots             exchanges   out of the peers' slots, by link
//   one_shot         n                      1           (W - 1) · n
//   two_shot         n + n / W              2           2 · n · (W - 1) / W
//   multicast        n, then n to everyone  2           2 · n / W: the switch adds and copies
//   reduce_scatter   W · n                  1           (W - 1) · n
//   all_gather       n                      1           (W - 1) · n
//   int8             n / 4 (of fp32)        1           (W - 1) · n / 4
//
// Cost. Small messages: an exchange is a store across the link and a look at what has come, then a
// load across the link. Large ones are bound by the link: every thread has a vector of each peer
// under way, 512 threads of 32 blocks 256 KiB of each. multicast: the switch rounds its sums once,
// but adds in an order of its own: the same bits on every rank, as one rank has asked for each, but
// not those of the other algorithms. Its slots are used by two addresses, with fence_alias in between.
//
// x is read before the first exchange of its piece and y written after, so that y may be x.
#pragma once

#include <type_traits>

#include "comm/cuda/channel.h"
#include "comm/cuda/plan.h"
#include "comm/params.h"

namespace weft::comm::cuda {

struct Call {
  Collective c;
  Group group;
  uint64_t signature;
  int64_t piece;
  bool vector;  // x, y and their parts are aligned
};

// Elements from p on, of which there are `left`; zeros behind them.
template <class T>
WEFT_DEVICE Vec<T, kVecSize<T>> take(const T* p, int64_t left, bool vector) {
  constexpr int E = kVecSize<T>;
  if (vector && left >= E) return load<E>(p);
  auto v = Vec<T, E>::filled(T{});
  for (int i = 0; i < E; ++i)
    if (i < left) v[i] = load(p + i);
  return v;
}
template <class T>
WEFT_DEVICE void put(T* p, const Vec<T, kVecSize<T>>& v, int64_t left, bool vector) {
  constexpr int E = kVecSize<T>;
  if (vector && left >= E) return store(p, v);
  for (int i = 0; i < E; ++i)
    if (i < left) store<Cache::normal, T>(p + i, v[i]);
}

// f(i) for the vectors of `count` elements, each thread's own.
template <class T, class F>
WEFT_DEVICE void for_vectors(int64_t count, const F& f) {
  constexpr int E = kVecSize<T>;
  for (int64_t i = int64_t{thread()} * E; i < count; i += int64_t{threads()} * E) f(i);
}

// piece(at, count) for the block's pieces of n elements, `step` in each, until one is false. Where
// there are none the ranks meet in an empty one.
template <class F>
WEFT_DEVICE void for_pieces(Channel& channel, int64_t n, int64_t step, const F& piece) {
  if (!channel.begin()) return;
  for (int64_t at = block().x * step; at < n || at == 0; at += blocks().x * step)
    if (!piece(at, min(step, n - at))) return;
  channel.end();
}

// `count` elements into the own slot.
template <class T>
WEFT_DEVICE void fill(const Channel& channel, const T* x, int64_t count, bool vector) {
  for_vectors<T>(count,
                 [&](int64_t i) { store(channel.mine<T>() + i, take(x + i, count - i, vector)); });
}

// ---- sums

template <int E>
WEFT_DEVICE void combine(Reduction reduction, Vec<float, E>& sum, const Vec<float, E>& x) {
  for (int i = 0; i < E; ++i)
    sum[i] = reduction == Reduction::max ? max_nan(sum[i], x[i]) : sum[i] + x[i];
}
// An average multiplies by 1 / W where that is exact, and divides elsewhere.
template <int E>
WEFT_DEVICE void finish(Reduction reduction, Vec<float, E>& sum, int world) {
  if (reduction != Reduction::avg) return;
  const float w = static_cast<float>(world);
  const bool exact = (world & (world - 1)) == 0;
  for (int i = 0; i < E; ++i) sum[i] = exact ? sum[i] * (1.0f / w) : sum[i] / w;
}

// Element i of y has column i mod columns.
template <class T>
WEFT_DEVICE void add_bias(const Collective& c, Vec<float, kVecSize<T>>& sum, int64_t i) {
  constexpr int E = kVecSize<T>;
  const T* bias = static_cast<const T*>(c.bias);
  if (!bias) return;
  const int64_t column = i % c.columns;
  for (int j = 0; j < E; ++j)
    sum[j] += convert<float>(
        load(bias + (column + j < c.columns ? column + j : (column + j) % c.columns)));
}

// ⊕ over what the ranks have published, from element i of their slots on; in y, element `to`.
template <class T>
WEFT_DEVICE Vec<T, kVecSize<T>> reduced(const Call& call, const Channel& channel, int64_t i,
                                        int64_t to) {
  constexpr int E = kVecSize<T>;
  const int world = call.group.world;
  Vec<T, E> x[kMostRanks] = {};
  WEFT_UNROLL
  for (int r = 0; r < kMostRanks; ++r)  // all under way before the first is added
    if (r < world) x[r] = load<E>(channel.theirs<T>(r) + i);
  auto sum = convert<float>(x[0]);
  WEFT_UNROLL
  for (int r = 1; r < kMostRanks; ++r)
    if (r < world) combine(call.c.reduction, sum, convert<float>(x[r]));
  finish(call.c.reduction, sum, world);
  add_bias<T>(call.c, sum, to);
  return convert<T>(sum);
}

// ---- all_reduce

template <class T>
WEFT_KERNEL_BOUNDS(kMostThreads, 1)
void one_shot_kernel(WEFT_GRID_CONSTANT const Call call) {
  const T* x = static_cast<const T*>(call.c.x);
  T* y = static_cast<T*>(call.c.y);
  Channel channel(call.group, call.signature);
  for_pieces(channel, call.c.n, call.piece, [&](int64_t at, int64_t count) {
    fill(channel, x + at, count, call.vector);
    if (!channel.exchange()) return false;
    for_vectors<T>(count, [&](int64_t i) {
      put(y + at + i, reduced<T>(call, channel, i, at + i), count - i, call.vector);
    });
    return true;
  });
}

// The share of rank r in a piece of `count` elements is piece · r … piece · (r + 1).
template <class T>
WEFT_KERNEL_BOUNDS(kMostThreads, 1)
void two_shot_kernel(WEFT_GRID_CONSTANT const Call call) {
  const T* x = static_cast<const T*>(call.c.x);
  T* y = static_cast<T*>(call.c.y);
  const int64_t share = call.piece, step = share * call.group.world;
  const int64_t own = share * call.group.rank;
  Channel channel(call.group, call.signature);
  for_pieces(channel, call.c.n, step, [&](int64_t at, int64_t count) {
    fill(channel, x + at, count, call.vector);
    if (!channel.exchange()) return false;
    for_vectors<T>(min(share, count - own), [&](int64_t i) {
      store(channel.mine<T>() + i, reduced<T>(call, channel, own + i, at + own + i));
    });
    if (!channel.exchange()) return false;
    for_vectors<T>(step, [&](int64_t k) {  // from the own share on, as the others from theirs
      const int64_t i = own + k < step ? own + k : own + k - step;
      if (i >= count) return;
      const uint32_t r = static_cast<uint32_t>(i) / static_cast<uint32_t>(share);
      put(y + at + i, load<kVecSize<T>>(channel.theirs<T>(r) + (i - r * share)), count - i,
          call.vector);
    });
    return true;
  });
}

template <class T>
WEFT_KERNEL_BOUNDS(kMostThreads, 1)
void multicast_kernel(WEFT_GRID_CONSTANT const Call call) {
  const T* x = static_cast<const T*>(call.c.x);
  T* y = static_cast<T*>(call.c.y);
  const int64_t share = call.piece, step = share * call.group.world;
  const int64_t own = share * call.group.rank;
  Channel channel(call.group, call.signature);
  for_pieces(channel, call.c.n, step, [&](int64_t at, int64_t count) {
    fill(channel, x + at, count, call.vector);
    fence_alias();
    if (!channel.exchange()) return false;
    fence_alias();
    for_vectors<T>(min(share, count - own), [&](int64_t i) {
      auto sum = convert<float>(multimem_load_add(channel.published<T>() + own + i));
      finish(call.c.reduction, sum, call.group.world);
      add_bias<T>(call.c, sum, at + own + i);
      multimem_store(channel.everyones<T>() + own + i, convert<T>(sum));
    });
    fence_alias();
    if (!channel.exchange()) return false;
    fence_alias();
    for_vectors<T>(count, [&](int64_t i) {
      put(y + at + i, load<kVecSize<T>>(channel.theirs<T>(call.group.rank) + i), count - i,
          call.vector);
    });
    return true;
  });
}

// A slot holds q and, behind it, the scales. A warp quantises a group.
template <class T>
WEFT_KERNEL_BOUNDS(kMostThreads, 1)
void int8_kernel(WEFT_GRID_CONSTANT const Call call) {
  constexpr int E = kVecSize<T>;
  const T* x = static_cast<const T*>(call.c.x);
  T* y = static_cast<T*>(call.c.y);
  const int64_t group = call.c.group;
  const int world = call.group.world;
  int shift = 0;  // group is a power of two
  while (int64_t{1} << shift < group) ++shift;
  Channel channel(call.group, call.signature);
  const auto scales = [&](auto* slot) {
    using Scale = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(slot)>>,
                                     const float, float>;
    return reinterpret_cast<Scale*>(slot + call.piece);
  };
  for_pieces(channel, call.c.n, call.piece, [&](int64_t at, int64_t count) {
    for (int64_t g = warp(); g * group < count; g += threads() / kWarp) {
      const int64_t begin = g * group, end = min(begin + group, count);
      float most = 0;
      for (int64_t i = begin + lane() * E; i < end; i += kWarp * E) {
        const auto v = convert<float>(take(x + at + i, end - i, call.vector));
        for (int j = 0; j < E; ++j) most = max_nan(most, max_nan(v[j], -v[j]));
      }
      most = warp_reduce(most, [](float a, float b) { return max_nan(a, b); });
      // Subnormal scales have no finite inverse that serves: such a group counts as zeros.
      const float s = most / 127.0f, inverse = 1.0f / s;
      const bool finite = s - s == 0.0f, usable = finite && inverse - inverse == 0.0f;
      if (lane() == 0)
        store(scales(channel.mine<int8_t>()) + g, finite ? usable ? s : 0.0f : s - s);
      for (int64_t i = begin + lane() * E; i < end; i += kWarp * E) {
        const auto v = convert<float>(take(x + at + i, end - i, call.vector));
        Vec<int8_t, E> q;
        for (int j = 0; j < E; ++j) q[j] = usable ? to_i8(v[j] * inverse) : int8_t{0};
        store(channel.mine<int8_t>() + i, q);
      }
    }
    if (!channel.exchange()) return false;
    for_vectors<T>(count, [&](int64_t i) {
      Vec<int8_t, E> q[kMostRanks] = {};
      float s[kMostRanks] = {};
      WEFT_UNROLL
      for (int r = 0; r < kMostRanks; ++r)
        if (r < world) {
          q[r] = load<E>(channel.theirs<int8_t>(r) + i);
          s[r] = load(scales(channel.theirs<int8_t>(r)) + (i >> shift));
        }
      Vec<float, E> sum;
      for (int j = 0; j < E; ++j) sum[j] = s[0] * static_cast<float>(q[0][j]);
      WEFT_UNROLL
      for (int r = 1; r < kMostRanks; ++r)
        if (r < world) {
          Vec<float, E> v;
          for (int j = 0; j < E; ++j) v[j] = s[r] * static_cast<float>(q[r][j]);
          combine(call.c.reduction, sum, v);
        }
      finish(call.c.reduction, sum, world);
      put(y + at + i, convert<T>(sum), count - i, call.vector);
    });
    return true;
  });
}

// ---- the halves

template <class T>
WEFT_KERNEL_BOUNDS(kMostThreads, 1)
void reduce_scatter_kernel(WEFT_GRID_CONSTANT const Call call) {
  const T* x = static_cast<const T*>(call.c.x);
  T* y = static_cast<T*>(call.c.y);
  const int64_t n = call.c.n, piece = call.piece;
  Channel channel(call.group, call.signature);
  for_pieces(channel, n, piece, [&](int64_t at, int64_t count) {
    for_vectors<T>(piece * call.group.world, [&](int64_t k) {
      const uint32_t r = static_cast<uint32_t>(k) / static_cast<uint32_t>(piece);
      const int64_t i = k - r * piece;
      if (i < count) store(channel.mine<T>() + k, take(x + r * n + at + i, count - i, call.vector));
    });
    if (!channel.exchange()) return false;
    for_vectors<T>(count, [&](int64_t i) {
      put(y + at + i, reduced<T>(call, channel, piece * call.group.rank + i, at + i), count - i,
          call.vector);
    });
    return true;
  });
}

// T: words of the size that divides everything.
template <class T>
WEFT_KERNEL_BOUNDS(kMostThreads, 1)
void all_gather_kernel(WEFT_GRID_CONSTANT const Call call) {
  const T* x = static_cast<const T*>(call.c.x);
  T* y = static_cast<T*>(call.c.y);
  const int64_t n = call.c.n, piece = call.piece;
  const uint32_t world = static_cast<uint32_t>(call.group.world);
  Channel channel(call.group, call.signature);
  for_pieces(channel, n, piece, [&](int64_t at, int64_t count) {
    fill(channel, x + at, count, call.vector);
    if (!channel.exchange()) return false;
    for_vectors<T>(piece * world, [&](int64_t k) {
      uint32_t r = static_cast<uint32_t>(k) / static_cast<uint32_t>(piece);
      const int64_t i = k - r * piece;
      r = r + call.group.rank < world ? r + call.group.rank : r + call.group.rank - world;
      if (i < count)
        put(y + r * n + at + i, load<kVecSize<T>>(channel.theirs<T>(r) + i), count - i,
            call.vector);
    });
    return true;
  });
}

}  // namespace weft::comm::cuda
