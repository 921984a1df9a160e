// y = activation(x · Wᵀ + bias) + residual by a weight of 8 or 4 bits and x in floats, M×N×K. Formulas:
// int8/params.h. Weights become floats in registers, exactly; sums are floats, over a group of scales.
//
// weight_only_kernel, for 16-bit x: the weight is A of m16n8k16, x is B, so that one row of x wastes 7
// columns of 8 and no rows of 16. A team of warps takes 32 rows of the weight and 8 or 32 of x; each of
// its warps a share of K.
//   load        A quad of lanes has two rows of a half of the tile: 16 bytes of K a lane, straight
//               into registers, the next ones under way while these are multiplied.
//   multiply    Products do not care in which order K comes, as long as both operands agree: lane t
//               of a quad takes 8 of 32 k, a step of 16 four of these. In 4 bits the packed weight
//               (packed.h) is in that order; in 8, neighbours exchange 8 bytes for it. x comes from
//               L1, 8 of K at a time.
//   groups      Their sums are scaled as they end; Σ x for zero points by a product with ones.
//   finish      Shares of K are added up in shared memory in their order.
//
// weight_only_any_kernel, for float32 and for groups that are no multiple of 32: a warp for a row of the
// weight by four of x, 8 of K a lane; x of float32 is summed in double.
//
// Cost: N · K weights of 1 or 1/2 byte are read once for every 32 rows of x, 8 where there are no more;
// some 3 operations an element of the weight, and the products. Bound by the weight's bytes up to some
// 32 rows of x, by L2 and by making floats beyond.
//
// A row of x that holds NaN or infinity gives NaN throughout: its sums are NaN or infinite, and
// v + 0 · v is then NaN.
#pragma once

#include "int8/cuda/epilogue.h"
#include "int8/cuda/packed.h"
#include "int8/cuda/plan.h"

namespace weft::int8::cuda {

struct WeightOnlyCall {
  Epilogue end;
  WeightOnlyPlan plan;
  Rows x;
  bool vector = false;  // rows of x begin at multiples of 16 bytes
  int bits = 8;
  const int8_t* weight = nullptr;
  int64_t weight_row = 0, K = 0, group = 0;
  GroupValues scale, zero_point;
};

// A sum of products becomes a result.
WEFT_DEVICE void finish_one(const WeightOnlyCall& call, int64_t m, int64_t n, float sum) {
  const Epilogue& e = call.end;
  Vec<float, 1> v = {{sum + 0 * sum}};
  if (e.bias) v[0] += load_as_float(e.bias, e.bias_dtype, n);
  activate<1>(e.activation, v);
  if (e.residual) v[0] += residual_at<1>(e, m, n)[0];
  with_float(e.out_dtype, [&](auto type) { store_values(e, m, n, convert<decltype(type)>(v)); });
}

// ---- by the tensor cores

constexpr uint32_t kTeamRows = 32, kWeightOnlyThreads = 256;

// Four weights of a word of 8 bits, as two words of X.
template <class X>
WEFT_DEVICE Vec<uint32_t, 2> widened(uint32_t word) {
  const uint32_t biased = word ^ 0x80808080;  // w + 128
  float w[4];
  WEFT_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = 0x4B000000 | (biased >> 8 * i & 255);  // 2^23 + w + 128
    __builtin_memcpy(&w[i], &bits, sizeof bits);
    w[i] -= 8388736.0f;
  }
  return {{gpu::detail::packed<X>(w[0], w[1]), gpu::detail::packed<X>(w[2], w[3])}};
}
// The four of a word of 4 bits that lie at bits `at` … at + 7 of both its halves.
template <class X>
WEFT_DEVICE Vec<uint32_t, 2> widened_nibbles(uint32_t word, int at) {
  Vec<uint32_t, 2> pairs;
  WEFT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t two = word >> (at + 4 * i) & 0x000F000F;
    float w[2];
    WEFT_UNROLL
    for (int j = 0; j < 2; ++j) {
      const uint32_t bits = 0x4B000000 | (j == 0 ? two & 15 : two >> 16);  // 2^23 + w + 8
      __builtin_memcpy(&w[j], &bits, sizeof bits);
      w[j] -= 8388616.0f;
    }
    pairs[i] = gpu::detail::packed<X>(w[0], w[1]);
  }
  return pairs;
}

// What a lane holds of a block of K of the team's 32 rows: rows lane / 4 + 8 i, i = 0 … 3.
struct WeightUnits {
  Vec<uint32_t, 4> row[4];
};

template <class X, int kBits, int kTokens>
class WeightOnlyTeam {
 public:
  static constexpr int64_t kBlock = 512 / kBits;  // of K, 16 bytes a lane
  static constexpr int kParts = static_cast<int>(kBlock / 32), kTiles = kTokens / 8;

  WEFT_DEVICE WeightOnlyTeam(const WeightOnlyCall& call, int64_t m, int64_t n)
      : call_(call), n_(n) {
    clear(total_);
    clear(sum_);
    clear_ones();
    WEFT_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      const int64_t row = m + 8 * j + lane() / 4;
      x_[j] = row < call.end.M ? reinterpret_cast<const X*>(call.x.row(row)) + own_k() : nullptr;
    }
  }

  // Blocks [begin, end) of K.
  WEFT_DEVICE void run(int64_t begin, int64_t end) {
    if (begin >= end) return;
    group_ = begin * kBlock / call_.group;
    left_ = (group_ + 1) * call_.group - begin * kBlock;
    WeightUnits units = load_units(begin);
    WEFT_NO_UNROLL
    for (int64_t b = begin; b < end; ++b) {
      const WeightUnits now = units;
      if (b + 1 < end) units = load_units(b + 1);
      WEFT_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const int64_t k = b * kBlock + part * 32;
        if (k >= call_.K) break;
        multiply(now, part, k);
        left_ -= 32;
        if (left_ <= 0) end_group();
      }
    }
    if (left_ < call_.group) end_group();  // of which other shares have the rest
  }

  // The team's sums [32, kTokens].
  WEFT_DEVICE void store(Shared<float> to) const {
    WEFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      WEFT_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        WEFT_UNROLL
        for (uint32_t c = 0; c < 4; ++c) {
          const Place at = FragmentC<float>::place(lane(), c);
          to[(8 * j + at.column) * kTeamRows + 16 * i + at.row] = total_[i][j][c];
        }
      }
    }
  }

 private:
  using Sums = FragmentC<float>[2][kTiles];

  WEFT_DEVICE static void clear(Sums& sums) {
    WEFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      WEFT_UNROLL
      for (int j = 0; j < kTiles; ++j) sums[i][j] = FragmentC<float>::filled(0);
    }
  }
  WEFT_DEVICE void clear_ones() {
    WEFT_UNROLL
    for (int j = 0; j < kTiles; ++j) ones_[j] = FragmentC<float>::filled(0);
  }

  WEFT_DEVICE WeightUnits load_units(int64_t b) const {
    WeightUnits units;
    const int64_t byte = b * 64 + lane() % 4 * 16;
    WEFT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t n = n_ + lane() / 4 + 8 * i;
      units.row[i] = {};
      if (n < call_.end.N && byte < call_.weight_row) {
        const auto* from =
            reinterpret_cast<const uint32_t*>(call_.weight + n * call_.weight_row + byte);
        units.row[i] = gpu::load<4, Cache::read_only>(from);
      }
    }
    if constexpr (kBits == 8) {  // lanes 0 and 1 of a quad get k 0-31, 2 and 3 k 32-63, of both
      const bool low = lane() % 4 < 2;
      WEFT_UNROLL
      for (int i = 0; i < 4; ++i) {
        Vec<uint32_t, 4>& u = units.row[i];
        const Vec<uint32_t, 2> gives =
            low ? Vec<uint32_t, 2>{{u[2], u[3]}} : Vec<uint32_t, 2>{{u[0], u[1]}};
        const Vec<uint32_t, 2> gets = shuffle_xor(gives, 2);
        u = low ? Vec<uint32_t, 4>{{u[0], u[1], gets[0], gets[1]}}
                : Vec<uint32_t, 4>{{gets[0], gets[1], u[2], u[3]}};
      }
    }
    return units;
  }

  // Which 8 of 32 k a lane has.
  WEFT_DEVICE static uint32_t own_k() {
    const uint32_t t = lane() % 4;
    return kBits == 8 ? t % 2 * 16 + t / 2 * 8 : t * 8;
  }

  // x of the lane's 8 k, of row lane / 4 of tile j.
  WEFT_DEVICE Vec<uint32_t, 4> load_x(int j, int64_t k) const {
    const int64_t left = call_.K - k - own_k();
    Vec<X, 8> x = {};
    if (x_[j] && left > 0) {
      if (call_.vector && left >= 8) {
        x = gpu::load<8>(x_[j] + k);
      } else {
        WEFT_UNROLL
        for (int i = 0; i < 8; ++i)
          if (i < left) x[i] = gpu::load(x_[j] + k + i);
      }
    }
    Vec<uint32_t, 4> words;
    __builtin_memcpy(&words, &x, sizeof words);
    return words;
  }

  // Two steps of 16: of the lane's 8 k, the first four and the others.
  WEFT_DEVICE void multiply(const WeightUnits& units, int part, int64_t k) {
    Vec<uint32_t, 4> x[kTiles];
    WEFT_UNROLL
    for (int j = 0; j < kTiles; ++j) x[j] = load_x(j, k);
    WEFT_UNROLL
    for (int step = 0; step < 2; ++step) {
      FragmentA<X> a[2];
      WEFT_UNROLL
      for (int i = 0; i < 4; ++i) {
        Vec<uint32_t, 2> w;
        if constexpr (kBits == 8)
          w = widened<X>(units.row[i][2 * part + step]);
        else
          w = widened_nibbles<X>(units.row[i][part], 8 * step);
        a[i / 2].words[i % 2] = w[0];
        a[i / 2].words[i % 2 + 2] = w[1];
      }
      WEFT_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        const FragmentB<X> b = {{{x[j][2 * step], x[j][2 * step + 1]}}};
        mma(sum_[0][j], a[0], b);
        mma(sum_[1][j], a[1], b);
        if (call_.zero_point) {
          const uint32_t one = gpu::detail::packed<X>(1, 1);
          mma(ones_[j], FragmentA<X>{{{one, one, one, one}}}, b);
        }
      }
    }
  }

  // total += scale · (sum - zero_point · Σ x)
  WEFT_DEVICE void end_group() {
    WEFT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t n = min(n_ + lane() / 4 + 8 * i, call_.end.N - 1);
      const float scale = load_value(call_.scale, n, group_),
                  zero = call_.zero_point ? load_value(call_.zero_point, n, group_) : 0.0f;
      WEFT_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        WEFT_UNROLL
        for (uint32_t c = 0; c < 2; ++c) {
          const uint32_t at = 2 * (i % 2) + c;
          const float v = fma(-zero, ones_[j][at], sum_[i / 2][j][at]);
          total_[i / 2][j][at] = fma(v, scale, total_[i / 2][j][at]);
        }
      }
    }
    clear(sum_);
    clear_ones();
    ++group_;
    left_ = call_.group;
  }
  WEFT_DEVICE static float load_value(const GroupValues& v, int64_t n, int64_t g) {
    return gpu::load(v.data + n * v.column + g * v.group);
  }

  const WeightOnlyCall& call_;
  const int64_t n_;
  const X* x_[kTiles];             // rows lane / 4 + 8 j, from the lane's k on; null: not there
  Sums total_, sum_;               // of all groups, of this one
  FragmentC<float> ones_[kTiles];  // Σ x, in all rows
  int64_t group_ = 0, left_ = 0;   // … which has so many k left
};

template <int kTokens>
struct WeightOnlyShared {
  static constexpr uint32_t kTeam = kTeamRows * kTokens;
  SharedLayout layout;
  Shared<float> sums = layout.take<float>(kTeam * (kWeightOnlyThreads / kWarp));
};

template <class X, int kBits, int kTokens>
WEFT_KERNEL_BOUNDS(kWeightOnlyThreads, 1)
void weight_only_kernel(WEFT_GRID_CONSTANT const WeightOnlyCall call) {
  using Team = WeightOnlyTeam<X, kBits, kTokens>;
  using Smem = WeightOnlyShared<kTokens>;
  const Smem smem;
  const Epilogue& e = call.end;
  const uint32_t warps_k = call.plan.warps_k, share = warp() % warps_k;
  const int64_t m0 = int64_t{block().x / call.plan.blocks_n} * kTokens,
                block_n = int64_t{block().x % call.plan.blocks_n} * call.plan.warps_n * kTeamRows,
                n0 = block_n + warp() / warps_k * kTeamRows;
  const int64_t blocks = ceil_div(call.K, Team::kBlock);
  {
    Team team(call, m0, n0);
    team.run(blocks * share / warps_k, blocks * (share + 1) / warps_k);
    team.store(smem.sums.from(warp() * Smem::kTeam, Smem::kTeam));
  }
  sync_block();
  const uint32_t count = call.plan.warps_n * Smem::kTeam;
  for (uint32_t i = thread(); i < count; i += kWeightOnlyThreads) {
    const uint32_t team = i / Smem::kTeam, at = i % Smem::kTeam;
    float sum = 0;
    for (uint32_t s = 0; s < warps_k; ++s)
      sum += float{smem.sums[(team * warps_k + s) * Smem::kTeam + at]};
    const int64_t m = m0 + at / kTeamRows, n = block_n + team * kTeamRows + at % kTeamRows;
    if (m < e.M && n < e.N) finish_one(call, m, n, sum);
  }
}

// ---- any

constexpr int kAnyRows = 4;
constexpr uint32_t kAnyThreads = 256;

template <class X>
WEFT_KERNEL_BOUNDS(kAnyThreads, 1)
void weight_only_any_kernel(WEFT_GRID_CONSTANT const WeightOnlyCall call) {
  using Sum = std::conditional_t<std::is_same_v<X, float>, double, float>;
  const Epilogue& e = call.end;
  const int64_t teams_n = ceil_div<int64_t>(e.N, kAnyThreads / kWarp),
                n = block().x % teams_n * (kAnyThreads / kWarp) + warp(),
                m0 = block().x / teams_n * kAnyRows;
  if (n >= e.N) return;
  const int8_t* const weight = call.weight + n * call.weight_row;
  const X* rows[kAnyRows];
  for (int r = 0; r < kAnyRows; ++r)
    rows[r] = reinterpret_cast<const X*>(call.x.row(min(m0 + r, e.M - 1)));
  Sum total[kAnyRows] = {};
  for (int64_t k = lane() * 8; k < call.K; k += kWarp * 8) {
    Vec<int8_t, 8> w;
    if (call.bits == 8) {
      w = load<8>(weight + k);
    } else {
      const uint32_t word = load(reinterpret_cast<const uint32_t*>(weight + nibble_place(k).word));
      WEFT_UNROLL
      for (int i = 0; i < 8; ++i)
        w[i] = static_cast<int8_t>(static_cast<int32_t>(word >> nibble_place(i).bit & 15) - 8);
    }
    const int64_t g = k / call.group;
    const auto value = [&](const GroupValues& v) {
      return load(v.data + n * v.column + g * v.group);
    };
    const Sum scale = value(call.scale), zero = call.zero_point ? value(call.zero_point) : 0.0f;
    WEFT_UNROLL
    for (int r = 0; r < kAnyRows; ++r) {
      Sum sum = 0, ones = 0;
      WEFT_UNROLL
      for (int i = 0; i < 8; ++i)
        if (k + i < call.K) {
          const Sum x = convert<float>(load(rows[r] + k + i));
          sum = fma(x, static_cast<Sum>(w[i]), sum);
          ones += x;
        }
      total[r] = fma(fma(-zero, ones, sum), scale, total[r]);
    }
  }
  WEFT_UNROLL
  for (int r = 0; r < kAnyRows; ++r) {
    const Sum sum = warp_sum(total[r]);
    if (lane() == 0 && m0 + r < e.M) finish_one(call, m0 + r, n, static_cast<float>(sum));
  }
}

}  // namespace weft::int8::cuda
