// Backward of attention for sm_80 and whatever comes after, and for what backward_sm90.h does not take.
// Formulas: attention/params.h.
//
// Three launches. backward_rows makes what belongs to a row of lse: a shift, -lse, and δ. Then two
// kernels of one kind make the scores again, each from the side whose gradients it sums up:
//
//   own rows      X    Y       others    Z    W       in registers
//   keys          K    V       queries   Q    dO      dK += dsᵀ · Q, dV += pᵀ · dO
//   queries       Q    dO      keys      K    V       dQ += ds · K
//
// A block has its own rows of X and Y in shared memory, and goes over all others that see them or are
// seen by them, `others` rows of Z and W at a time, the next on their way (copy_async) meanwhile. A
// warp has 16 · tiles of the own rows, and nothing to do with the other warps:
//
//   s  = X · Zᵀ, dp = Y · Wᵀ       own rows × step, from shared memory (ldmatrix), in fp32
//   p  = exp2(s · c + shift), ds = p ∘ (dp - δ)
//   sum += ds · Z (and p · W)      ds and p as they stand are operands A: fragment_a; Z and W come
//                                  again, transposed (ldmatrix.trans)
//
// So no product waits for another warp's scores, and none goes through shared memory. A block of keys
// goes over the query heads of its group one after the other. Head sizes beyond a slab of columns: a
// block for each slab, which makes all scores again.
//
// Every sum has one owner, who adds in one order: the same bits each time, without atomics and
// without a workspace that grows with S · T. The price is that s and dp are computed twice: 7
// products instead of 5; what is saved is an fp32 dQ with its atomics, 4 bytes of reduction in L2 for
// each element of dQ and block of keys.
//
// Cost at D = Dv = 128 in 16 bits of 1024 scores: on the side of keys (16 × 64) 256 mma (m16n8k16),
// 160 ldmatrix of 512 bytes and 32 exp2 a thread; on that of queries (32 × 32) 192, 80 and 32. A
// multiprocessor of sm_80 takes an mma in 2 cycles and an ldmatrix in 4: shared memory sets the pace
// of the keys, the tensor cores that of the queries. Global memory sees Q, K, V and dO once for each
// block of the other side, most of it from L2.
#pragma once

#include "attention/cuda/backward_call.h"
#include "attention/cuda/backward_tiles.h"

namespace weft::attention::cuda {

// Columns of all tiles where they are the same for all D.
constexpr uint32_t columns_of(DType dtype, Side side, HeadSizes sizes) {
  return sizes == HeadSizes::all ? 0
                                 : static_cast<uint32_t>(tiling(dtype, side, sizes, false).slab);
}

template <class T, uint32_t kColumns>
struct BackwardShared {
  using Rows = Tile<T, kColumns>;
  SharedLayout layout;
  Rows x, y;             // own
  Rows z, w;             // the stages, one after the other
  Shared<float> shifts;  // {shift, δ} of queries, own or others

  WEFT_INLINE BackwardShared(const BackwardTiles& t, Side side)
      : x(Rows::take(layout, t.rows, t.columns)),
        y(Rows::take(layout, t.rows, t.columns_v)),
        z(Rows::take(layout, t.stages * t.others, t.columns)),
        w(Rows::take(layout, t.stages * t.others, t.columns_v)),
        shifts(layout.take<float>(2 * (side == Side::keys ? t.stages * t.others : t.rows))) {}
};

template <class Op, Side kSide, HeadSizes kSizes, bool kPlain>
class BackwardBlock {
  using T = typename Op::X;
  static constexpr Tiling kTiling = tiling(kDType<T>, kSide, kSizes, kPlain);
  static constexpr bool kKeys = kSide == Side::keys;
  static constexpr int M = kTiling.tiles,                                // pieces of 16 own rows
      N = kTiling.step / 8,                                              // pieces of 8 others
      C = kTiling.slab / 8,                                              // … of 8 columns
      kSums = kKeys ? M : 1;                                             // rows of pieces of dV
  static constexpr int32_t kStep = 8 * N, kSlab = 8 * C, kOwn = 16 * M;  // of a warp
  using Smem = BackwardShared<T, columns_of(kDType<T>, kSide, kSizes)>;
  using Rows = typename Smem::Rows;
  using Piece = FragmentC<float>;

 public:
  WEFT_DEVICE explicit BackwardBlock(const BackwardCall& call)
      : call_(call), p_(call.p), smem_(call.tiles, kSide) {
    const BackwardTiles& t = call.tiles;
    const auto blocks = static_cast<uint32_t>(t.blocks);
    const uint32_t at = block().x % blocks, n = block().x / blocks;
    // The longest first: of causal scores, the first keys and the last queries.
    own_ = static_cast<int32_t>((kKeys ? at : blocks - 1 - at) * t.rows);
    slab_ = kSizes == HeadSizes::all ? static_cast<int32_t>(n % t.slabs) * kSlab : 0;
    const auto heads = static_cast<uint32_t>(kKeys ? p_.K : p_.H), head = n / t.slabs;
    own_head_ = static_cast<int32_t>(head % heads);
    b_ = static_cast<int32_t>(head / heads);
    const Sequence e = sequence_of(p_, b_);
    q_row_ = e.q_row;
    k_row_ = e.k_row;
    sight_ = Sight(p_, e);
  }

  WEFT_DEVICE void run() {
    if (own_count() <= 0) return;
    const int32_t end = own_ + own_count(), size = static_cast<int32_t>(call_.tiles.others);
    const Span others = kKeys ? sight_.queries(own_, end) : sight_.keys(own_, end);
    begin_ = others.empty() ? 0 : others.begin / size * size;
    end_ = others.empty() ? 0 : others.end;
    if (!kKeys && p_.dbias && slab() == 0) clear_bias_grad();

    Piece dx[M][C], dy[kSums][C];
    clear(dx);
    if constexpr (kKeys) clear(dy);
    if (!others.empty()) go_over(dx, dy);
    store_sums(dx, smem_.x, kKeys ? p_.dk : p_.dq, p_.D, call_.scale);
    if constexpr (kKeys) store_sums(dy, smem_.y, p_.dv, p_.Dv, 1);
  }

 private:
  template <int kRows, int kColumns>
  WEFT_DEVICE static void clear(Piece (&pieces)[kRows][kColumns]) {
    WEFT_UNROLL
    for (int m = 0; m < kRows; ++m) WEFT_UNROLL
    for (int c = 0; c < kColumns; ++c) pieces[m][c] = Piece::filled(0);
  }

  WEFT_DEVICE int32_t own_count() const {
    return min((kKeys ? sight_.T : sight_.S) - own_, static_cast<int32_t>(call_.tiles.rows));
  }
  WEFT_DEVICE int32_t first_row() const { return static_cast<int32_t>(warp()) * kOwn; }
  WEFT_DEVICE int32_t slab() const { return kSizes == HeadSizes::all ? slab_ : 0; }

  // ---- memory

  // Row `row` of a head, of queries or of keys.
  WEFT_DEVICE T* at(const Heads& x, bool queries, int32_t row, int32_t head) const {
    const Sequences& s = p_.sequences;
    const int64_t batch = (queries ? s.cu_q : s.cu_k) ? 0 : b_;
    return reinterpret_cast<T*>(x.at(batch, int64_t{queries ? q_row_ : k_row_} + row, head));
  }
  WEFT_DEVICE void fetch(const Rows& to, uint32_t first, uint32_t rows, const Heads& from,
                         bool queries, int32_t row, int32_t head, int32_t count, int64_t D) const {
    load_rows(to, first, rows, at(from, queries, row, head), from.row, count, D, call_.vector);
  }
  // {shift, δ} of queries from `row` on; zeros behind the first `count`.
  WEFT_DEVICE void fetch_shifts(uint32_t first, uint32_t rows, int32_t row, int32_t head,
                                int32_t count) const {
    const int64_t index =
        p_.sequences.cu_q ? head * p_.total_q + q_row_ : (b_ * p_.H + head) * p_.S;
    const float* from = call_.rows + 2 * (index + row);
    for (uint32_t r = thread(); r < rows; r += threads()) {
      const bool here = static_cast<int32_t>(r) < count;
      copy_async<2>(smem_.shifts, 2 * (first + r), from + (here ? 2 * r : 0), here ? 2 : 0);
    }
  }
  WEFT_DEVICE void fetch_own() const {
    const uint32_t rows = call_.tiles.rows;
    fetch(smem_.x, 0, rows, kKeys ? p_.k : p_.q, !kKeys, own_, own_head_, own_count(), p_.D);
    fetch(smem_.y, 0, rows, kKeys ? p_.v : p_.dout, !kKeys, own_, own_head_, own_count(), p_.Dv);
    if constexpr (!kKeys) fetch_shifts(0, rows, own_, own_head_, own_count());
  }
  // Rows from `row` on of the other side, into the stage.
  WEFT_DEVICE void fetch_others(uint32_t stage, int32_t row, int32_t head) const {
    const uint32_t rows = call_.tiles.others, first = stage * rows;
    const int32_t count = min(end_ - row, static_cast<int32_t>(rows));
    fetch(smem_.z, first, rows, kKeys ? p_.q : p_.k, kKeys, row, head, count, p_.D);
    fetch(smem_.w, first, rows, kKeys ? p_.dout : p_.v, kKeys, row, head, count, p_.Dv);
    if constexpr (kKeys) fetch_shifts(first, rows, row, head, count);
  }

  // ---- the loop

  WEFT_DEVICE void go_over(Piece (&dx)[M][C], Piece (&dy)[kSums][C]) {
    const auto size = static_cast<int32_t>(call_.tiles.others);
    const bool ahead = call_.tiles.stages == 2;
    const int32_t first_head = kKeys ? own_head_ * call_.group : own_head_ / call_.group,
                  last_head = kKeys ? first_head + call_.group - 1 : first_head;
    // What comes behind these rows, if anything does.
    const auto fetch_next = [&](uint32_t stage, int32_t row, int32_t head) {
      const bool wraps = row + size >= end_;
      if (!wraps || head < last_head)
        fetch_others(stage, wraps ? begin_ : row + size, wraps ? head + 1 : head);
      copy_async_commit();
    };
    fetch_own();
    fetch_others(0, begin_, first_head);
    copy_async_commit();
    uint32_t stage = 0;
    for (int32_t head = first_head; head <= last_head; ++head)
      for (int32_t row = begin_; row < end_; row += size) {
        if (ahead) {
          fetch_next(stage ^ 1, row, head);
          copy_async_wait<1>();
        } else {
          copy_async_wait<0>();
        }
        sync_block();
        WEFT_NO_UNROLL
        for (int32_t step = 0; step < size; step += kStep)
          scores(stage * call_.tiles.others + step, row + step, head, dx, dy);
        sync_block();
        if (ahead)
          stage ^= 1;
        else
          fetch_next(0, row, head);
      }
    copy_async_wait<0>();
  }

  // The warp's own rows × kStep of the others: those from `at` on in the stages, which are rows
  // `other` … of their side.
  WEFT_DEVICE void scores(uint32_t at, int32_t other, int32_t head, Piece (&dx)[M][C],
                          Piece (&dy)[kSums][C]) {
    const int32_t own = own_ + first_row();
    const Patch patch =
        kKeys ? Patch(sight_, other, kStep, own, kOwn) : Patch(sight_, own, kOwn, other, kStep);
    if (patch.hidden() && (kKeys || !p_.dbias)) return;

    Piece s[M][N], dp[M][N];
    product(s, smem_.x, smem_.z, at, p_.D);
    product(dp, smem_.y, smem_.w, at, p_.Dv);
    if constexpr (!kPlain)
      gradients_of_options(patch, at, kKeys ? head : own_head_, s, dp);
    else if (patch.ragged())
      gradients<true>(patch, at, s, dp);
    else
      gradients<false>(patch, at, s, dp);
    if constexpr (kKeys)
      if (slab() < p_.Dv) accumulate(dy, s, smem_.w, at);
    if (slab() < p_.D) accumulate(dx, dp, smem_.z, at);
  }

  // c = (own rows of a) · (rows of b from `at` on)ᵀ, over D columns.
  WEFT_DEVICE static void product(Piece (&c)[M][N], const Rows& a, const Rows& b, uint32_t at,
                                  int64_t D) {
    clear(c);
    const auto columns = static_cast<uint32_t>(D);
    WEFT_NO_UNROLL
    for (uint32_t k = 0; k < columns; k += Op::kStep) {
      typename Op::A of_a[M];
      WEFT_UNROLL
      for (int m = 0; m < M; ++m) of_a[m] = load_a<Op>(a, warp() * kOwn + 16 * m, k);
      WEFT_UNROLL
      for (int n = 0; n < N; n += 2) {
        typename Op::B of_b[2];
        load_b<Op>(b, at + 8 * n, k, of_b);
        WEFT_UNROLL
        for (int m = 0; m < M; ++m) multiply_pair<Op>(&c[m][n], of_a[m], of_b);
      }
    }
  }

  // sum += a · (the slab of b, rows from `at` on).
  WEFT_DEVICE void accumulate(Piece (&sum)[M][C], const Piece (&a)[M][N], const Rows& b,
                              uint32_t at) const {
    constexpr int kK = Op::kStep;
    WEFT_UNROLL
    for (int k = 0; k < kStep / kK; ++k) {
      typename Op::A of_a[M];
      WEFT_UNROLL
      for (int m = 0; m < M; ++m) of_a[m] = Op::a(a[m], k);
      WEFT_UNROLL
      for (int c = 0; c < C; c += 2) {
        typename Op::B of_b[2];
        load_b_rows<Op>(b, at + k * kK, slab() + 8 * c, of_b);
        WEFT_UNROLL
        for (int m = 0; m < M; ++m) multiply_pair<Op>(&sum[m][c], of_a[m], of_b);
      }
    }
  }

  // ---- between the products: s becomes p, or what dropout leaves of it, and dp becomes ds

  // f(score, dp, {shift, δ}, query, key) for a lane's elements; query and key count from the patch's.
  template <class F>
  WEFT_DEVICE void each_score(uint32_t at, Piece (&s)[M][N], Piece (&dp)[M][N], const F& f) const {
    Vec<float, 2> rows[M][2];
    if constexpr (!kKeys) {
      WEFT_UNROLL
      for (int m = 0; m < M; ++m) WEFT_UNROLL
      for (int r = 0; r < 2; ++r)
        rows[m][r] =
            smem_.shifts.template load<2>(2 * (warp() * kOwn + 16 * m + 8 * r + lane() / 4));
    }
    WEFT_UNROLL
    for (int n = 0; n < N; ++n) {
      Vec<float, 4> columns;
      if constexpr (kKeys)
        columns = smem_.shifts.template load<4>(2 * (at + 8 * n + lane() % 4 * 2));
      WEFT_UNROLL
      for (int m = 0; m < M; ++m) WEFT_UNROLL
      for (uint32_t i = 0; i < Piece::kSize; ++i) {
        const Place place = Piece::place(lane(), i);
        const auto own = static_cast<int32_t>(16 * m + place.row),
                   other = static_cast<int32_t>(8 * n + place.column);
        if constexpr (kKeys)
          f(s[m][n][i], dp[m][n][i], Vec<float, 2>{{columns[i % 2 * 2], columns[i % 2 * 2 + 1]}},
            other, own);
        else
          f(s[m][n][i], dp[m][n][i], rows[m][i / 2], own, other);
      }
    }
  }

  template <bool kRagged>
  WEFT_DEVICE void gradients(const Patch& patch, uint32_t at, Piece (&s)[M][N],
                             Piece (&dp)[M][N]) const {
    each_score(at, s, dp, [&](float& x, float& g, const Vec<float, 2>& row, int32_t i, int32_t t) {
      x = exp2_approx(fma(x, call_.log2_scale, row[0]));
      if constexpr (kRagged) x = patch.sees(i, t) ? x : 0.0f;
      g = x * (g - row[1]);
    });
  }

  WEFT_DEVICE void gradients_of_options(const Patch& patch, uint32_t at, int32_t head,
                                        Piece (&s)[M][N], Piece (&dp)[M][N]) const {
    const bool bias_grad = !kKeys && p_.dbias && slab() == 0;
    each_score(at, s, dp, [&](float& x, float& g, const Vec<float, 2>& row, int32_t i, int32_t t) {
      float p = 0, factor = 1, ds = 0, slope = 1;
      if (patch.sees(i, t)) {
        const Row of{patch.query + i, head};
        x = score(p_, sight_, b_, of, patch.key + t, x * call_.scale, slope);
        // The difference before the factor, or its last places are lost.
        p = exp2_approx((x + row[0]) * static_cast<float>(kLog2e));
        if (call_.scoring.drops) factor = kept(p_, call_.scoring, b_, of, patch.key + t);
        ds = p * fma(g, factor, -row[1]);
      }
      if (bias_grad && patch.holds(i, t)) store_bias_grad(patch.query + i, patch.key + t, ds);
      x = p * factor;
      g = ds * slope;
    });
  }

  // ---- the gradient of bias, from the side of queries

  WEFT_DEVICE void store_bias_grad(int32_t i, int32_t t, float ds) const {
    store_float(p_.dbias.at(b_, own_head_, i, t), p_.dbias.dtype, ds);
  }
  // Zeros in the own rows, but for the blocks of keys that the loop goes over.
  WEFT_DEVICE void clear_bias_grad() const {
    const auto size = static_cast<int32_t>(call_.tiles.others);
    const int32_t end = begin_ + ceil_div(end_ - begin_, size) * size;
    for (auto row = static_cast<int32_t>(warp()); row < own_count(); row += threads() / kWarp)
      for (auto t = static_cast<int32_t>(lane()); t < sight_.T; t += kWarp)
        if (t < begin_ || t >= end) store_bias_grad(own_ + row, t, 0);
  }

  // ---- the sums of the warp's own rows, by way of its rows of a tile, which nobody else reads

  template <int kRows>
  WEFT_DEVICE void store_sums(const Piece (&sum)[kRows][C], const Rows& tile, const Heads& to,
                              int64_t D, float scale) const {
    constexpr int E = kUnit<T>;
    if (slab() >= D) return;
    const auto first = static_cast<uint32_t>(first_row());
    WEFT_UNROLL
    for (int m = 0; m < kRows; ++m) WEFT_UNROLL
    for (int c = 0; c < C; ++c) WEFT_UNROLL
    for (uint32_t i = 0; i < Piece::kSize; i += 2) {
      const Place place = Piece::place(lane(), i);
      const Vec<float, 2> pair = {{sum[m][c][i] * scale, sum[m][c][i + 1] * scale}};
      tile.data.template store<2>(tile.at(first + 16 * m + place.row, 8 * c + place.column),
                                  convert<T>(pair));
    }
    sync_warp();
    for (uint32_t n = lane() * E; n < kOwn * kSlab; n += kWarp * E) {
      const uint32_t row = first + n / kSlab, c = n % kSlab;
      const int64_t left = D - slab() - c;
      if (static_cast<int32_t>(row) >= own_count() || left <= 0) continue;
      T* out = at(to, !kKeys, own_ + static_cast<int32_t>(row), own_head_) + slab() + c;
      if (call_.vector_out && left >= E) {
        store(out, tile.data.template load<E>(tile.at(row, c)));
        continue;
      }
      for (uint32_t k = 0; k < min<int64_t>(E, left); ++k)
        store<Cache::normal, T>(out + k, tile.data[tile.at(row, c + k)]);
    }
  }

  const BackwardCall& call_;
  const Backward& p_;
  const Smem smem_;
  Sight sight_;
  int32_t b_, own_head_;
  int32_t q_row_, k_row_;  // of packed tensors: the sequence's first
  int32_t own_, slab_;     // the first own row, the first column of the sums
  int32_t begin_, end_;    // rows of the other side
};

template <class Op, Side kSide, HeadSizes kSizes, bool kPlain>
WEFT_KERNEL_BOUNDS(32 * tiling(kDType<typename Op::X>, kSide, kSizes, kPlain).most_warps, 1)
void backward_kernel(WEFT_GRID_CONSTANT const BackwardCall call) {
  BackwardBlock<Op, kSide, kSizes, kPlain>(call).run();
}

}  // namespace weft::attention::cuda
