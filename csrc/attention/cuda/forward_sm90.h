// Attention forward with Hopper's warpgroup products, for bf16 and f16. Formulas:
// attention/params.h.
//
// Plan. A block is persistent: it takes tiles of 64 queries a computing warpgroup (tiles_sm90.h)
// and walks over the blocks of keys that they see, from the last to the first.
//   load       One thread of the first warpgroup, which has given its registers away: tensor copies
//              of Q, and of K and V into rings of stages, guarded by mbarriers. It runs ahead into the
//              next tile while the others finish theirs. Where keys lie in pages its warp comes along:
//              each lane looks up the page of a part of a block of keys, a block ahead of the copies.
//   compute    Each of the other warpgroups, for its 64 queries, at key block n:
//                S = Q · K[n]ᵀ            wgmma, both from shared memory      ┐ under way together,
//                O += P[n + 1] · V[n + 1] wgmma, P in registers               ┘ one group each
//                P[n] = softmax of S      when S is there, under the products of O
//                O *= alpha               when O is there
//              The warpgroups take turns (named barriers) at starting their products, so that the
//              tensor cores have one's to do while the other is at its softmax.
//   mask       Blocks that a warpgroup's queries see in part are at the ends of the walk: they take
//              a loop of their own, and the others' loop compares nothing.
//   write      O / sum, through shared memory (stmatrix), by tensor copies of a warp's 16 rows; rows of a
//              sequence that ends there one by one.
//
// What stands between the product and the exponential, and the softmax: scores.h. Windows alone,
// or, with kOptions, all that there is: every block of keys is then masked.
//
// Cost, for each query and key: 2 · (D + Dv) FLOP of the tensor cores and one exponential, of which
// a multiprocessor makes 16 a clock, beside 4096 FLOP: at D = 128, 512 : 1, the two warpgroups'
// products take twice as long as their exponentials. Memory: Q and O once, K and V once for each
// block of queries, from L2, where a section of heads fits. Bound by the tensor cores from D = 128
// on; at 64 by tensor cores and exponentials alike.
#pragma once

#include "attention/cuda/scores.h"
#include "attention/cuda/tiles_sm90.h"

namespace weft::attention::cuda {

struct ForwardSm90 {
  Forward p;
  Schedule schedule;
  Scoring scoring;
  bool packed;         // blocks of queries are those of all sequences
  int32_t least;       // queries of the sequences that it is for
  int64_t k_rows;      // of the tensor: those behind a sequence hold something
  bool clip;           // sequences end within the rows of out
  uint32_t page_part;  // rows of a page that a tensor copy brings (plan_sm90.h)
};

// ---- what a tile is

struct TileSm90 {
  Sequence at;
  int32_t b, h, k_head;
  int32_t first;  // query
};

template <class Shape>
WEFT_DEVICE TileSm90 tile_of(const ForwardSm90& call, uint32_t i) {
  const Schedule::Tile tile = call.schedule.tile(i);
  const auto H = static_cast<uint32_t>(call.p.H), group = H / static_cast<uint32_t>(call.p.K);
  constexpr auto kQueries = static_cast<int32_t>(Shape::kQueries);
  const auto block = static_cast<int32_t>(tile.block);
  const PackedTile at = call.packed ? packed_tile(call.p, 1, kQueries, block)
                                    : PackedTile{static_cast<int32_t>(tile.head / H), block};
  TileSm90 t;
  t.b = at.b;
  t.h = static_cast<int32_t>(tile.head % H);
  t.k_head = static_cast<int32_t>(tile.head % H / group);
  t.at = sequence_of(call.p, t.b);
  if (t.at.S < call.least) t.at.S = 0;
  t.first = at.tile < 0 ? t.at.S : at.tile * kQueries;  // behind the last: nothing to do
  return t;
}

// What `count` queries from `first` on see: keys that one of them needs, and those that all see.
struct Sight {
  Span some, all;
};
WEFT_DEVICE Sight sight_of(const Problem& p, const TileSm90& t, int32_t first, int32_t count) {
  const Span top = keys_of(p, t.at, first),
             bottom = keys_of(p, t.at, min(first + count, t.at.S) - 1);
  return {{top.begin, bottom.end}, {bottom.begin, top.end}};
}

// The blocks of keys that a tile walks over.
template <class Shape>
WEFT_DEVICE Span walk_of(const Problem& p, const TileSm90& t) {
  constexpr int32_t kKeys = Shape::kKeys;
  if (t.first >= t.at.S) return {0, 0};
  const Span keys = sight_of(p, t, t.first, Shape::kQueries).some;
  return keys.empty() ? Span{0, 0} : Span{keys.begin / kKeys, ceil_div(keys.end, kKeys)};
}

// ---- load

// `rows` rows of a tile, from row `at` on.
template <class Tile, CachePolicy kPolicy, class T>
WEFT_DEVICE void load_rows(Shared<T> tile, uint32_t at, uint32_t rows, const TensorMap& map,
                           int32_t row, int32_t head, int32_t batch, Shared<MBarrier> full) {
  WEFT_UNROLL
  for (uint32_t i = 0; i < Tile::kPanels; ++i)
    tensor_load<kPolicy>(tile.from(Tile::panel(i) + at * Tile::kRun, Tile::kRun * rows), map,
                         {static_cast<int32_t>(i * Tile::kRun), row, head, batch}, full);
}

template <class Tile, CachePolicy kPolicy, class T>
WEFT_DEVICE void load_tile(Shared<T> tile, const TensorMap& map, int32_t row, int32_t head,
                           int32_t batch, Shared<MBarrier> full) {
  mbarrier_arrive_expect(full, Tile::kSize * sizeof(T));
  load_rows<Tile, kPolicy>(tile, 0, Tile::kRows, map, row, head, batch, full);
}

// Lane i: the page of part i of the block of keys from `key` on. Parts of which no key is needed are
// looked for in page -1, which there is none of, and are zeros: their pages need not exist.
WEFT_DEVICE int32_t page_of_part(const ForwardSm90& call, int32_t b, int32_t key, Span needed) {
  const Sequences& s = call.p.sequences;
  const auto part = static_cast<int32_t>(call.page_part);
  key += static_cast<int32_t>(lane()) * part;
  if (key + part <= needed.begin || key >= needed.end) return -1;
  return load(s.block_table + b * s.table_stride +
              static_cast<uint32_t>(key) / static_cast<uint32_t>(s.page_size));
}

// The block of keys from `key` on, part by part: by a whole warp, of which one lane copies.
template <class Tile, CachePolicy kPolicy, class T>
WEFT_DEVICE void load_parts(Shared<T> tile, const TensorMap& map, const ForwardSm90& call,
                            int32_t key, int32_t head, int32_t pages, bool copies,
                            Shared<MBarrier> full) {
  const auto page_size = static_cast<uint32_t>(call.p.sequences.page_size);
  uint32_t row = static_cast<uint32_t>(key) % page_size;
  if (copies) mbarrier_arrive_expect(full, Tile::kSize * sizeof(T));
  WEFT_NO_UNROLL
  for (uint32_t at = 0, i = 0; at < Tile::kRows; at += call.page_part, ++i) {
    const int32_t page = shuffle(pages, i);
    if (copies)
      load_rows<Tile, kPolicy>(tile, at, call.page_part, map, static_cast<int32_t>(row), head, page,
                               full);
    row += call.page_part;
    if (row == page_size) row = 0;
  }
}

// One thread, or a warp where keys lie in pages. Of a tile K of the last block first, then Q; V of a
// block after K of the next, as they are used.
template <bool kPaged, class T, class Shape>
WEFT_DEVICE void load_tiles(const Tiles<T, Shape>& smem, const TensorMap& q, const TensorMap& k,
                            const TensorMap& v, const ForwardSm90& call) {
  using M = Tiles<T, Shape>;
  constexpr auto kKeys = static_cast<int32_t>(Shape::kKeys);
  constexpr CachePolicy kOnce = CachePolicy::evict_first, kOften = CachePolicy::evict_last;
  const bool copies = !kPaged || elect();
  Turn<Shape::kStages> k_turn, v_turn;
  uint32_t q_parity = 0;
  for (uint32_t round = 0;; ++round) {
    const uint32_t i = call.schedule.at(round, block().x, blocks().x);
    if (i >= call.schedule.tiles) return;
    const TileSm90 t = tile_of<Shape>(call, i);
    const Sequence& e = t.at;
    const Span walk = walk_of<Shape>(call.p, t);
    if (walk.empty()) continue;
    const auto pages_of = [&](int32_t n) {
      if constexpr (!kPaged) return 0;
      return page_of_part(call, t.b, n * kKeys, sight_of(call.p, t, t.first, Shape::kQueries).some);
    };
    const auto load_block = [&]<class Tile>(Tile, Shared<T> tile, const TensorMap& map, int32_t n,
                                            int32_t pages, Shared<MBarrier> full) {
      if constexpr (kPaged)
        load_parts<Tile, kOften>(tile, map, call, n * kKeys, t.k_head, pages, copies, full);
      else
        load_tile<Tile, kOften>(tile, map, e.k_row + n * kKeys, t.k_head, e.k_batch, full);
    };
    const auto load_k = [&](int32_t n, int32_t pages) {
      const uint32_t s = k_turn.stage;
      mbarrier_wait(smem.k_empty.from(s), k_turn.parity ^ 1);
      load_block(typename M::K{}, smem.keys(s), k, n, pages, smem.k_full.from(s));
      k_turn.next();
    };
    const auto load_v = [&](int32_t n, int32_t pages) {
      const uint32_t s = v_turn.stage;
      mbarrier_wait(smem.v_empty.from(s), v_turn.parity ^ 1);
      load_block(typename M::V{}, smem.values(s), v, n, pages, smem.v_full.from(s));
      v_turn.next();
    };
    int32_t n = walk.end - 1, pages = pages_of(n), ahead = pages_of(n - 1);
    load_k(n, pages);
    for (uint32_t w = 0; w < Shape::kWarpgroups; ++w) {
      mbarrier_wait(smem.q_empty.from(w), q_parity ^ 1);
      if (copies)
        load_tile<typename M::Q, kOnce>(smem.queries(w), q,
                                        e.q_row + t.first + static_cast<int32_t>(64 * w), t.h,
                                        e.q_batch, smem.q_full.from(w));
    }
    q_parity ^= 1;
    for (--n; n >= walk.begin; --n) {
      const int32_t last = pages;
      pages = ahead;
      load_k(n, pages);
      ahead = pages_of(n - 1);
      load_v(n + 1, last);
    }
    load_v(walk.begin, pages);
  }
}

// ---- compute

// One of the computing warpgroups: from barriers to results.
template <class T, class Shape>
class Computer {
  using M = Tiles<T, Shape>;
  using S = WgmmaAccumulator<float, Shape::kKeys>;
  using O = WgmmaAccumulator<float, Shape::kDv>;
  static constexpr uint32_t kSteps = Shape::kKeys / 16;  // of P · V
  // Named barriers.
  static constexpr uint32_t kCleared = 1, kRead = 2, kTurn = kRead + Shape::kWarpgroups;

 public:
  WEFT_DEVICE Computer(const M& smem, const TensorMap& out, const ForwardSm90& call, uint32_t index)
      : smem_(smem), out_(out), call_(call), index_(index), thread_(thread() % kWarpgroup) {}

  WEFT_DEVICE void run() {
    const uint32_t last = Shape::kWarpgroups - 1;
    if (Shape::kTurns && index_ == last) pass_turn();
    for (uint32_t round = 0;; ++round) {
      const uint32_t i = call_.schedule.at(round, block().x, blocks().x);
      if (i >= call_.schedule.tiles) break;
      const TileSm90 t = tile_of<Shape>(call_, i);
      if (t.first >= t.at.S) continue;
      const Span walk = walk_of<Shape>(call_.p, t);
      if (walk.empty())
        write_nothing(t);
      else
        compute(t, walk);
    }
    if (Shape::kTurns && index_ == 0) take_turn();
    if (elect()) bulk_wait_read<0>();
  }

 private:
  // ---- turns go round
  WEFT_DEVICE void take_turn() const { sync_named(kTurn + index_, 2 * kWarpgroup); }
  WEFT_DEVICE void pass_turn() const {
    arrive_named(kTurn + (index_ + 1) % Shape::kWarpgroups, 2 * kWarpgroup);
  }

  // This warp has done with a tile.
  WEFT_DEVICE void release(Shared<MBarrier> empty) const {
    if (elect()) mbarrier_arrive(empty);
  }

  WEFT_DEVICE void compute(const TileSm90& t, const Span& walk) {
    constexpr auto kKeys = static_cast<int32_t>(Shape::kKeys);
    const int32_t query = t.first + static_cast<int32_t>(64 * index_);
    const Span whole = sight_of(call_.p, t, query, 64).all;  // keys that need no mask
    const int32_t whole_begin = ceil_div(whole.begin, kKeys), whole_end = whole.end / kKeys;
    const int32_t row = query + static_cast<int32_t>(S::place(thread_, 0).row);
    const Span seen[2] = {keys_of(call_.p, t.at, row), keys_of(call_.p, t.at, row + 8)};

    S s;
    O o;
    FragmentA<T> p[kSteps];
    Softmax<2> softmax;
    float alpha[2];
    for (uint32_t i = 0; i < o.kSize; ++i) o[i] = 0;

    int32_t n = walk.end - 1;
    mbarrier_wait(smem_.q_full.from(index_), q_parity_);
    mbarrier_wait(smem_.k_full.from(k_turn_.stage), k_turn_.parity);
    wgmma_fence(s);
    multiply_k(s);
    wgmma_wait<0>(s);
    release(smem_.k_empty.from(k_turn_.stage));
    k_turn_.next();
    weigh<true>(s, t, row, seen, n * kKeys, softmax, alpha);
    to_operand(s, p);
    clear_behind(t, n);

    const auto step = [&]<bool kMask>() {
      mbarrier_wait(smem_.k_full.from(k_turn_.stage), k_turn_.parity);
      if constexpr (Shape::kTurns) take_turn();
      wgmma_fence(s);
      multiply_k(s);
      mbarrier_wait(smem_.v_full.from(v_turn_.stage), v_turn_.parity);
      wgmma_fence(o, p);
      multiply_v(o, p);
      if constexpr (Shape::kTurns) pass_turn();
      wgmma_wait<1>(s);
      release(smem_.k_empty.from(k_turn_.stage));
      k_turn_.next();
      weigh<kMask>(s, t, row, seen, n * kKeys, softmax, alpha);
      wgmma_wait<0>(o, p);
      release(smem_.v_empty.from(v_turn_.stage));
      v_turn_.next();
      to_operand(s, p);
      // Seldom, once the maximum has been found. Of small heads always: there are no registers to
      // ask.
      if (Shape::kDv == 64 || any(alpha[0] != 1 || alpha[1] != 1)) WEFT_UNROLL
      for (uint32_t i = 0; i < o.kSize; ++i) o[i] *= alpha[i / 2 % 2];
    };
    for (--n; n >= walk.begin;) {
      for (; n >= walk.begin && (Shape::kOptions || n >= whole_end || n < whole_begin); --n)
        step.template operator()<true>();
      if constexpr (!Shape::kOptions)
        for (; n >= walk.begin && n >= whole_begin; --n) step.template operator()<false>();
    }
    if constexpr (!Shape::kOutputInQ) release(smem_.q_empty.from(index_));

    mbarrier_wait(smem_.v_full.from(v_turn_.stage), v_turn_.parity);
    wgmma_fence(o, p);
    multiply_v(o, p);
    wgmma_wait<0>(o, p);
    release(smem_.v_empty.from(v_turn_.stage));
    v_turn_.next();
    q_parity_ ^= 1;
    write(t, row, o, softmax);
  }

  // s, of keys from `key` on, becomes the weights of V. There are registers for what options look
  // up of a row, but not from one block of keys to the next.
  template <bool kMask>
  WEFT_DEVICE void weigh(S& s, [[maybe_unused]] const TileSm90& t, [[maybe_unused]] int32_t row,
                         const Span (&seen)[2], int32_t key, Softmax<2>& softmax,
                         float (&alpha)[2]) const {
    const Scoring& scoring = call_.scoring;
    constexpr int kColumns = S::kColumns / 4;
    const auto at = [&](int r, int j) -> float& { return s[j / 2 * 4 + 2 * r + j % 2]; };
    const auto row_of = [&](int32_t i) {  // of the tile; looked up even where it is none
      return Row{opaque(min(i, t.at.S - 1)), opaque(t.h)};
    };
    if constexpr (Shape::kOptions)
      if (scoring.changes) {
        const Row rows[2] = {row_of(row), row_of(row + 8)};
        change<2, kColumns>(call_.p, scoring, t.at, opaque(t.b), rows, key, at);
      }
    if constexpr (kMask) hide<2, kColumns>(seen, key, at);
    softmax.update<kColumns>(scoring.scale, at, alpha);
    if constexpr (Shape::kOptions)
      if (scoring.drops) {
        const Row rows[2] = {row_of(row), row_of(row + 8)};
        drop<2, kColumns>(call_.p, scoring, opaque(t.b), rows, key, at);
      }
  }

  // S = Q · Kᵀ, as a group.
  WEFT_DEVICE void multiply_k(S& s) const {
    const Shared<T> q = smem_.queries(index_), k = smem_.keys(k_turn_.stage);
    WEFT_UNROLL
    for (uint32_t d = 0; d < Shape::kD; d += 16)
      wgmma(s, M::Q::descriptor(q, 0, d), M::K::descriptor(k, 0, d), d > 0);
    wgmma_commit();
  }
  // O += P · V, likewise.
  WEFT_DEVICE void multiply_v(O& o, const FragmentA<T> (&p)[kSteps]) const {
    const Shared<T> v = smem_.values(v_turn_.stage);
    WEFT_UNROLL
    for (uint32_t k = 0; k < kSteps; ++k) wgmma(o, p[k], M::V::descriptor(v, 0, 16 * k), true);
    wgmma_commit();
  }

  WEFT_DEVICE static void to_operand(const S& s, FragmentA<T> (&p)[kSteps]) {
    WEFT_UNROLL
    for (uint32_t k = 0; k < kSteps; ++k) p[k] = fragment_a<T>(s, k);
  }

  // Values behind the last key may be anything, NaN too, which p = 0 does not undo. Beyond the
  // tensor they are zeros already.
  WEFT_DEVICE void clear_behind(const TileSm90& t, int32_t n) const {
    const Sequence& e = t.at;
    const auto valid = static_cast<uint32_t>(e.T - n * static_cast<int32_t>(Shape::kKeys));
    if (valid >= Shape::kKeys || e.k_row + e.T >= call_.k_rows) return;
    mbarrier_wait(smem_.v_full.from(v_turn_.stage), v_turn_.parity);
    const Shared<T> v = smem_.values(v_turn_.stage);
    constexpr uint32_t kRow = Shape::kDv / 8, kThreads = Shape::kWarpgroups * kWarpgroup;
    for (uint32_t i = thread() - kWarpgroup; i < (Shape::kKeys - valid) * kRow; i += kThreads)
      v.template store<8>(M::V::index(i % kRow * 8, valid + i / kRow), Vec<T, 8>{});
    fence_async();
    sync_named(kCleared, kThreads);
  }

  // ---- results

  WEFT_DEVICE Softmax<2>::Result finish(const TileSm90& t, const Softmax<2>& softmax, int r) const {
    const Vectors& sinks = call_.p.sinks;
    return softmax.finish(r, sinks ? sinks.data + t.h * sinks.head : nullptr);
  }

  WEFT_DEVICE void write_lse(const TileSm90& t, int32_t query, float lse) const {
    if (call_.p.lse)
      store(static_cast<float*>(call_.p.lse) + lse_index(call_.p, t.at, t.b, t.h, query), lse);
  }

  WEFT_DEVICE void write(const TileSm90& t, int32_t row, O& o, const Softmax<2>& softmax) {
    WEFT_UNROLL
    for (uint32_t r = 0; r < 2; ++r) {
      const auto [lse, factor] = finish(t, softmax, r);
      WEFT_UNROLL
      for (uint32_t i = 2 * r; i < o.kSize; i += 4) o[i] *= factor, o[i + 1] *= factor;
      const int32_t query = row + static_cast<int32_t>(8 * r);
      if (lane() % 4 == 0 && query < t.at.S) write_lse(t, query, lse);
    }

    // The warp's place is free when its last results have been read, and, in Q, the products have
    // done with that.
    const Shared<T> tile = smem_.output(warp() - 4);
    if constexpr (Shape::kOutputInQ) {
      sync_named(kRead + index_, kWarpgroup);
    } else {
      if (elect()) bulk_wait_read<0>();
      sync_warp();
    }
    const Place named = FragmentA<T>::named(lane());
    WEFT_UNROLL
    for (uint32_t k = 0; k < Shape::kDv / 16; ++k)
      stmatrix<4>(tile, M::O::index(named.row, 16 * k + named.column), fragment_a<T>(o, k).words);

    fence_async();  // before tensor copies: of the results out, and of the next Q into their place
    const int32_t first = t.first + static_cast<int32_t>((warp() - 4) * M::kWarpRows);
    if (!call_.clip || first + static_cast<int32_t>(M::kWarpRows) <= t.at.S) {
      sync_warp();
      if (elect()) {
        WEFT_UNROLL
        for (uint32_t i = 0; i < M::O::kPanels; ++i)
          tensor_store(
              out_, {static_cast<int32_t>(i * M::O::kRun), t.at.q_row + first, t.h, t.at.q_batch},
              tile.from(M::O::panel(i), M::O::kRun * M::O::kRows));
        bulk_commit();
      }
    } else {
      sync_warp();
      write_rows(t, first, tile);
    }
    if constexpr (Shape::kOutputInQ) {
      if (elect()) bulk_wait_read<0>();
      sync_warp();
      release(smem_.q_empty.from(index_));
    }
  }

  // The rows of a warp that are the sequence's, 8 elements a lane.
  WEFT_DEVICE void write_rows(const TileSm90& t, int32_t first, Shared<T> tile) const {
    const auto Dv = static_cast<uint32_t>(call_.p.Dv);
    constexpr uint32_t kRow = Shape::kDv / 8;
    for (uint32_t i = lane(); i < M::kWarpRows * kRow; i += kWarp) {
      const uint32_t row = i / kRow, column = i % kRow * 8;
      const int32_t query = first + static_cast<int32_t>(row);
      if (query < t.at.S && column < Dv)
        store(out_at(t, query) + column, tile.template load<8>(M::O::index(row, column)));
    }
  }

  // Queries that see no key.
  WEFT_DEVICE void write_nothing(const TileSm90& t) const {
    const auto Dv = static_cast<uint32_t>(call_.p.Dv);
    const float lse = finish(t, Softmax<2>(), 0).lse;
    for (uint32_t row = warp() - 4; row < Shape::kQueries; row += 4 * Shape::kWarpgroups) {
      const int32_t query = t.first + static_cast<int32_t>(row);
      if (query >= t.at.S) return;
      for (uint32_t column = lane() * 8; column < Dv; column += kWarp * 8)
        store(out_at(t, query) + column, Vec<T, 8>{});
      if (lane() == 0) write_lse(t, query, lse);
    }
  }

  WEFT_DEVICE T* out_at(const TileSm90& t, int32_t query) const {
    return reinterpret_cast<T*>(call_.p.out.at(t.at.q_batch, t.at.q_row + query, t.h));
  }

  const M& smem_;
  const TensorMap& out_;
  const ForwardSm90& call_;
  const uint32_t index_;   // of the warpgroup among those that compute
  const uint32_t thread_;  // of the warpgroup
  Turn<Shape::kStages> k_turn_, v_turn_;
  uint32_t q_parity_ = 0;
};

template <class T, class Shape>
WEFT_DEVICE void forward_sm90(const TensorMap& q, const TensorMap& k, const TensorMap& v,
                              const TensorMap& out, const ForwardSm90& call) {
  const Tiles<T, Shape> smem;
  constexpr uint32_t kComputingWarps = 4 * Shape::kWarpgroups;
  if (thread() == 0) {
    for (uint32_t w = 0; w < Shape::kWarpgroups; ++w) {
      mbarrier_init(smem.q_full.from(w), 1);
      mbarrier_init(smem.q_empty.from(w), 4);
    }
    for (uint32_t s = 0; s < Shape::kStages; ++s) {
      mbarrier_init(smem.k_full.from(s), 1);
      mbarrier_init(smem.v_full.from(s), 1);
      mbarrier_init(smem.k_empty.from(s), kComputingWarps);
      mbarrier_init(smem.v_empty.from(s), kComputingWarps);
    }
    fence_mbarrier_init();
    prefetch(q), prefetch(k), prefetch(v), prefetch(out);
  }
  sync_block();

  const uint32_t warpgroup = uniform(warp() / 4);
  if (warpgroup == 0) {
    decrease_registers<Shape::kLoaderRegisters>();
    if (uniform(warp()) != 0) return;
    if (call.p.sequences.block_table)
      load_tiles<true, T, Shape>(smem, q, k, v, call);
    else if (elect())
      load_tiles<false, T, Shape>(smem, q, k, v, call);
  } else {
    increase_registers<Shape::kRegisters>();
    Computer<T, Shape>(smem, out, call, warpgroup - 1).run();
  }
}

template <class T, class Shape>
WEFT_KERNEL_BOUNDS(Shape::kThreads, 1)
void forward_sm90_kernel(WEFT_GRID_CONSTANT const TensorMap q, WEFT_GRID_CONSTANT const TensorMap k,
                         WEFT_GRID_CONSTANT const TensorMap v,
                         WEFT_GRID_CONSTANT const TensorMap out,
                         WEFT_GRID_CONSTANT const ForwardSm90 call) {
  if constexpr (kHasWgmma)
    forward_sm90<T, Shape>(q, k, v, out, call);
  else
    stop();
}

}  // namespace weft::attention::cuda
