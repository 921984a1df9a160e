// Which calls the forward kernel of sm_90a takes, and with what tiles.
#pragma once

#include <numeric>
#include <optional>

#include "attention/cuda/plan.h"

namespace weft::attention::cuda {

// The tiles of a head size. A block has a warpgroup that loads and kWarpgroups that compute, 64
// queries each; keys come kKeys at a time, in kStages stages each of K and of V.
//
//   D    Dv   warpgroups  keys  stages   registers of a thread     shared memory, bytes, of 232448
//                                        S   P   O   sum  of       Q      K          V          O
//   64   64   3           128   3        64  32  32  128  160      24576  3 · 16384  3 · 16384  24576
//   128  128  2           128   2        64  32  64  160  240      32768  2 · 32768  2 · 32768  32768
//   192  128  2           128   2        64  32  64  160  240      49152  2 · 49152  2 · 32768  in Q
//   256  256  2           64    2        32  16  128 176  240      65536  2 · 32768  2 · 32768  in Q
//   with options:
//   64   64   2           64    4        32  16  32  80   240      16384  4 · 8192   4 · 8192   16384
//   128  128  2           64    4        32  16  64  112  240      32768  4 · 16384  4 · 16384  32768
//   192  128  2           64    4        32  16  64  112  240      49152  4 · 24576  4 · 16384  in Q
//
// Head sizes between take the next larger ones: tensor copies fill up with zeros. A block has the
// 65536 registers of its multiprocessor, 168 a thread of three warpgroups, 128 of four; the loading
// warpgroup keeps kLoaderRegisters of them and leaves the rest to the others. S and P are those of
// two neighbouring blocks of keys. kTurns: the warpgroups take turns at the tensor cores; with O of
// 128 registers a warpgroup's products last longer than its softmax, and there is nothing to gain.
// Options are softcap, ALiBi, bias, mask and dropout, which take registers of their own.
template <int D, int Dv, bool kOptions>
struct Shape;

template <int D, int Dv, bool Options, int Warpgroups, int Keys, int Stages>
struct ShapeOf {
  static constexpr bool kOptions = Options;
  static constexpr uint32_t kD = D, kDv = Dv, kWarpgroups = Warpgroups, kKeys = Keys,
                            kStages = Stages;
  static constexpr uint32_t kQueries = 64 * kWarpgroups, kThreads = 128 * (1 + kWarpgroups);
  static constexpr int kLoaderRegisters = kWarpgroups == 2 ? 24 : 32,
                       kRegisters = kWarpgroups == 2 ? 240 : 160;
  static constexpr bool kTurns = D <= 192, kOutputInQ = D > 128;
};
template <>
struct Shape<64, 64, false> : ShapeOf<64, 64, false, 3, 128, 3> {};
template <>
struct Shape<128, 128, false> : ShapeOf<128, 128, false, 2, 128, 2> {};
template <>
struct Shape<192, 128, false> : ShapeOf<192, 128, false, 2, 128, 2> {};
template <>
struct Shape<256, 256, false> : ShapeOf<256, 256, false, 2, 64, 2> {};
template <>
struct Shape<64, 64, true> : ShapeOf<64, 64, true, 2, 64, 4> {};
template <>
struct Shape<128, 128, true> : ShapeOf<128, 128, true, 2, 64, 4> {};
template <>
struct Shape<192, 128, true> : ShapeOf<192, 128, true, 2, 64, 4> {};

// The rows and the batch entries of the queries' tensors and of the keys', packed or not. Of a paged
// cache a batch entry is a page.
struct Extents {
  int64_t q_rows, q_batch, k_rows, k_batch;

  explicit Extents(const Problem& p)
      : q_rows(p.sequences.cu_q ? p.total_q : p.S),
        q_batch(p.sequences.cu_q ? 1 : p.B),
        k_rows(p.sequences.block_table ? p.sequences.page_size
               : p.sequences.cu_k      ? p.total_k
                                       : p.T),
        k_batch(p.sequences.cu_k                                   ? 1
                : p.sequences.cache_row || p.sequences.block_table ? p.caches
                                                                   : p.B) {}
};

// A block of keys in pages comes in parts, each a tensor copy, of as many rows as divide both: one
// copy from pages of whole blocks, eight from pages of 16 rows at 128 keys a block. Smaller parts would
// take the loading thread as long as the products take.
constexpr int64_t page_part(int64_t page_size, int64_t keys) { return std::gcd(page_size, keys); }
constexpr int64_t kLeastPart = 16;

// Can tensor copies reach a row of elements, and 16-byte accesses its parts? Steps of 0 they do not
// take, nor need to where there is one element.
bool is_reached(const Heads& t, int64_t elements, int64_t rows, int64_t heads, int64_t batch);

// Not taken: other types than bf16 and f16, an int8 result, head sizes beyond 256 (with options D
// beyond 192, Dv beyond 128), elements that tensor copies do not reach, pages whose parts are too
// small or whose first keys are not at the beginning of a page (leftpad). Nor, unless `worth_it` is
// not asked for, what leaves tiles or multiprocessors empty: few queries, for which the sm_80 kernels
// pack the heads of a group into a tile and split the keys.
std::optional<ForwardPlan> plan_sm90(const Forward& p, const Limits& limits, bool worth_it);

}  // namespace weft::attention::cuda
