// Backward of attention on one ISA level (compiled once per level). Formulas: params.h.
//
// Scores are made again, transposed: queries lie along the lanes, so that lse and δ are vectors, and
// every product finds its operands as the one before left them. For a block of up to kKeys keys and
// kQueries queries, with A in rows and B in panels (cpu/panel.h):
//
//   product                    M    N    depth   A             B
//   Sᵀ  = K · Qᵀ               keys q    D       K             Q, columns packed
//   Pᵀ  = exp2(Sᵀ · c - lse · log2 e)            one sweep, in place; as A for dV
//   dV += Pᵀ · dO              keys Dv   q       Pᵀ            dO, rows packed
//   dPᵀ = V · dOᵀ              keys q    Dv      V             dO, columns packed
//   dSᵀ = Pᵀ ∘ (dPᵀ - δ)                         one sweep; as A for dK, as B for dQ
//   dK += dSᵀ · Q              keys D    q       dSᵀ           Q, rows packed
//   dQᵀ += Kᵀ · dSᵀ            D    q    keys    Kᵀ            dSᵀ, as it is (bf16: pairs zipped)
//
// A task holds a chunk of key blocks (K, V, Kᵀ, dK and dV: 1.5 MiB, some of it beyond L2, but a line
// takes only a few bytes a cycle of it) and goes over its lines, packing Q and dO of each once for the
// whole chunk. Where one chunk holds all keys, dQᵀ of a line needs no memory beyond its tile.
//
// Cost of a block at D = Dv = 64 with AVX-512: 5 · 96 · 64 · 64 multiplications, 61 440 instructions
// (fp32: 122 880), one a cycle; two sweeps over 384 vectors, 14 and 5 instructions each (bf16: 9
// more for conversions), most of which run beside the multiplications; loading and storing dK, dV and
// dQᵀ, 3 500. Packing a line costs 1 500, once for up to ten blocks. So the multiplications set the
// pace.

#include "attention/cpu/backward.h"

#include "attention/cpu/scores.h"
#include "cpu/dropout.h"
#include "cpu/panel.h"

namespace weft::attention::cpu::WEFT_CPU_LEVEL {
namespace {

template <class A>
constexpr A kInf = static_cast<A>(__builtin_inf());

template <class T>
constexpr bool kDot = std::is_same_v<T, bf16> && Lanes<bf16>::kDot;

// The index of row i of head h among the rows of lse and dlse.
int64_t lse_index(const Backward& p, const Problem::Extent& e, int64_t b, int64_t h, int64_t i) {
  return p.sequences.cu_q ? h * p.total_q + e.q_row + i : (b * p.H + h) * p.S + i;
}

// δ of row i of head h.
template <class T>
acc_t<T> row_delta(const Backward& p, const Problem::Extent& e, int64_t b, int64_t h, int64_t i) {
  using A = acc_t<T>;
  using Load = Packed<A, T>;
  const T* out = reinterpret_cast<const T*>(p.out.at(e.q_batch, e.q_row + i, h));
  const T* dout = reinterpret_cast<const T*>(p.dout.at(e.q_batch, e.q_row + i, h));
  Vec<A> sum = {};
  for (int64_t d = 0; d < p.Dv; d += Load::kWide)
    sum = multiply_add(Load::load(out + d, p.Dv - d, 1), Load::load(dout + d, p.Dv - d, 1), sum);
  const A total = reduce<A>(sum, [](auto x, auto y) { return x + y; });
  return p.dlse ? total - static_cast<const A*>(p.dlse)[lse_index(p, e, b, h, i)] : total;
}

template <class A, class T>
void store_row(T* to, Vec<A> v, int64_t n) {
  if (n >= kLanes<A>) return store_lanes<A>(to, v);
  T some[kLanes<A>];
  store_lanes<A>(some, v);
  for (int64_t i = 0; i < n; ++i) to[i] = some[i];
}

template <class A>
inline Vec<A> magnitude(Vec<A> v) {
  return v < 0 ? -v : v;
}

#if defined(__AVX512BF16__)
// The even and the odd 16-bit lanes of a and b.
template <int... I>
inline void unzip_bf16(Vec<float>& a, Vec<float>& b, std::integer_sequence<int, I...>) {
  const auto x = reinterpret_cast<Vec<uint16_t>>(a), y = reinterpret_cast<Vec<uint16_t>>(b);
  a = reinterpret_cast<Vec<float>>(__builtin_shufflevector(x, y, (2 * I)...));
  b = reinterpret_cast<Vec<float>>(__builtin_shufflevector(x, y, (2 * I + 1)...));
}
#endif

template <class T>
class Cell {
  using A = acc_t<T>;
  using In = std::conditional_t<kDot<T>, bf16, A>;
  using P = Panel<In>;
  using V = Vec<A>;
  using Int = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;

  static constexpr int kLane = P::kLane, kVectors = P::kVectors, kPanel = P::kPanel;
  static constexpr int64_t kStep = P::kStep, kPanels = kQueries / kPanel;
  static constexpr Exp2 kExact = sizeof(T) == 2 ? Exp2::half : Exp2::full;
  // A tile of scores is both A and B as it stands (A for dV unless dropout makes it differ).
  static constexpr bool kBoth = kStep == 1 && kPanels == 1;
  // Q and dO as B fit L1 together.
  static constexpr bool kTogether = kStep == 2;

 public:
  Cell(const Backward& params, const BackwardPlan& plan, BackwardCell cell, char* scratch)
      : p_(params),
        plan_(plan),
        cell_(cell),
        e_(params.extent(cell.b)),
        scratch_(params, plan, scratch) {
    lines_ = ceil_div(e_.S, kQueries);
    blocks_ = ceil_div(e_.T, kKeys);
    group_ = p_.H / p_.K;
    offset_ = key_offset(p_, e_);
    options_ = p_.bias || p_.mask || p_.alibi || p_.softcap > 0 || p_.dropout.p != 0 || p_.dbias;
  }

  void run() {
    const int64_t begin = blocks_ * cell_.key / plan_.cells,
                  end = blocks_ * (cell_.key + 1) / plan_.cells;
    const int64_t all = group_ * lines_, line_begin = all * cell_.line / plan_.cells,
                  line_end = all * (cell_.line + 1) / plan_.cells;
    chunk_ = begin;
    do {  // at least once: dQ may have to be cleared or stored where there are no keys
      chunk_end_ = chunk_ + plan_.chunk < end ? chunk_ + plan_.chunk : end;
      loaded_ = chunk_;
      for (int64_t line = line_begin; line < line_end; ++line) {
        head_ = cell_.head * group_ + line / lines_;
        queries(line, cell_.key == 0 && chunk_ == begin,
                cell_.key == plan_.cells - 1 && chunk_end_ == end);
      }
      while (loaded_ < chunk_end_) load_keys();
      if (cell_.line == plan_.cells - 1)
        for (int64_t block = chunk_; block < chunk_end_; ++block) store_keys(block);
      chunk_ = chunk_end_;
    } while (chunk_ < end);
  }

 private:
  template <class U>
  static U* as(char* piece) {
    return reinterpret_cast<U*>(piece);
  }
  // f(i, column i) of as many rows as a vector has lanes, `stride` apart.
  template <class F>
  static void transpose(const A* rows, int64_t stride, const F& f) {
#pragma GCC unroll 8
    for (int j = 0; j < kLane; j += 16 / static_cast<int>(sizeof(A)))
      transpose_pieces<A>(rows + j, stride, [&](int i, V column) { f(j + i, column); });
  }
  static int64_t within(int64_t x, int64_t least, int64_t most) {
    return x < least ? least : x > most ? most : x;
  }

  // ---- what comes next, on its way into L2 while products are computed: rows lie far apart

  static constexpr int64_t kAhead = 16;  // rows

  template <int kWrite>
  void fetch(const Heads& x, int64_t batch, int64_t row, int64_t head, int64_t D) const {
    const char* from = x.at(batch, row, head);
    for (int64_t d = 0; d < D; d += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(from + d * static_cast<int64_t>(sizeof(T)), kWrite, 2);
  }

  // A share of the next line and of the next block of keys; a block of scores has 16 of these.
  void fetch_ahead() {
    const int64_t end = row_ + 2 * kQueries < e_.S ? row_ + 2 * kQueries : e_.S;
    for (int i = 0; i < 4 && coming_ < end; ++i, ++coming_) {
      fetch<0>(p_.q, e_.q_batch, e_.q_row + coming_, head_, p_.D);
      fetch<0>(p_.dout, e_.q_batch, e_.q_row + coming_, head_, p_.Dv);
      fetch<0>(p_.out, e_.q_batch, e_.q_row + coming_, head_, p_.Dv);
    }
    if (loaded_ == chunk_end_) return;
    const int64_t keys_end = keys_in(loaded_);
    for (int i = 0; i < P::kTileRows && fetched_ < keys_end; ++i, ++fetched_) {
      const int64_t row = e_.k_row + loaded_ * kKeys + fetched_;
      fetch<0>(p_.k, e_.k_batch, row, cell_.head, p_.D);
      fetch<0>(p_.v, e_.k_batch, row, cell_.head, p_.Dv);
    }
  }

  // ---- a block of keys

  int64_t keys_in(int64_t block) const { return within(e_.T - block * kKeys, 0, kKeys); }
  In* keys(int64_t block) const {
    return as<In>(scratch_.keys) + (block - chunk_) * kKeys * padded(p_.D);
  }
  In* values(int64_t block) const {
    return as<In>(scratch_.values) + (block - chunk_) * kKeys * padded(p_.Dv);
  }
  // [D][kKeys]
  In* keys_t(int64_t block) const {
    return as<In>(scratch_.keys_t) + (block - chunk_) * kKeys * padded(p_.D);
  }
  // [kKeys][padded(D)]
  A* dk(int64_t block) const { return sum(scratch_.dk, plan_.dk, block, padded(p_.D)); }
  A* dv(int64_t block) const { return sum(scratch_.dv, plan_.dv, block, padded(p_.Dv)); }
  A* sum(char* piece, char* shared, int64_t block, int64_t columns) const {
    int64_t at = block - chunk_;
    if (shared) at = plan_.key_blocks(p_, cell_.b) * p_.K + cell_.head * blocks_ + block;
    return as<A>(shared ? shared : piece) + at * kKeys * columns;
  }

  // The next block of the chunk.
  void load_keys() {
    const int64_t block = loaded_++;
    const int64_t count = keys_in(block), first = e_.k_row + block * kKeys;
    fetched_ = 0;
    for (int64_t t = 0; t < kKeys; ++t) {
      load_row(keys(block) + t * padded(p_.D), p_.k, first + t, p_.D, t < count);
      load_row(values(block) + t * padded(p_.Dv), p_.v, first + t, p_.Dv, t < count);
    }
    transpose_keys(block);
    if (cell_.line == 0) {
      std::memset(dk(block), 0, static_cast<size_t>(kKeys * padded(p_.D)) * sizeof(A));
      std::memset(dv(block), 0, static_cast<size_t>(kKeys * padded(p_.Dv)) * sizeof(A));
    }
  }

  void load_row(In* to, const Heads& from, int64_t row, int64_t D, bool exists) {
    using Load = Packed<In, T>;
    const T* x =
        exists ? reinterpret_cast<const T*>(from.at(e_.k_batch, row, cell_.head)) : nullptr;
    for (int64_t d = 0; d < D; d += Load::kWide)
      store_vec<A>(to + d, x ? Load::load(x + d, D - d, 1) : V{});
  }

  void transpose_keys(int64_t block) {
    constexpr int64_t kWide = kLane * kStep;
    const int64_t D = padded(p_.D);
    for (int64_t t = 0; t < kKeys; t += kWide)
      for (int64_t d = 0; d < p_.D; d += kWide) {
        V v[kStep][kLane];
        for (int k = 0; k < kStep; ++k) {
          const In* rows = keys(block) + (t + k * kLane) * D + d;
          transpose(reinterpret_cast<const A*>(rows), D / kStep,
                    [&](int i, V column) { v[k][i] = column; });
        }
        In* to = keys_t(block) + d * kKeys + t;
        for (int i = 0; i < kLane; ++i) {
#if defined(__AVX512BF16__)
          if constexpr (kStep == 2)
            unzip_bf16(v[0][i], v[1][i], std::make_integer_sequence<int, kLanes<uint16_t>>{});
#endif
          for (int k = 0; k < kStep; ++k) store_vec<A>(to + (i * kStep + k) * kKeys, v[k][i]);
        }
      }
  }

  void store_keys(int64_t block) {
    const int64_t count = keys_in(block), first = e_.k_row + block * kKeys;
    const A scale = static_cast<A>(p_.softmax_scale);
    for (int64_t t = 0; t < count; ++t) {
      if (t + kAhead < count) {
        fetch<1>(p_.dk, e_.k_batch, first + t + kAhead, cell_.head, p_.D);
        fetch<1>(p_.dv, e_.k_batch, first + t + kAhead, cell_.head, p_.Dv);
      }
      store_key(p_.dk, first + t, dk(block) + t * padded(p_.D), p_.D, scale);
      store_key(p_.dv, first + t, dv(block) + t * padded(p_.Dv), p_.Dv, 1);
    }
  }
  void store_key(const Heads& to, int64_t row, const A* from, int64_t D, A scale) {
    T* x = reinterpret_cast<T*>(to.at(e_.k_batch, row, cell_.head));
    for (int64_t d = 0; d < D; d += kLane)
      store_row<A>(x + d, load_vec<A>(from + d) * broadcast(scale), D - d);
  }

  // ---- a block of queries

  // [padded(D)][kQueries]: panels of kPanel columns, one after the other
  A* dq(int64_t line) const {
    const int64_t tile = padded(p_.D) * kQueries;
    if (plan_.dq)
      return as<A>(plan_.dq) +
             (plan_.query_blocks(p_, cell_.b) * p_.H + cell_.head * group_ * lines_ + line) * tile;
    return as<A>(scratch_.dq) + (plan_.chunk * kKeys < p_.T ? line * tile : 0);
  }

  void queries(int64_t line, bool first, bool last) {
    row_ = line % lines_ * kQueries;
    rows_ = e_.S - row_ < kQueries ? e_.S - row_ : kQueries;
    dq_ = dq(line);
    if (first) std::memset(dq_, 0, static_cast<size_t>(padded(p_.D) * kQueries) * sizeof(A));
    bool loaded = false;
    coming_ = row_ + kQueries;
    for (int64_t block = chunk_; block < chunk_end_; ++block) {
      const int64_t t0 = block * kKeys;
      const Range seen = shown(
          p_, cell_.b,
          intersect({t0, t0 + keys_in(block)}, {first_key(row_), last_key(row_ + rows_ - 1)}),
          rows_, [this](int64_t i) { return row_ + i; }, [this](int64_t) { return head_; });
      const int64_t begin = (seen.begin - t0) / kStep * kStep, end = seen.end - t0;
      if (begin < end) {
        if (!loaded) load_queries();
        loaded = true;
        scores(block, begin, round_up(end, kStep));
      }
      if (p_.dbias) clear_bias_grad(block, begin < end ? begin : kKeys, end);
    }
    if (last) store_queries();
  }

  // Row i sees the keys [first_key, last_key).
  int64_t first_key(int64_t i) const { return visible(p_, e_, i).begin; }
  int64_t last_key(int64_t i) const { return visible(p_, e_, i).end; }

  void load_queries() {
    const auto row = [this](const Heads& x, int64_t i) {
      return PackRow<T>{reinterpret_cast<const T*>(x.at(e_.q_batch, e_.q_row + row_ + i, head_)),
                        1};
    };
    for (int64_t n = 0; n < kPanels; ++n) {
      const int64_t i = n * kPanel, count = within(rows_ - i, 0, kPanel);
      pack_columns<In, T>(count, p_.D, as<In>(scratch_.queries_t) + n * P::elements(p_.D),
                          [&](int64_t k) { return row(p_.q, i + k); });
      pack_columns<In, T>(count, p_.Dv, as<In>(scratch_.douts_t) + n * P::elements(p_.Dv),
                          [&](int64_t k) { return row(p_.dout, i + k); });
    }
    pack_rows<In, T>(rows_, p_.D, as<In>(scratch_.queries), kQueries * kPanel,
                     [&](int64_t i) { return row(p_.q, i); });
    pack_rows<In, T>(rows_, p_.Dv, as<In>(scratch_.douts), kQueries * kPanel,
                     [&](int64_t i) { return row(p_.dout, i); });
    for (int64_t i = 0; i < kQueries; ++i) {
      const bool exists = i < rows_;
      const int64_t at = lse_index(p_, e_, cell_.b, head_, row_ + i);
      const A lse = exists ? static_cast<const A*>(p_.lse)[at] : -kInf<A>;
      // A row that sees nothing has no probabilities: -inf makes exp2 zero.
      as<A>(scratch_.shift)[i] = lse == -kInf<A> ? lse : -lse;
      as<A>(scratch_.delta)[i] = exists ? row_delta<T>(p_, e_, cell_.b, head_, row_ + i) : A{0};
      as<A>(scratch_.position)[i] = static_cast<A>(row_ + i + offset_);
      as<Int>(scratch_.first)[i] = static_cast<Int>(first_key(row_ + i));
      as<Int>(scratch_.last)[i] = static_cast<Int>(last_key(row_ + i));
    }
  }

  void store_queries() {
    const A scale = static_cast<A>(p_.softmax_scale);
    for (int64_t d = 0; d < p_.D; d += kLane)
      for (int64_t i = 0; i < rows_; i += kLane) {
        const A* from = dq_ + (i / kPanel * padded(p_.D) + d) * kPanel + i % kPanel;
        transpose(from, kPanel, [&](int k, V v) {
          if (i + k >= rows_) return;
          char* row = p_.dq.at(e_.q_batch, e_.q_row + row_ + i + k, head_);
          store_row<A>(reinterpret_cast<T*>(row) + d, v * broadcast(scale), p_.D - d);
        });
      }
  }

  // ---- a block of both: keys [begin, end) of it are seen by some of the queries

  // Row t of panel n of a tile of scores.
  template <class U = A>
  static U* at(char* tile, int64_t n, int64_t t) {
    return as<U>(tile) + (n * kKeys + t) * kPanel;
  }

  void scores(int64_t block, int64_t begin, int64_t end) {
    t0_ = block * kKeys;
    while (loaded_ <= block) load_keys();
    if (options_) load_options(begin, end);
    // A strip of keys at a time, so that the sweeps find the products in L1.
    for (int64_t t = begin; t < end; t += P::kTileRows) {
      const int64_t stop = t + P::kTileRows < end ? t + P::kTileRows : end;
      for (int64_t n = 0; n < kPanels; ++n)
        product(stop - t, P::steps(p_.D), keys(block) + t * padded(p_.D), padded(p_.D),
                as<In>(scratch_.queries_t) + n * P::elements(p_.D), at(scratch_.p, n, t), kPanel,
                false);
      make_probabilities(t, stop);
      if (kTogether) make_gradients(block, t, stop);
      fetch_ahead();
    }
    add_rows(begin, end, kBoth && p_.dropout.p == 0 ? scratch_.p : scratch_.p_rows, scratch_.douts,
             dv(block), p_.Dv);
    for (int64_t t = begin; t < end && !kTogether; t += P::kTileRows)
      make_gradients(block, t, t + P::kTileRows < end ? t + P::kTileRows : end);
    if (p_.dbias) store_bias_grad(begin, end);
    add_rows(begin, end, kBoth ? scratch_.dp : scratch_.ds_rows, scratch_.queries, dk(block), p_.D);
    for (int64_t n = 0; n < kPanels; ++n)
      product(p_.D, (end - begin) / kStep, keys_t(block) + begin, kKeys,
              at<In>(kStep == 1 ? scratch_.dp : scratch_.ds_panel, n, begin),
              dq_ + n * padded(p_.D) * kPanel, kPanel, true);
  }

  void make_probabilities(int64_t begin, int64_t end) {
    // Ragged: some of the queries do not see some of the keys.
    const bool ragged = begin + t0_ < first_key(row_ + rows_ - 1) || end + t0_ > last_key(row_);
    if (options_)
      ragged ? probabilities<true, true>(begin, end) : probabilities<true, false>(begin, end);
    else
      ragged ? probabilities<false, true>(begin, end) : probabilities<false, false>(begin, end);
  }

  void make_gradients(int64_t block, int64_t begin, int64_t end) {
    for (int64_t n = 0; n < kPanels; ++n)
      product(end - begin, P::steps(p_.Dv), values(block) + begin * padded(p_.Dv), padded(p_.Dv),
              as<In>(scratch_.douts_t) + n * P::elements(p_.Dv), at(scratch_.dp, n, begin), kPanel,
              false);
    options_ ? gradients<true>(begin, end) : gradients<false>(begin, end);
  }

  // C[M×kPanel] = A · B, or += where `add`.
  static void product(int64_t M, int64_t steps, const In* a, int64_t lda, const In* panel, A* c,
                      int64_t ldc, bool add) {
    static constexpr A ones[P::kTileRows] = {1, 1, 1, 1, 1, 1};
    for (int64_t m = 0; m < M; m += P::kTileRows)
      panel_rows<In>(M - m < P::kTileRows ? M - m : P::kTileRows, steps, a + m * lda, lda, panel,
                     c + m * ldc, ldc, add ? ones : nullptr);
  }

  // sum[keys×D] += tile · rows, where no key takes part in queries that do not see it.
  void add_rows(int64_t begin, int64_t end, char* tile, char* rows, A* to, int64_t D) {
    for (int64_t n = 0; n < D; n += kPanel)
      for (int64_t t = begin; t < end; t += P::kTileRows) {
        const int64_t count = end - t < P::kTileRows ? end - t : P::kTileRows;
        int64_t i = 0, stop = rows_;
        if (p_.window_right >= 0)
          i = within(t0_ + t - offset_ - p_.window_right - row_, 0, stop) / kStep * kStep;
        if (p_.window_left >= 0)
          stop = within(t0_ + t + count - offset_ + p_.window_left - row_, i, stop);
        product(count, P::steps(stop - i), as<In>(tile) + t * kQueries + i, kQueries,
                as<In>(rows) + n * kQueries + i * kPanel, to + t * padded(D) + n, padded(D), true);
      }
  }

  // As A: a row of a panel's queries in the operands' type.
  static void put(In* to, const V (&v)[kVectors]) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; j += kStep)
      if constexpr (kStep == 2)
        store_vec<uint32_t>(to + j * kLane, to_bf16(v[j], v[j + 1]));
      else
        store_vec<A>(to + j * kLane, v[j]);
  }

  template <bool kOptions, bool kRagged>
  void probabilities(int64_t begin, int64_t end) {
    // exp(x - lse): the difference before the factor, or its last places are lost; in 16-bit types
    // they do not count, and one multiplication does.
    constexpr bool kFolded = kExact == Exp2::half && !kOptions;
    const V log2e = broadcast(static_cast<A>(kLog2e));
    const V scale = broadcast(static_cast<A>(p_.softmax_scale * (kFolded ? kLog2e : 1)));
    for (int64_t n = 0; n < kPanels; ++n) {
      const int64_t i = n * kPanel;
      V shift[kVectors];
      for (int j = 0; j < kVectors; ++j) {
        shift[j] = load_vec<A>(as<A>(scratch_.shift) + i + j * kLane);
        if (kFolded) shift[j] = shift[j] * log2e;
      }
      for (int64_t t = begin; t < end; ++t) {
        V v[kVectors], kept[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
          const int64_t lane = i + j * kLane;
          const V x = load_vec<A>(at(scratch_.p, n, t) + j * kLane);
          if constexpr (kFolded)
            v[j] = multiply_add(x, scale, shift[j]);
          else if constexpr (kOptions)
            v[j] = (with_options(x * scale, n, t, j) + shift[j]) * log2e;
          else
            v[j] = multiply_add(x, scale, shift[j]) * log2e;
          v[j] = exp2<kExact>(v[j]);
          if constexpr (kRagged) {
            const Vec<Int> time = broadcast(static_cast<Int>(t0_ + t));
            v[j] = time >= load_vec<Int>(as<Int>(scratch_.first) + lane) ? v[j] : V{};
            v[j] = time < load_vec<Int>(as<Int>(scratch_.last) + lane) ? v[j] : V{};
          }
          store_vec<A>(at(scratch_.p, n, t) + j * kLane, v[j]);
          kept[j] = v[j];
          if constexpr (kOptions)
            if (p_.dropout.p != 0)
              kept[j] = v[j] * load_vec<A>(at(scratch_.kept, n, t) + j * kLane);
        }
        if (!kBoth || (kOptions && p_.dropout.p != 0))
          put(as<In>(scratch_.p_rows) + t * kQueries + i, kept);
      }
    }
  }

  V with_options(V x, int64_t n, int64_t t, int j) const {
    if (p_.softcap > 0) {
      const V cap = broadcast(static_cast<A>(p_.softcap)), y = tanh(x / cap);
      store_vec<A>(at(scratch_.slope, n, t) + j * kLane, 1 - y * y);
      x = y * cap;
    }
    if (p_.bias) x = x + load_vec<A>(at(scratch_.added, n, t) + j * kLane);
    if (p_.alibi) {
      const V position = load_vec<A>(as<A>(scratch_.position) + n * kPanel + j * kLane);
      x = x - magnitude<A>(static_cast<A>(t0_ + t) - position) * broadcast(alibi_);
    }
    if (p_.mask)
      x = load_vec<A>(at(scratch_.seen, n, t) + j * kLane) != 0 ? x : broadcast(-kInf<A>);
    return x;
  }

  template <bool kOptions>
  void gradients(int64_t begin, int64_t end) {
    for (int64_t n = 0; n < kPanels; ++n) {
      const int64_t i = n * kPanel;
      V delta[kVectors];
      for (int j = 0; j < kVectors; ++j)
        delta[j] = load_vec<A>(as<A>(scratch_.delta) + i + j * kLane);
      for (int64_t t = begin; t < end; t += kStep) {
        V v[kStep][kVectors];
#pragma GCC unroll 2
        for (int k = 0; k < kStep; ++k) {
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; ++j) {
            V dp = load_vec<A>(at(scratch_.dp, n, t + k) + j * kLane);
            if constexpr (kOptions)
              if (p_.dropout.p != 0) dp = dp * load_vec<A>(at(scratch_.kept, n, t + k) + j * kLane);
            v[k][j] = load_vec<A>(at(scratch_.p, n, t + k) + j * kLane) * (dp - delta[j]);
            if constexpr (kOptions) {
              if (p_.dbias) store_vec<A>(at(scratch_.added, n, t + k) + j * kLane, v[k][j]);
              if (p_.softcap > 0)
                v[k][j] = v[k][j] * load_vec<A>(at(scratch_.slope, n, t + k) + j * kLane);
            }
            if constexpr (kStep == 1) store_vec<A>(at(scratch_.dp, n, t) + j * kLane, v[k][j]);
          }
          if (!kBoth) put(as<In>(scratch_.ds_rows) + (t + k) * kQueries + i, v[k]);
        }
        if constexpr (kStep == 2) {
          In* to = at<In>(scratch_.ds_panel, n, t);
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; j += 2) {
            V a = reinterpret_cast<V>(to_bf16(v[0][j], v[0][j + 1]));
            V b = reinterpret_cast<V>(to_bf16(v[1][j], v[1][j + 1]));
            zip_bf16(a, b);
            store_vec<A>(to + j * kLane * 2, a);
            store_vec<A>(to + (j + 1) * kLane * 2, b);
          }
        }
      }
    }
  }

  // ---- options, transposed as the scores are

  void load_options(int64_t begin, int64_t end) {
    const int64_t count = within(e_.T - t0_, begin, end) - begin;
    if (p_.alibi) alibi_ = static_cast<A>(p_.alibi.at(cell_.b, 0, head_));
    if (p_.bias)
      with_float_type(p_.bias.dtype, [&](auto type) {
        load_tile<decltype(type)>(p_.bias, begin, count, scratch_.added);
      });
    if (p_.mask) load_tile<int8_t>(p_.mask, begin, count, scratch_.seen);
    if (p_.dropout.p != 0) draw_tile(begin, count, end);
  }

  // count rows from `begin` on of a tile.
  template <class U>
  void load_tile(const Scores& from, int64_t begin, int64_t count, char* tile) {
    const auto element = [&](int64_t i, int64_t t) {
      return reinterpret_cast<const U*>(from.at(cell_.b, head_, row_ + i, t0_ + begin + t));
    };
    for (int64_t n = 0; n < kPanels; ++n) {
      const int64_t i = n * kPanel, rows = within(rows_ - i, 0, kPanel);
      if (from.column == 1) {
        pack_columns<A, U>(rows, count, at(tile, n, begin),
                           [&](int64_t k) { return PackRow<U>{element(i + k, 0), 1}; });
        continue;
      }
      for (int64_t t = 0; t < count; ++t)
        for (int64_t k = 0; k < rows; ++k)
          at(tile, n, begin + t)[k] = static_cast<A>(widen(*element(i + k, t)));
    }
  }

  void draw_tile(int64_t begin, int64_t count, int64_t end) {
    A drawn[kPanel][kKeys];
    for (int64_t n = 0; n < kPanels; ++n) {
      const int64_t i = n * kPanel, rows = within(rows_ - i, 0, kPanel);
      for (int64_t k = 0; k < rows; ++k)
        draw_dropout<A>(p_.dropout,
                        ((cell_.b * p_.H + head_) * p_.S + row_ + i + k) * p_.T + t0_ + begin,
                        count, 0, drawn[k], nullptr);
      pack_columns<A, A>(rows, count, at(scratch_.kept, n, begin),
                         [&](int64_t k) { return PackRow<A>{drawn[k], 1}; });
      for (int64_t t = begin + count; t < end; ++t)
        std::memset(at(scratch_.kept, n, t), 0, kPanel * sizeof(A));
    }
  }

  // ---- the gradient of the bias

  void store_bias_grad(int64_t begin, int64_t end) {
    const int64_t stop = within(e_.T - t0_, begin, end);
    with_float_type(p_.dbias.dtype, [&](auto type) {
      using U = decltype(type);
      for (int64_t i = 0; i < rows_; i += kLane)
        for (int64_t t = begin; t < stop; t += kLane) {
          const A* from = at(scratch_.added, i / kPanel, t) + i % kPanel;
          transpose(from, kPanel, [&](int k, V v) {
            if (i + k < rows_) store_bias_row<U>(i + k, t, v, stop - t);
          });
        }
    });
  }
  template <class U>
  void store_bias_row(int64_t i, int64_t t, V v, int64_t count) {
    U* to = reinterpret_cast<U*>(p_.dbias.at(cell_.b, head_, row_ + i, t0_ + t));
    if (p_.dbias.column == 1) return store_row<A>(to, v, count);
    for (int k = 0; k < kLane && k < count; ++k) narrow(v[k], to[k * p_.dbias.column]);
  }

  // Zeros for the block's keys outside [begin, end).
  void clear_bias_grad(int64_t block, int64_t begin, int64_t end) {
    t0_ = block * kKeys;
    with_float_type(p_.dbias.dtype, [&](auto type) {
      using U = decltype(type);
      for (int64_t i = 0; i < rows_; ++i)
        for (int64_t t = 0; t < keys_in(block); ++t)
          if (t < begin || t >= end)
            *reinterpret_cast<U*>(p_.dbias.at(cell_.b, head_, row_ + i, t0_ + t)) = U{};
    });
  }

  const Backward& p_;
  const BackwardPlan& plan_;
  const BackwardCell cell_;
  const Problem::Extent e_;
  const BackwardScratch scratch_;
  int64_t lines_, blocks_, group_, offset_;
  bool options_;

  int64_t chunk_, chunk_end_;  // key blocks at hand
  int64_t loaded_, fetched_;   // the first of them that is not loaded, and its rows on their way
  int64_t head_, row_, rows_;  // the line at hand
  int64_t coming_;             // the first row of the next that is not on its way
  A* dq_;
  int64_t t0_;  // first key of the block at hand
  A alibi_ = 0;
};

template <class T>
void sink_of(const Backward& p, int64_t h) {
  using A = acc_t<T>;
  const double sink = static_cast<double>(p.sinks.at(0, 0, h));
  double sum = 0;
  for (int64_t b = 0; b < p.B; ++b) {
    const Problem::Extent e = p.extent(b);
    for (int64_t i = 0; i < e.S; ++i) {
      const A lse = static_cast<const A*>(p.lse)[lse_index(p, e, b, h, i)];
      if (lse == -kInf<A>) continue;
      sum -= std::exp(sink - static_cast<double>(lse)) *
             static_cast<double>(row_delta<T>(p, e, b, h, i));
    }
  }
  p.dsinks[h] = static_cast<float>(sum);
}

void cell(const Backward& p, const BackwardPlan& plan, BackwardCell at, char* scratch) {
  with_float_type(p.q.dtype, [&](auto type) { Cell<decltype(type)>(p, plan, at, scratch).run(); });
}
void sink(const Backward& p, int64_t head) {
  with_float_type(p.q.dtype, [&](auto type) { sink_of<decltype(type)>(p, head); });
}

}  // namespace

extern const BackwardKernels backward_kernels = {cell, sink};

}  // namespace weft::attention::cpu::WEFT_CPU_LEVEL
