// Forward for sm_80 and whatever comes after. Formulas: attention/params.h.
//
// A block takes a tile of rows, 16 or 32 a warp, over the key blocks that they see (plan.h), in the
// manner of FlashAttention-2, arXiv 2307.08691:
//
//   Q           once, into shared memory; swizzled, as all tiles are (tiles.h)
//   for each block of keys
//     S = Q · Kᵀ            m16n8k16, both from shared memory by ldmatrix; float: tf32, or 3 ×
//     options, -inf         where a block is not seen whole (scores.h)
//     P = 2^(S - max)       in registers; O is brought to the new maximum
//     O += P · V            P as A from registers, V by ldmatrix, transposed
//   O, lse      out (finish.h)
//
// K and V come by cp.async into a ring of `stages` tiles, K and V of a block one after the other: while
// one tile is multiplied the next stages - 1 are on their way. One barrier a tile says both that it is
// there and that the one before it is free. int8 tiles come into a ring of bytes, and each thread turns
// what it has brought itself into a tile of numbers, exactly; the scales of keys go to S, those of
// values to P.
//
// The plain kernel knows windows and nothing else, no pages either. The others have all options as
// run-time switches, read rows that are no vectors element by element, and in decoding append the keys
// that are new (fresh.h). Where a tile has 16 rows at most, its warps all take these, and a quarter each
// of its keys: what they have is added at the end (join_warps.h).
// Cost: 4 · S · T · D FLOPs a head, half of it causal; K and V are read once for each tile of rows.
// Bound by the tensor cores from some hundred rows a key head on, by reading K and V below.
#pragma once

#include "attention/cuda/finish.h"
#include "attention/cuda/fresh.h"
#include "attention/cuda/join_warps.h"
#include "attention/cuda/tiles.h"

namespace weft::attention::cuda {

template <class X, int kD, int kDv, ForwardKernel kKernel>
struct ForwardTraits {
  static constexpr HeadSize kSize = {kD, kDv};
  static constexpr ForwardTile kTile = forward_tile(sizeof(X), kSize, kKernel);
  static constexpr bool kPlain = kKernel == ForwardKernel::sm80_plain;
  static constexpr int kThreads = kTile.threads(), kM = kTile.rows(), kN = kTile.keys,
                       kStages = kTile.stages, kMTiles = kTile.m_tiles,
                       kWarpKeys = kTile.warp_keys();
  static constexpr int kStageColumns = kD > kDv ? kD : kDv;
  // float16 has few exponents: what scales of values make of weights is held up by as much.
  static constexpr float kLift = std::is_same_v<X, f16> ? 64 : 1;
};

template <class X, int kD, int kDv, ForwardKernel kKernel>
struct ForwardShared {
  using T = ForwardTraits<X, kD, kDv, kKernel>;
  static constexpr uint32_t kStage = T::kN * T::kStageColumns;

  SharedLayout layout;
  Shared<X> q = layout.take<X>(T::kM * kD, 128);
  Shared<X> ring;        // [stages]; of int8 caches [2], for K and V
  Shared<int8_t> bytes;  // int8 caches alone: [stages]
  Shared<float> scales;  // likewise, of each key
  Shared<float> states;  // of warps that share rows: join_warps.h

  WEFT_INLINE explicit ForwardShared(bool int8)
      : ring(layout.take<X>(kStage * (int8 ? 2 : T::kStages), 128)),
        bytes(layout.take<int8_t>(int8 ? kStage * T::kStages : 0, 128)),
        scales(layout.take<float>(int8 ? T::kN * T::kStages : 0)),
        states(layout.take<float>(
            T::kTile.shares_rows ? kStatesOfWarp * static_cast<uint32_t>(T::kTile.warps) : 0)) {}
};

// The keys `needed` of a block in blocks of kN: tile 2j is K of block j, tile 2j + 1 is V.
template <class X, int kD, int kDv, ForwardKernel kKernel>
class KeyTiles {
  using T = ForwardTraits<X, kD, kDv, kKernel>;
  using Smem = ForwardShared<X, kD, kDv, kKernel>;
  static constexpr int kN = T::kN, kStages = T::kStages;
  static constexpr bool kPlain = T::kPlain;

 public:
  WEFT_DEVICE KeyTiles(const ForwardCall& call, const Smem& smem, const Sequence& e, int32_t b,
                       int32_t k, int32_t chunk, Span needed)
      : call_(call),
        smem_(smem),
        e_(e),
        b_(b),
        k_(k),
        chunk_(chunk),
        needed_(needed),
        first_(needed.begin / kN),
        count_(needed.empty() ? 0 : (needed.end + kN - 1) / kN - first_),
        int8_(!kPlain && call.p.k.dtype == DType::i8) {}

  WEFT_DEVICE int count() const { return 2 * count_; }
  WEFT_DEVICE int32_t first_key(int s) const { return (first_ + s / 2) * kN; }
  WEFT_DEVICE bool int8() const { return int8_; }

  WEFT_DEVICE void start() {
    WEFT_NO_UNROLL
    for (int s = 0; s < kStages - 1; ++s)
      if (s % 2 == 0)
        issue<false>(s);
      else
        issue<true>(s);
  }
  // Tile s, of V or of K, is there for all threads, and tile s - 1 makes room for another.
  template <bool kIsV>
  WEFT_DEVICE void arrive(int s) {
    copy_async_wait<kStages - 2>();
    if (int8_) widen<kIsV ? kDv : kD>(s);
    sync_block();
    issue<kIsV == (kStages % 2 == 1)>(s + kStages - 1);
  }
  WEFT_DEVICE Shared<X> operator[](int s) const {
    const int at = int8_ ? s % 2 : s % kStages;
    return smem_.ring.from(static_cast<uint32_t>(at) * Smem::kStage, Smem::kStage);
  }
  // The scale of key `column` of an int8 tile.
  WEFT_DEVICE float scale(int s, uint32_t column) const {
    return smem_.scales[static_cast<uint32_t>(s % kStages) * kN + column];
  }

 private:
  WEFT_DEVICE Shared<int8_t> bytes(int s) const {
    return smem_.bytes.from(static_cast<uint32_t>(s % kStages) * Smem::kStage, Smem::kStage);
  }

  template <bool kIsV>
  WEFT_DEVICE void issue(int s) {
    if (s < count()) {
      const Forward& p = call_.p;
      if constexpr (kIsV)
        bring<kDv>(s, p.v, p.v_scale, int64_t{chunk_} * kDv, p.Dv - int64_t{chunk_} * kDv);
      else
        bring<kD>(s, p.k, p.k_scale, 0, p.D);
    }
    copy_async_commit();
  }

  // `columns` columns of the tensor, from `from` on.
  template <int kWidth>
  WEFT_DEVICE void bring(int s, const Heads& tensor, const Vectors& scales, int64_t from,
                         int64_t columns) {
    const auto bring_as = [&](const auto& to, const auto& index) {
      using E = typename std::remove_cvref_t<decltype(to)>::Element;
      bring_tile<kN, kWidth, T::kThreads, sizeof(X) == 2>(
          to, kPlain || call_.plan.vector,
          [&](uint32_t r, uint32_t column, const E*& unit) {
            const int32_t t = first_key(s) + static_cast<int32_t>(r);
            unit = static_cast<const E*>(tensor.data);
            if (t < needed_.begin || t >= needed_.end) return 0;
            const KeyPlace at = kPlain ? KeyPlace{e_.k_batch, e_.k_row + t}
                                       : key_place(call_.p.sequences, e_, b_, t);
            unit +=
                at.batch * tensor.batch + at.row * tensor.row + k_ * tensor.head + from + column;
            return static_cast<int>(columns) - static_cast<int>(column);
          },
          index);
    };
    if (!int8_) {
      bring_as((*this)[s], [](uint32_t r, uint32_t c) { return tile_index<X, kWidth>(r, c); });
    } else if constexpr (!kPlain) {
      bring_as(bytes(s), [](uint32_t r, uint32_t c) { return r * kWidth + c; });
      for (uint32_t r = thread(); r < kN; r += T::kThreads) {
        const int32_t t = first_key(s) + static_cast<int32_t>(r);
        float scale = 0;
        if (t >= needed_.begin && t < needed_.end) {
          const KeyPlace at = key_place(call_.p.sequences, e_, b_, t);
          scale =
              load(scales.data + at.batch * scales.batch + at.row * scales.row + k_ * scales.head);
        }
        smem_.scales[static_cast<uint32_t>(s % kStages) * kN + r] = scale;
      }
    }
  }

  // What this thread has brought of an int8 tile, as numbers.
  template <int kWidth>
  WEFT_DEVICE void widen(int s) const {
    const Shared<int8_t> from = bytes(s);
    const Shared<X> to = (*this)[s];
    for_units<int8_t, kN, kWidth, T::kThreads, false>([&](uint32_t r, uint32_t column) {
      const Vec<int8_t, 16> v = from.template load<16>(r * kWidth + column);
      WEFT_UNROLL
      for (int u = 0; u < 16; u += kUnit<X>) {
        Vec<X, kUnit<X>> unit;
        WEFT_UNROLL
        for (int i = 0; i < kUnit<X>; ++i) unit[i] = convert<X>(static_cast<float>(v[u + i]));
        to.template store<kUnit<X>>(tile_index<X, kWidth>(r, column + static_cast<uint32_t>(u)),
                                    unit);
      }
    });
  }

  const ForwardCall& call_;
  const Smem& smem_;
  const Sequence& e_;
  int32_t b_, k_, chunk_;
  Span needed_;
  int32_t first_, count_;
  bool int8_;
};

template <class Op, int kD, int kDv, ForwardKernel kKernel>
WEFT_KERNEL_BOUNDS((ForwardTraits<typename Op::X, kD, kDv, kKernel>::kThreads), 1)
void forward_sm80_kernel(WEFT_GRID_CONSTANT const ForwardCall call) {
  using X = typename Op::X;
  using T = ForwardTraits<X, kD, kDv, kKernel>;
  constexpr bool kPlain = T::kPlain, kSharesRows = T::kTile.shares_rows;
  constexpr int kM = T::kM, kN = T::kWarpKeys, kMTiles = T::kMTiles;
  constexpr int kRows = 2 * kMTiles, kColumns = kN / 4;  // scores of a thread
  const Forward& p = call.p;
  const ForwardPlan& plan = call.plan;
  const ForwardShared<X, kD, kDv, kKernel> smem(!kPlain && p.k.dtype == DType::i8);

  // ---- which rows, which keys. Later rows, which see more keys where causal, come first; of a packed
  // batch all heads and splits of a tile follow one another.
  uint32_t index = block().x;
  const auto part_of = [&](int64_t count) {
    const uint32_t part = index % static_cast<uint32_t>(count);
    index /= static_cast<uint32_t>(count);
    return static_cast<int32_t>(part);
  };
  const auto row_blocks = static_cast<int32_t>(plan.row_blocks);
  const int32_t own_block = plan.packed ? 0 : row_blocks - 1 - part_of(plan.row_blocks),
                chunk = part_of(plan.chunks), split = part_of(plan.splits), k = part_of(p.K);
  const auto last = static_cast<int32_t>(index);
  const auto [b, row_block] = plan.packed ? packed_tile(p, plan.group, kM, row_blocks - 1 - last)
                                          : PackedTile{last, own_block};
  const Sequence e = sequence_of(p, b);
  const int32_t rows = e.S * plan.group, row0 = row_block * kM;
  if (row0 < 0 || row0 >= rows || !plan.takes(e.S)) return;
  const auto row_of = [&](uint32_t r) {
    const int32_t row = min(row0 + static_cast<int32_t>(r), rows - 1), i = row / plan.group;
    return Row{i, k * plan.group + row - i * plan.group};
  };
  const Span own = {static_cast<int32_t>(split * plan.split_keys),
                    static_cast<int32_t>(min((split + 1) * plan.split_keys, int64_t{e.T}))};
  if constexpr (!kPlain)
    if (p.fresh) {
      append_own<X>(p, e, b, k, own);
      sync_block();
    }
  const Span early = keys_of(p, e, row_of(0).i), late = keys_of(p, e, row_of(kM - 1).i),
             whole = {late.begin, early.end};  // seen by all rows
  KeyTiles<X, kD, kDv, kKernel> tiles(call, smem, e, b, k, chunk,
                                      intersect({early.begin, late.end}, own));
  const auto query_at = [&](const Row& row) {
    return static_cast<const X*>(p.q.data) + e.q_batch * p.q.batch +
           int64_t{e.q_row + row.i} * p.q.row + row.h * p.q.head;
  };
  const bool turns = !kPlain && p.fresh.turn.R > 0;
  if (!turns)
    bring_tile<kM, kD, T::kThreads, false>(
        smem.q, kPlain || plan.vector,
        [&](uint32_t r, uint32_t column, const X*& unit) {
          unit = query_at(row_of(r)) + column;
          return row0 + static_cast<int32_t>(r) < rows
                     ? static_cast<int>(p.D) - static_cast<int>(column)
                     : 0;
        },
        [](uint32_t r, uint32_t c) { return tile_index<X, kD>(r, c); });
  tiles.start();
  if (turns) {  // while the first keys are on their way
    const Rotary& turn = p.fresh.turn;
    const int32_t position = load(turn.offsets + b);
    WEFT_NO_UNROLL
    for (uint32_t n = thread(); n < kM * kD; n += T::kThreads) {
      const uint32_t r = n / kD, d = n % kD;
      const Row row = row_of(r);
      const bool here = row0 + static_cast<int32_t>(r) < rows && d < p.D;
      smem.q[tile_index<X, kD>(r, d)] =
          here ? turned(turn, query_at(row), position + turn.step * row.i, d) : X{};
    }
  }

  // ---- the rows of this thread, and the keys of a tile
  const uint32_t warp_row = kSharesRows ? 0 : warp() * 16 * kMTiles,
                 warp_key = kSharesRows ? warp() * kN : 0;
  const auto row_in_tile = [&](int r) {
    return warp_row + static_cast<uint32_t>(r / 2 * 16 + r % 2 * 8) + lane() / 4;
  };
  struct Rows {
    Row row[kRows];
  };
  const auto own_rows = [&] {  // made where they are needed: registers are short
    Rows mine;
    WEFT_UNROLL
    for (int r = 0; r < kRows; ++r) mine.row[r] = row_of(row_in_tile(r));
    return mine;
  };
  // A warp without rows helps to load and computes nothing: decoding leaves most of a tile empty.
  const bool idle = row0 + static_cast<int32_t>(warp_row) >= rows;
  Softmax<kRows> softmax;
  Fragments<kMTiles, kDv> o;
  o.clear();

  WEFT_NO_UNROLL
  for (int s = 0; s < tiles.count(); s += 2) {
    Fragments<kMTiles, kN> scores;
    const auto score = [&](int r, int j) -> float& {
      return scores.c[r / 2][j / 2][static_cast<uint32_t>(r % 2 * 2 + j % 2)];
    };
    const auto scale_keys = [&](int of, float lift) {  // of int8 tiles
      WEFT_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        const float factor =
            tiles.scale(of, warp_key + column_of(lane(), static_cast<uint32_t>(j))) * lift;
        WEFT_UNROLL
        for (int r = 0; r < kRows; ++r) score(r, j) *= factor;
      }
    };

    tiles.template arrive<false>(s);
    if (!idle) {
      scores.clear();
      multiply_rows<Op, kD>(scores, smem.q, warp_row, tiles[s].from(warp_key * kD), p.D);
      const int32_t t = tiles.first_key(s) + static_cast<int32_t>(warp_key);
      if constexpr (!kPlain) {
        if (tiles.int8()) scale_keys(s, 1);
        if (call.scoring.changes)
          change<kRows, kColumns>(p, call.scoring, e, b, own_rows().row, t, score);
      }
      if (t < whole.begin || t + kN > min(whole.end, own.end))
        hide<kRows, kColumns>(p, e, own_rows().row, own, t, score);
      float alpha[kRows];
      softmax.template update<kColumns>(call.scoring.scale, score, alpha);
      if constexpr (!kPlain)
        if (call.scoring.drops) drop<kRows, kColumns>(p, call.scoring, b, own_rows().row, t, score);
      o.scale(alpha);
    }

    tiles.template arrive<true>(s + 1);
    if (!idle) {
      if constexpr (!kPlain)
        if (tiles.int8()) scale_keys(s + 1, T::kLift);
      multiply_columns<Op, kDv>(o, scores, tiles[s + 1].from(warp_key * kDv));
    }
  }
  copy_async_wait<0>();

  // ---- out: columns from `first` on, which follow one another in `sums`
  const float lowered = tiles.int8() ? 1 / T::kLift : 1.0f;
  const auto write = [&](const Softmax<kRows>& end, const auto& sums, int32_t first) {
    WEFT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Row mine = row_of(row_in_tile(r));
      const float* sink = p.sinks && split == 0 ? p.sinks.data + mine.h * p.sinks.head : nullptr;
      const auto [lse, factor] = end.finish(r, sink);
      if (row0 + static_cast<int32_t>(row_in_tile(r)) >= rows) continue;
      FinishedRow<X> row(call, e, b, split, mine);
      if (first == 0 && lane() % 4 == 0) row.store_lse(lse);
      WEFT_UNROLL
      for (int n = 0; n < sums.kWidth / 8; ++n) {
        const FragmentC<float>& c = sums.c[r / 2][n];
        const auto i = static_cast<uint32_t>(r % 2 * 2);
        row.store_pair(first + n * 8 + lane() % 4 * 2, c[i] * (factor * lowered),
                       c[i + 1] * (factor * lowered));
      }
    }
  };
  if constexpr (kSharesRows) {
    const Joined<T::kTile.warps, kDv> joined(softmax, o, smem.states,
                                             smem.ring.template as<float>());
    write(joined.softmax, joined.o, chunk * kDv + joined.first());
  } else {
    write(softmax, o, chunk * kDv);
  }
}

}  // namespace weft::attention::cuda
