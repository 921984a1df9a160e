// Backward of attention with Hopper's warpgroup products, for bf16 and f16.
// Formulas: attention/params.h.
//
// Plan. backward_rows makes what belongs to a row of lse: shift = -lse · log2 e, and δ. A block then
// owns 128 keys and goes over the queries that see them, 64 at a time, head by head of its group:
//
//   load       One thread of the first warpgroup, which has given its registers away: tensor copies
//              of K and V, once, and of Q and dO into stages, with their shifts and δ.
//   compute    Each of the two other warpgroups, for 64 keys. Scores are transposed, keys by queries,
//              so that p and ds as they stand in registers are operands of dV and dK:
//                dp  = V · dOᵀ           under way while p = exp2(s · c + shift) is computed
//                dV += p · dO            … while ds = p ∘ (dp - δ) is
//                dQ' = dsᵀ · K           of the queries before, half of what these 128 keys add to
//                                        their dQ; … while ds goes to operands, and to shared memory
//                dK += ds · Q
//                s   = K · Qᵀ            of the next queries; … while dQ' goes to shared memory
//              That dQ' comes a step late lets a warpgroup be half a step ahead of the other. Nothing
//              is under way from one step to the next. The first dQ' and the last s are for nothing.
//              With options, dp is waited for, and backward_options.h makes p and ds in one go.
//   mask       Queries that do not see all of a warpgroup's keys are at the ends of the walk: they
//              take a loop of their own, and the others' loop compares nothing. With options, all do.
//   add        Two warps of the first warpgroup add dQ' to dQ, which is fp32 and lies in the
//              workspace as registers have it: 32 KB at a time, by turns, each with a buffer of its own.
//   write      dK and dV, through shared memory. backward_finish makes dQ of its fp32 sums.
//
// dQ of a block of queries is a sum over blocks of keys. It is the same each time, as these add in
// one order, from the first keys to the last: `done` counts who has. Blocks take their keys from a
// counter, a head's first ones first, which see most under a causal mask: who waits, waits for blocks
// that have begun, whatever order the GPU starts blocks in. All go from the last queries to the first:
// blocks of one head that begin together fall behind each other by an addition each, once. So the
// counter goes over several heads at a time, as many as L2 holds.
//
// Cost, for each query and key: 5 products, 6 · D + 4 · Dv FLOP of the tensor cores, one exponential.
// A step of a block at D = 128: 2560 cycles of the tensor cores, 512 of exponentials. Memory: K and V
// once, Q and dO once for each block of keys, from L2; 4 · D bytes of addition in L2 for each query and
// block of keys. Bound by the tensor cores at D = 128.
#pragma once

#include "attention/cuda/backward_call.h"
#include "attention/cuda/backward_options.h"
#include "attention/cuda/backward_plan_sm90.h"
#include "attention/cuda/backward_tiles.h"
#include "attention/cuda/tiles_sm90.h"

namespace weft::attention::cuda {

// ---- what a block owns. It lies in shared memory: those who compute have no registers to keep it in.

template <class Shape>
struct KeyBlock {
  static constexpr uint32_t kWords = 20;

  Sequence at;
  Sight sight;
  int32_t b, head;   // of keys
  int32_t n, first;  // block, key
  Span blocks;       // of queries that see some of the keys

  KeyBlock() = default;
  WEFT_DEVICE KeyBlock(const BackwardCall& call, uint32_t i) {
    constexpr auto kKeys = static_cast<int32_t>(Shape::kKeys),
                   kQueries = static_cast<int32_t>(Shape::kQueries);
    const Schedule::Tile tile = call.sm90.schedule.tile(i);
    const auto K = static_cast<uint32_t>(call.p.K);
    b = static_cast<int32_t>(tile.head / K);
    head = static_cast<int32_t>(tile.head % K);
    n = static_cast<int32_t>(tile.block);
    first = n * kKeys;
    at = sequence_of(call.p, b);
    sight = Sight(call.p, at);
    const Span queries = sight.queries(first, min(first + kKeys, at.T));
    blocks = queries.empty() ? Span{0, 0}
                             : Span{queries.begin / kQueries, ceil_div(queries.end, kQueries)};
  }

  WEFT_DEVICE static KeyBlock load(Shared<uint32_t> from) {
    uint32_t words[kWords];
    WEFT_UNROLL
    for (uint32_t i = 0; i < kWords; i += 4) {
      const Vec<uint32_t, 4> four = from.load<4>(i);
      WEFT_UNROLL
      for (uint32_t k = 0; k < 4; ++k) words[i + k] = four[k];
    }
    KeyBlock own;
    __builtin_memcpy(&own, words, sizeof own);
    return own;
  }
  WEFT_DEVICE void store(Shared<uint32_t> to) const {
    static_assert(sizeof(KeyBlock) <= 4 * kWords);
    uint32_t words[kWords] = {};
    __builtin_memcpy(words, this, sizeof *this);
    WEFT_UNROLL
    for (uint32_t i = 0; i < kWords; ++i) to[i] = words[i];
  }
};

// ---- shared memory

template <class T, class Shape>
struct BackwardTilesSm90 {
  template <Major kMajor, int kMN, int kK>
  using Tile = MatrixTile<T, kMajor, Swizzle::bytes128, kMN, kK>;
  // Rows of D elements: operands along D, and, the same bytes, operands along rows.
  using Keys = Tile<Major::k, Shape::kKeys, Shape::kD>;
  using KeysAcross = Tile<Major::mn, Shape::kD, Shape::kKeys>;
  using Queries = Tile<Major::k, Shape::kStep, Shape::kD>;
  using QueriesAcross = Tile<Major::mn, Shape::kD, Shape::kStep>;
  using Scores = Tile<Major::mn, 64, Shape::kKeys>;          // of 64 queries: a row for each key
  using Sums = Tile<Major::k, 16, Shape::kD>;                // of a warp, in the place of K and V
  static constexpr uint32_t kRows = 2 * Shape::kStep;        // floats of a stage: shifts, δ
  static constexpr uint32_t kScores = Shape::kQueries / 64;  // tiles of a block of queries

  SharedLayout layout;
  Shared<T> k = Keys::take(layout), v = Keys::take(layout);
  Shared<T> q = layout.take<T>(Shape::kStages * Queries::kSize, kSharedAlignment);
  Shared<T> o = layout.take<T>(Shape::kStages * Queries::kSize, kSharedAlignment);
  Shared<T> ds = layout.take<T>(2 * kScores * Scores::kSize, kSharedAlignment);
  Shared<float> dq = layout.take<float>(2 * Shape::kPart, kSharedAlignment);
  Shared<float> rows = layout.take<float>(Shape::kStages * kRows, 128);
  Shared<MBarrier> k_full = layout.take<MBarrier>(1), v_full = layout.take<MBarrier>(1);
  // Of each stage; of both buffers of ds and of dQ.
  Shared<MBarrier> q_full = layout.take<MBarrier>(Shape::kStages),
                   o_full = layout.take<MBarrier>(Shape::kStages),
                   empty = layout.take<MBarrier>(Shape::kStages),
                   ds_full = layout.take<MBarrier>(2), dq_full = layout.take<MBarrier>(2),
                   dq_empty = layout.take<MBarrier>(2);
  Shared<uint32_t> own = layout.take<uint32_t>(KeyBlock<Shape>::kWords);

  WEFT_DEVICE Shared<T> queries(uint32_t stage) const {
    return q.from(stage * Queries::kSize, Queries::kSize);
  }
  WEFT_DEVICE Shared<T> upstream(uint32_t stage) const {
    return o.from(stage * Queries::kSize, Queries::kSize);
  }
  WEFT_DEVICE Shared<float> rows_of(uint32_t stage) const {
    return rows.from(stage * kRows, kRows);
  }
  WEFT_DEVICE Shared<T> scores(uint32_t buffer, uint32_t tile) const {
    return ds.from((buffer * kScores + tile) * Scores::kSize, Scores::kSize);
  }
  WEFT_DEVICE Shared<float> part(uint32_t buffer) const {
    return dq.from(buffer * Shape::kPart, Shape::kPart);
  }
  WEFT_DEVICE Shared<T> sums(Shared<T> of, uint32_t warp) const {
    return of.from(warp * Sums::kSize, Sums::kSize);
  }
};

// ---- load

template <class Tile, CachePolicy kPolicy, class T>
WEFT_DEVICE void load_panels(Shared<T> tile, const TensorMap& map, int32_t row, int32_t head,
                             int32_t batch, Shared<MBarrier> full) {
  WEFT_UNROLL
  for (uint32_t i = 0; i < Tile::kPanels; ++i)
    tensor_load<kPolicy>(tile.from(Tile::panel(i), Tile::kRun * Tile::kRows), map,
                         {static_cast<int32_t>(i * Tile::kRun), row, head, batch}, full);
}

// One thread.
template <class T, class Shape>
WEFT_DEVICE void load_blocks(const BackwardTilesSm90<T, Shape>& smem, const TensorMap& q,
                             const TensorMap& k, const TensorMap& v, const TensorMap& dout,
                             const BackwardCall& call, const KeyBlock<Shape>& own) {
  using M = BackwardTilesSm90<T, Shape>;
  // K and V come once. Q and dO are as the sums of dQ: used by block after block, then by none.
  constexpr CachePolicy kOnce = CachePolicy::evict_first, kOften = CachePolicy::normal;
  const Sequence& e = own.at;
  mbarrier_arrive_expect(smem.k_full, M::Keys::kSize * sizeof(T));
  load_panels<typename M::Keys, kOnce>(smem.k, k, e.k_row + own.first, own.head, e.k_batch,
                                       smem.k_full);
  constexpr auto kHalves = static_cast<int32_t>(Shape::kHalves);
  Turn<Shape::kStages> turn;
  bool v_comes = false;  // behind the first queries
  for (int32_t g = 0; g < call.group; ++g) {
    const int32_t h = own.head * call.group + g;
    const float* rows = call.rows + first_block(call, e, own.b, h) * Shape::kHalves * M::kRows;
    const auto load_stage = [&](int32_t i) {  // the i-th step
      const int32_t row = e.q_row + static_cast<int32_t>(Shape::kStep) * i;
      const uint32_t s = turn.stage;
      mbarrier_wait(smem.empty.from(s), turn.parity ^ 1);
      const Shared<MBarrier> q_full = smem.q_full.from(s), o_full = smem.o_full.from(s);
      mbarrier_arrive_expect(q_full, M::Queries::kSize * sizeof(T) + M::kRows * sizeof(float));
      load_panels<typename M::Queries, kOften>(smem.queries(s), q, row, h, e.q_batch, q_full);
      bulk_load(smem.rows_of(s), rows + int64_t{i} * M::kRows, M::kRows, q_full);
      if (!v_comes) {
        v_comes = true;
        mbarrier_arrive_expect(smem.v_full, M::Keys::kSize * sizeof(T));
        load_panels<typename M::Keys, kOnce>(smem.v, v, e.k_row + own.first, own.head, e.k_batch,
                                             smem.v_full);
      }
      mbarrier_arrive_expect(o_full, M::Queries::kSize * sizeof(T));
      load_panels<typename M::Queries, kOften>(smem.upstream(s), dout, row, h, e.q_batch, o_full);
      turn.next();
    };
    for (int32_t m = own.blocks.end - 1; m >= own.blocks.begin; --m)
      for (int32_t half = 0; half < kHalves; ++half) load_stage(m * kHalves + half);
  }
}

// ---- add

// One thread, for every other block of queries: those that lie in `buffer`.
template <class T, class Shape>
WEFT_DEVICE void add_parts(const BackwardTilesSm90<T, Shape>& smem, const BackwardCall& call,
                           const KeyBlock<Shape>& own, uint32_t buffer) {
  constexpr auto kKeys = static_cast<int32_t>(Shape::kKeys),
                 kQueries = static_cast<int32_t>(Shape::kQueries);
  const Shared<float> part = smem.part(buffer);
  uint32_t turn = 0, parity = 0;
  for (int32_t g = 0; g < call.group; ++g) {
    const int64_t head = first_block(call, own.at, own.b, own.head * call.group + g);
    for (int32_t m = own.blocks.end - 1; m >= own.blocks.begin; --m) {
      if (turn++ % 2 != buffer) continue;
      const int32_t query = m * kQueries;
      const Span keys = own.sight.keys(query, min(query + kQueries, own.at.S));
      const auto before = static_cast<uint32_t>(own.n - keys.begin / kKeys);
      float* to = call.dq + (head + m) * Shape::kPart;
      uint32_t* done = call.done + head + m;
      mbarrier_wait(smem.dq_full.from(buffer), parity);
      parity ^= 1;
      if (before == 0) {
        bulk_store(to, part, Shape::kPart);
      } else {
        while (load_acquire<Scope::gpu>(done) < before) {
        }
        // The PTX ISA orders accesses of the asynchronous proxy as they are within a block alone.
        // The other block's copy ended with a proxy fence, which bulk_wait has seen; this is ours.
        fence_async_global();
        bulk_reduce_add(to, part, Shape::kPart);
      }
      bulk_commit();
      bulk_wait_read<0>();
      mbarrier_arrive(smem.dq_empty.from(buffer));
      bulk_wait<0>();
      if (own.n < (keys.end - 1) / kKeys) reduce_add<Scope::gpu, Order::release>(done, 1u);
    }
  }
}

// ---- compute

// One of the computing warpgroups.
template <class T, class Shape>
class BackwardComputer {
  using M = BackwardTilesSm90<T, Shape>;
  using Scores = WgmmaAccumulator<float, static_cast<int>(Shape::kStep)>;
  using Part = WgmmaAccumulator<float, 64>;
  using Sums = WgmmaAccumulator<float, Shape::kD>;
  static constexpr uint32_t kMeet = 1;  // a named barrier, of those that compute
  static constexpr uint32_t kThreads = Shape::kWarpgroups * kWarpgroup;
  static constexpr uint32_t kSteps = Shape::kStep / 16;  // of queries in a product
  static constexpr auto kQueries = static_cast<int32_t>(Shape::kQueries);

 public:
  WEFT_DEVICE BackwardComputer(const M& smem, const BackwardCall& call, uint32_t index)
      : smem_(smem), call_(call), index_(index), thread_(thread() % kWarpgroup) {}

  WEFT_DEVICE void run() {
    Sums dk, dv;
    for (uint32_t i = 0; i < dk.kSize; ++i) dk[i] = 0, dv[i] = 0;
    if (Shape::kOptions && call_.p.dbias) clear_bias_grad();
    if (!own().blocks.empty()) {
      mbarrier_wait(smem_.k_full, 0);
      clear_keys();
      walk(dk, dv);
    }
    sync_named(kMeet, kThreads);  // nobody reads K and V any more
    write(dk, call_.scale, smem_.k, call_.p.dk, call_.p.D);
    write(dv, 1, smem_.v, call_.p.dv, call_.p.Dv);
  }

 private:
  WEFT_DEVICE KeyBlock<Shape> own() const { return KeyBlock<Shape>::load(smem_.own); }

  // The registers of dp: those of dQ', which begins when dp has ended, where they are as many.
  WEFT_DEVICE static Scores& in_place_of(Scores& part, Scores&) { return part; }
  template <class Other>
  WEFT_DEVICE static Scores& in_place_of(Other&, Scores& apart) {
    return apart;
  }

  WEFT_DEVICE void walk(Sums& dk, Sums& dv) {
    Scores s;
    Part part;  // dQ'
    [[maybe_unused]] Scores apart;
    Scores& dp = in_place_of(part, apart);
    FragmentA<T> a[kSteps];  // p, then ds
    bool first = true;

    // kStep queries of a head, of which s is there.
    const auto step = [&]<bool kMask, uint32_t kHalf>([[maybe_unused]] int32_t head, int32_t query,
                                                      bool last) {
      const uint32_t stage = turn_.stage;
      const Shared<float> rows = smem_.rows_of(stage);
      mbarrier_wait(smem_.o_full.from(stage), turn_.parity);
      if constexpr (kMask) clear_queries(query);
      wgmma_fence(dp);
      multiply_rows(dp, smem_.v, smem_.upstream(stage));
      if constexpr (Shape::kOptions) {
        wgmma_wait<0>(dp);
        derive_options(s, dp, rows, head, query);
        to_operand(dp, a);
      } else {
        weigh<kMask>(s, rows, query);
        to_operand(s, a);
      }
      wgmma_fence(dv, a);
      accumulate(dv, a, smem_.upstream(stage));
      if constexpr (!Shape::kOptions) {
        wgmma_wait<1>(dp);
        derive<kMask>(s, dp, rows, query);
      }
      wgmma_wait<0>(dv, a);
      const Buffer before = buffer_before();
      if constexpr (kHalf == 0) multiply_scores(part, before, first);
      to_operand(s, a);
      leave_scores(a, stage / Shape::kHalves, kHalf);
      wgmma_fence(dk, a);
      accumulate(dk, a, smem_.queries(stage));
      turn_.next();
      if (!last) mbarrier_wait(smem_.q_full.from(turn_.stage), turn_.parity);
      wgmma_fence(s);
      multiply_rows(s, smem_.k, smem_.queries(last ? stage : turn_.stage));
      if constexpr (kHalf == 0) {
        wgmma_wait<2>(part);
        if (!first) leave_part(part, before);
        first = false;
      }
      // Whoever waits for these scores knows that the products of those before are over.
      if constexpr (kHalf + 1 == Shape::kHalves)
        release(smem_.ds_full.from(stage / Shape::kHalves));
      wgmma_wait<1>(dk, a);
      release(smem_.empty.from(stage));
      wgmma_wait<0>(s);
    };
    const auto block = [&]<bool kMask>(int32_t head, int32_t m, bool last) {
      constexpr auto kStep = static_cast<int32_t>(Shape::kStep);
      if constexpr (Shape::kHalves == 2)
        step.template operator()<kMask, 0>(head, m * kQueries, false);
      step.template operator()<kMask, Shape::kHalves - 1>(head, (m + 1) * kQueries - kStep, last);
    };

    // Blocks of queries that all see all of the warpgroup's keys.
    const KeyBlock<Shape> of = own();
    const int32_t key = of.first + static_cast<int32_t>(64 * index_);
    const Span top = of.sight.queries(key, key + 1), bottom = of.sight.queries(key + 63, key + 64);
    const bool all_keys = key + 64 <= of.at.T;
    const int32_t whole_begin = ceil_div(bottom.begin, kQueries),
                  whole_end = all_keys ? top.end / kQueries : 0;

    mbarrier_wait(smem_.q_full.from(0), 0);
    wgmma_fence(s);
    multiply_rows(s, smem_.k, smem_.queries(0));
    mbarrier_wait(smem_.v_full, 0);
    wgmma_wait<0>(s);
    const Span blocks = of.blocks;
    for (int32_t g = call_.group - 1; g >= 0; --g) {
      const int32_t head = (of.head + 1) * call_.group - 1 - g;
      const auto is_last = [&](int32_t m) { return g == 0 && m == blocks.begin; };
      for (int32_t m = blocks.end - 1; m >= blocks.begin;) {
        for (; m >= blocks.begin && (Shape::kOptions || m >= whole_end || m < whole_begin); --m)
          block.template operator()<true>(head, m, is_last(m));
        if constexpr (!Shape::kOptions)
          for (; m >= blocks.begin && m >= whole_begin; --m)
            block.template operator()<false>(head, m, is_last(m));
      }
    }
    multiply_scores(part, buffer_before(), false);
    wgmma_wait<0>(part);
    leave_part(part, buffer_before());
  }

  // Blocks of queries use two buffers, of ds and of dQ', by turns, two rounds to a parity: that of the
  // block before the one whose turn it is.
  struct Buffer {
    uint32_t index, parity;
  };
  WEFT_DEVICE Buffer buffer_before() const {
    const uint32_t index = turn_.stage / Shape::kHalves ^ 1;
    return {index, turn_.parity ^ index};
  }

  // ---- products, each a group

  // A tile of which the compiler does not compute all descriptors in front of the loop: there are no
  // registers to keep them in.
  WEFT_DEVICE static Shared<T> hidden(Shared<T> tile) {
    return {static_cast<uint32_t>(opaque(static_cast<int32_t>(tile.offset()))), tile.count()};
  }

  // The warpgroup's keys, of K or V, by kStep queries, of Q or dO.
  WEFT_DEVICE void multiply_rows(Scores& s, Shared<T> of_keys, Shared<T> queries) const {
    const Shared<T> keys = hidden(of_keys);
    WEFT_UNROLL
    for (uint32_t d = 0; d < Shape::kD; d += 16)
      wgmma(s, M::Keys::descriptor(keys, 64 * index_, d), M::Queries::descriptor(queries, 0, d),
            d > 0);
    wgmma_commit();
  }
  // sum += a · rows, over kStep queries.
  WEFT_DEVICE void accumulate(Sums& sum, const FragmentA<T> (&a)[kSteps], Shared<T> rows) const {
    WEFT_UNROLL
    for (uint32_t i = 0; i < kSteps; ++i)
      wgmma(sum, a[i], M::QueriesAcross::descriptor(rows, 0, 16 * i), true);
    wgmma_commit();
  }
  // dQ' of 64 columns, or, of small heads, of 64 queries, over all keys. Before the first block there
  // are no scores: the product is of something else, and for nothing.
  WEFT_DEVICE void multiply_scores(Part& part, const Buffer& buffer, bool first) const {
    constexpr bool kTwo = M::kScores == 2;
    const Shared<T> k = hidden(smem_.k), ds = smem_.scores(buffer.index, kTwo ? index_ : 0),
                    a = first ? k.from(0, ds.count()) : ds;
    mbarrier_wait(smem_.ds_full.from(buffer.index), buffer.parity);
    wgmma_fence(part);
    WEFT_UNROLL
    for (uint32_t i = 0; i < Shape::kKeys; i += 16)
      wgmma(part, M::Scores::descriptor(a, 0, i),
            M::KeysAcross::descriptor(k, kTwo ? 0 : 64 * index_, i), i > 0);
    wgmma_commit();
  }

  WEFT_DEVICE static void to_operand(const Scores& s, FragmentA<T> (&a)[kSteps]) {
    WEFT_UNROLL
    for (uint32_t i = 0; i < kSteps; ++i) a[i] = fragment_a<T>(s, i);
  }

  // ---- between the products. A thread has two keys, 8 apart, and of 64 queries 8 pairs.

  // f(element, r, c, j): element of key r, of query 8 · j + c from the thread's first on.
  template <class F>
  WEFT_DEVICE static void each_score(const F& f) {
    WEFT_UNROLL
    for (uint32_t j = 0; j < Shape::kStep / 8; ++j) WEFT_UNROLL
    for (uint32_t r = 0; r < 2; ++r) WEFT_UNROLL
    for (uint32_t c = 0; c < 2; ++c) f(4 * j + 2 * r + c, r, c, j);
  }
  // Which of the queries, counted from the thread's first, see its key r.
  WEFT_DEVICE Span seen(int32_t query, uint32_t r) const { return seen(own(), query, r); }
  WEFT_DEVICE Span seen(const KeyBlock<Shape>& of, int32_t query, uint32_t r) const {
    const int32_t key =
        of.first + static_cast<int32_t>(64 * index_ + Scores::place(thread_, 2 * r).row);
    const Span all = key < of.at.T ? of.sight.queries(key, key + 1) : Span{0, 0};
    const int32_t first = query + static_cast<int32_t>(Scores::place(thread_, 0).column);
    return {all.begin - first, all.end - first};
  }
  WEFT_DEVICE static bool is_in(const Span& span, uint32_t c, uint32_t j) {
    const auto i = static_cast<int32_t>(8 * j + c);
    return i >= span.begin && i < span.end;
  }
  // Shifts, or δ, of a thread's queries.
  WEFT_DEVICE Vec<float, 2> of_rows(Shared<float> rows, uint32_t j) const {
    return rows.template load<2>(8 * j + Scores::place(thread_, 0).column);
  }

  // s becomes p.
  template <bool kMask>
  WEFT_DEVICE void weigh(Scores& s, Shared<float> rows, [[maybe_unused]] int32_t query) const {
    [[maybe_unused]] Span span[2];
    if constexpr (kMask) span[0] = seen(query, 0), span[1] = seen(query, 1);
    Vec<float, 2> shift;
    each_score([&](uint32_t i, uint32_t r, uint32_t c, uint32_t j) {
      if (i % 4 == 0) shift = of_rows(rows, j);
      s[i] = exp2_approx(fma(s[i], call_.log2_scale, shift[c]));
      if constexpr (kMask) s[i] = is_in(span[r], c, j) ? s[i] : 0.0f;
    });
  }
  // p becomes ds.
  template <bool kMask>
  WEFT_DEVICE void derive(Scores& s, const Scores& dp, Shared<float> rows,
                          [[maybe_unused]] int32_t query) const {
    [[maybe_unused]] Span span[2];
    if constexpr (kMask) span[0] = seen(query, 0), span[1] = seen(query, 1);
    const Shared<float> deltas = rows.from(Shape::kStep);
    Vec<float, 2> delta;
    each_score([&](uint32_t i, uint32_t r, uint32_t c, uint32_t j) {
      if (i % 4 == 0) delta = of_rows(deltas, j);
      s[i] *= dp[i] - delta[c];
      // What is not seen may be anything, NaN too.
      if constexpr (kMask) s[i] = is_in(span[r], c, j) ? s[i] : 0.0f;
    });
  }

  // s becomes ds, dp what dropout leaves of p.
  WEFT_DEVICE void derive_options(Scores& s, Scores& dp, Shared<float> rows, int32_t head,
                                  int32_t query) const {
    const KeyBlock<Shape> of = own();
    const Place first = Scores::place(thread_, 0);
    const ScoresOfKeys<Shape::kStep> mine = {
        of.b, head, query + static_cast<int32_t>(first.column),
        of.first + static_cast<int32_t>(64 * index_ + first.row)};
    const Span span[2] = {seen(of, query, 0), seen(of, query, 1)};
    mine.derive(call_, of.sight, span, rows.from(first.column), s, dp);
  }

  // Zeros for the block's keys and the queries that it does not go over.
  WEFT_DEVICE void clear_bias_grad() const {
    const Backward& p = call_.p;
    const KeyBlock<Shape> of = own();
    const Span gone_over = {of.blocks.begin * kQueries, of.blocks.end * kQueries};
    const int32_t t = of.first + static_cast<int32_t>(thread() % Shape::kKeys);
    for (int32_t g = 0; g < call_.group; ++g)
      for (auto i = static_cast<int32_t>(index_); i < of.at.S && t < of.at.T;
           i += static_cast<int32_t>(Shape::kWarpgroups))
        if (i < gone_over.begin || i >= gone_over.end)
          store_float(p.dbias.at(of.b, of.head * call_.group + g, i, t), p.dbias.dtype, 0);
  }

  // ---- shared memory

  // This warp has done with a stage.
  WEFT_DEVICE void release(Shared<MBarrier> empty) const {
    if (elect()) mbarrier_arrive(empty);
  }

  // Rows from `valid` on of a tile become zeros: behind a sequence there may be anything, NaN too,
  // which p = ds = 0 do not undo.
  template <class Tile>
  WEFT_DEVICE void clear_rows(Shared<T> tile, int32_t valid) const {
    constexpr uint32_t kRow = Shape::kD / 8;
    const auto begin = static_cast<uint32_t>(max(valid, 0));
    for (uint32_t i = thread() - kWarpgroup; i < (Tile::kRows - begin) * kRow; i += kThreads)
      tile.template store<8>(Tile::index(begin + i / kRow, i % kRow * 8), Vec<T, 8>{});
  }
  WEFT_DEVICE void clear_keys() const {
    const int32_t valid = own().at.T - own().first;
    if (valid >= static_cast<int32_t>(Shape::kKeys)) return;
    clear_rows<typename M::Keys>(smem_.k, valid);
    fence_async();
    sync_named(kMeet, kThreads);
  }
  // Between the products of both warpgroups that need these rows.
  WEFT_DEVICE void clear_queries(int32_t query) const {
    const int32_t valid = own().at.S - query;
    if (valid >= static_cast<int32_t>(Shape::kStep)) return;
    sync_named(kMeet, kThreads);
    clear_rows<typename M::Queries>(smem_.queries(turn_.stage), valid);
    clear_rows<typename M::Queries>(smem_.upstream(turn_.stage), valid);
    fence_async();
    sync_named(kMeet, kThreads);
  }

  // The warp's 16 keys by kStep queries of ds, for all to multiply.
  WEFT_DEVICE void leave_scores(const FragmentA<T> (&ds)[kSteps], uint32_t buffer,
                                uint32_t half) const {
    const uint32_t query = half * Shape::kStep;
    const Shared<T> tile = smem_.scores(buffer, query / 64);
    const Place named =
        FragmentA<T>::named(static_cast<uint32_t>(opaque(static_cast<int32_t>(lane()))));
    // The swizzle commutes with the step from fragment to fragment.
    const uint32_t at = M::Scores::index(named.column, (warp() - 4) * 16 + named.row) ^ query % 64;
    WEFT_UNROLL
    for (uint32_t i = 0; i < kSteps; ++i) stmatrix<4>(tile, at ^ 16 * i, ds[i].words);
    fence_async();
    sync_warp();
  }
  // As registers lie: 16 bytes a thread at a time.
  WEFT_DEVICE void leave_part(const Part& x, const Buffer& buffer) const {
    const Shared<float> part = smem_.part(buffer.index).from(index_ * Shape::kPiece);
    mbarrier_wait(smem_.dq_empty.from(buffer.index), buffer.parity ^ 1);
    WEFT_UNROLL
    for (uint32_t j = 0; j < 8; ++j)
      part.template store<4>(4 * (kWarpgroup * j + thread_),
                             Vec<float, 4>{{x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]}});
    fence_async();
    sync_warp();
    release(smem_.dq_full.from(buffer.index));
  }

  // ---- results: the warp's 16 keys, 8 elements a lane

  WEFT_DEVICE void write(Sums& sum, float scale, Shared<T> place, const Heads& to,
                         int64_t D) const {
    const Shared<T> tile = smem_.sums(place, warp() - 4);
    const Place named = FragmentA<T>::named(lane());
    for (uint32_t i = 0; i < sum.kSize; ++i) sum[i] *= scale;
    WEFT_UNROLL
    for (uint32_t i = 0; i < Shape::kD / 16; ++i)
      stmatrix<4>(tile, M::Sums::index(named.row, 16 * i + named.column),
                  fragment_a<T>(sum, i).words);
    sync_warp();
    constexpr uint32_t kRow = Shape::kD / 8;
    const KeyBlock<Shape> of = own();
    const Sequence& e = of.at;
    const int32_t first = of.first + static_cast<int32_t>(16 * (warp() - 4));
    for (uint32_t i = lane(); i < 16 * kRow; i += kWarp) {
      const uint32_t row = i / kRow, column = i % kRow * 8;
      const int32_t key = first + static_cast<int32_t>(row);
      if (key < e.T && column < D)
        store(reinterpret_cast<T*>(to.at(e.k_batch, e.k_row + key, of.head)) + column,
              tile.template load<8>(M::Sums::index(row, column)));
    }
  }

  const M& smem_;
  const BackwardCall& call_;
  const uint32_t index_;   // of the warpgroup among those that compute
  const uint32_t thread_;  // of the warpgroup
  Turn<Shape::kStages> turn_;
};

template <class T, class Shape>
WEFT_DEVICE void backward_sm90(const TensorMap& q, const TensorMap& k, const TensorMap& v,
                               const TensorMap& dout, const BackwardCall& call) {
  const BackwardTilesSm90<T, Shape> smem;
  constexpr uint32_t kWarps = 4 * Shape::kWarpgroups;
  if (thread() == 0) {
    mbarrier_init(smem.k_full, 1);
    mbarrier_init(smem.v_full, 1);
    for (uint32_t s = 0; s < Shape::kStages; ++s) {
      mbarrier_init(smem.q_full.from(s), 1);
      mbarrier_init(smem.o_full.from(s), 1);
      mbarrier_init(smem.empty.from(s), kWarps);
    }
    for (uint32_t i = 0; i < 2; ++i) {
      mbarrier_init(smem.ds_full.from(i), kWarps);
      mbarrier_init(smem.dq_full.from(i), kWarps);
      mbarrier_init(smem.dq_empty.from(i), 1);
    }
    fence_mbarrier_init();
    prefetch(q), prefetch(k), prefetch(v), prefetch(dout);
    uint32_t* begun = call.done + call.p.H * call.sm90.blocks;
    KeyBlock<Shape>(call, atomic_add(begun, 1u)).store(smem.own);
  }
  sync_block();

  const auto own = KeyBlock<Shape>::load(smem.own);
  if (own.first >= own.at.T) return;
  const uint32_t warpgroup = uniform(warp() / 4);
  if (warpgroup == 0) {
    decrease_registers<Shape::kLoaderRegisters>();
    const uint32_t role = uniform(warp());
    if (own.blocks.empty() || role > 2 || !elect()) return;
    if (role == 0)
      load_blocks<T, Shape>(smem, q, k, v, dout, call, own);
    else
      add_parts<T, Shape>(smem, call, own, role - 1);
  } else {
    increase_registers<Shape::kRegisters>();
    BackwardComputer<T, Shape>(smem, call, warpgroup - 1).run();
  }
}

template <class T, class Shape>
WEFT_KERNEL_BOUNDS(Shape::kThreads, 1)
void backward_sm90_kernel(WEFT_GRID_CONSTANT const TensorMap q,
                          WEFT_GRID_CONSTANT const TensorMap k,
                          WEFT_GRID_CONSTANT const TensorMap v,
                          WEFT_GRID_CONSTANT const TensorMap dout,
                          WEFT_GRID_CONSTANT const BackwardCall call) {
  if constexpr (kHasWgmma)
    backward_sm90<T, Shape>(q, k, v, dout, call);
  else
    stop();
}

// ---- finish

// dQ of what blocks of keys have added up: a block a piece of 64 × 64, its sums as registers lie.
// Memory-bound: 4 bytes an element are read, 2 written.
template <class T, int D>
WEFT_DEVICE void backward_finish(const BackwardCall& call) {
  using Shape = BackwardShape<D, false>;
  using Piece = WgmmaAccumulator<float, 64>;
  using Tile = MatrixTile<T, Major::k, Swizzle::bytes128, 16, 64>;  // of a warp
  constexpr bool kTwo = Shape::kQueries == 128;
  const Backward& p = call.p;
  const uint32_t piece = block().x % 2, n = block().x / 2;
  const auto H = static_cast<uint32_t>(p.H);
  const auto m = static_cast<int32_t>(n % call.sm90.longest),
             h = static_cast<int32_t>(n / call.sm90.longest % H),
             b = static_cast<int32_t>(n / call.sm90.longest / H);
  const Sequence e = sequence_of(p, b);
  constexpr auto kQueries = static_cast<int32_t>(Shape::kQueries);
  const int32_t query = m * kQueries + static_cast<int32_t>(kTwo ? 64 * piece : 0);
  const uint32_t column = kTwo ? 0 : 64 * piece;
  if (query >= e.S || column >= p.D) return;

  Piece sum;
  const Span keys = Sight(p, e).keys(m * kQueries, min((m + 1) * kQueries, e.S));
  const float* from =
      call.dq + (first_block(call, e, b, h) + m) * Shape::kPart + piece * Shape::kPiece;
  WEFT_UNROLL
  for (uint32_t j = 0; j < 8; ++j) {
    const auto four = keys.empty()
                          ? Vec<float, 4>{}
                          : load<4, Cache::streaming>(from + 4 * (kWarpgroup * j + thread()));
    WEFT_UNROLL
    for (uint32_t i = 0; i < 4; ++i) sum[4 * j + i] = four[i] * call.scale;
  }

  SharedLayout layout;
  const Shared<T> tile =
      layout.take<T>(4 * Tile::kSize, kSharedAlignment).from(warp() * Tile::kSize, Tile::kSize);
  const Place named = FragmentA<T>::named(lane());
  WEFT_UNROLL
  for (uint32_t i = 0; i < 4; ++i)
    stmatrix<4>(tile, Tile::index(named.row, 16 * i + named.column), fragment_a<T>(sum, i).words);
  sync_warp();
  for (uint32_t i = lane(); i < 16 * 8; i += kWarp) {
    const uint32_t row = i / 8, c = i % 8 * 8;
    const int32_t at = query + static_cast<int32_t>(16 * warp() + row);
    if (at < e.S && column + c < p.D)
      store(reinterpret_cast<T*>(p.dq.at(e.q_batch, e.q_row + at, h)) + column + c,
            tile.template load<8>(Tile::index(row, c)));
  }
}

template <class T, int D>
WEFT_KERNEL_BOUNDS(kWarpgroup, 8)
void backward_finish_kernel(WEFT_GRID_CONSTANT const BackwardCall call) {
  if constexpr (kHasWgmma)
    backward_finish<T, D>(call);
  else
    stop();
}

}  // namespace weft::attention::cuda
