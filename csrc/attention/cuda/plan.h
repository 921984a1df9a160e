// Which kernel takes a call, and who works on what: pure functions of shapes and of the device.
//
// Rows of a key head are its queries times the query heads that share it, these next to each other:
// row r of a sequence is query r / group of head k · group + r % group. So K and V are read once for
// all heads of a group, and decoding fills a tile's rows. A block takes a tile of rows over all key
// blocks that they see, or over one split of the keys; key blocks begin at multiples of their size,
// so that a row's sums have the same bits in any tile of a kernel.
#pragma once

#include <cstdint>

#include "attention/cuda/schedule.h"
#include "attention/params.h"
#include "gpu/device.h"

namespace weft::attention::cuda {

using gpu::Limits;

// Head sizes that kernels are compiled for: D and Dv of a call fit into `D` and `Dv`; of a larger Dv,
// blocks take Dv columns each, and make the scores again.
struct HeadSize {
  int D, Dv;
  constexpr bool operator==(const HeadSize&) const = default;
};
constexpr HeadSize kHeadSizes[] = {{64, 64}, {128, 128}, {256, 256}, {512, 256}};
// Of float32, whose products take more registers, blocks of large heads have 64 columns.
constexpr HeadSize head_size_of(int64_t D, int64_t Dv, size_t element = 2) {
  for (const HeadSize& size : kHeadSizes)
    if (D <= size.D && Dv <= size.D) return {size.D, element == 4 && size.D > 128 ? 64 : size.Dv};
  return {};
}

// Every row begins at a multiple of 16 bytes.
bool is_vector(const Heads& t);
// Nothing stands between the product and the exponential but a positive scale.
bool is_plain(const Forward& p);

// ---- forward

// Tiles of `size` rows, `group` rows a query: of the longest sequence; of a packed batch of all, where
// those are fewer than as many for each.
struct RowTiles {
  int64_t count;
  bool packed;
};
RowTiles row_tiles(const Problem& p, int64_t group, int64_t size);

constexpr int64_t kMostRows = int64_t{1} << 30;  // of a sequence: kernels count in 32 bits

// The kernels, the most general last.
enum class ForwardKernel : uint8_t {
  sm90_plain,    // plan_sm90.h; windows alone
  sm90_options,  // … all options
  sm80_plain,    // windows alone, vectors of 16 bytes
  sm80_few,      // up to 16 rows, which all warps of a block have in common: decoding
  sm80_any,
};

// A tile of the sm_80 kernels: 16 · m_tiles rows a warp, `keys` keys at a time, and as many tiles of K
// and V, one after the other, in shared memory as there are stages. Or all warps have the same rows,
// and keys of their own.
struct ForwardTile {
  int warps, m_tiles, keys, stages;
  bool shares_rows = false;

  constexpr int rows() const { return 16 * (shares_rows ? 1 : warps) * m_tiles; }
  constexpr int warp_keys() const { return shares_rows ? keys / warps : keys; }
  constexpr int threads() const { return 32 * warps; }
};
constexpr bool has_few(size_t element, HeadSize size) { return element == 2 && size.D <= 128; }
// Registers of a thread: O takes m_tiles · Dv / 2, S m_tiles · keys / 2. Shared memory in KiB, of Q and
// the stages: see the right.
constexpr ForwardTile forward_tile(size_t element, HeadSize size, ForwardKernel kernel) {
  const bool plain = kernel == ForwardKernel::sm80_plain;
  if (kernel == ForwardKernel::sm80_few)
    return {4, 1, 64, size.D == 64 ? 4 : 3, true};  // 2 + 4 · 8; 4 + 3 · 16
  if (element == 4) switch (size.D) {
      case 64:
        return {4, 1, 16, 4};  // 16 + 4 · 4
      case 128:
        return {4, 1, 16, 3};  // 32 + 3 · 8
      case 256:
        return {4, 1, 16, 2};  // 64 + 2 · 16
      default:
        return {1, 1, 16, 2};  // 32 + 2 · 32
    }
  switch (size.D) {
    case 64:
      return {4, plain ? 2 : 1, 64, 4};  // 16 + 4 · 8; 8 less
    case 128:
      return {4, plain ? 2 : 1, 32, 4};  // 32 + 4 · 8; 16 less
    case 256:
      return {plain ? 8 : 4, 1, 32, 2};  // 64 + 2 · 16; 32 less
    default:
      return {4, 1, 16, 2};  // 64 + 2 · 16
  }
}

constexpr int64_t kMostSplits = 512;

struct ForwardPlan {
  ForwardKernel kernel = ForwardKernel::sm80_any;
  HeadSize head_size = {};
  bool vector = false;     // rows of q, k and v are moved 16 bytes at a time
  int32_t group = 1;       // query heads of a key head
  int64_t row_blocks = 0;  // tiles of rows of the longest sequence or …
  bool packed = false;     // … of all, one after the other (sequences.h: packed_tile)
  int64_t chunks = 1;      // of Dv columns, for each a block
  int64_t splits = 1;      // of the keys, for each a block …
  int64_t split_keys = 0;  // … with as many keys, a multiple of a key block
  bool parts = false;      // the result is made of what the splits leave in the workspace
  int64_t queries = 0;     // of a sequence, for which parts have room
  int32_t least = 0, most = INT32_MAX;  // queries of the sequences that it is for
  Schedule schedule;                    // of the sm_90 kernels, of which …
  uint32_t grid = 0;                    // … so many blocks take tiles
  int64_t workspace_bytes = 0;  // of partial results: [splits, B, queries, H, Dv] and lse, float32

  WEFT_INLINE constexpr bool takes(int32_t S) const { return S >= least && S <= most; }
};
// prefer_sm90: its kernels take all that they can, worth it or not. For tests.
ForwardPlan plan(const Forward& p, const Limits& limits, bool prefer_sm90 = false);

// Packed queries over a cache may be prompts and steps of decoding in one call. Sequences of up to so
// many queries, whose rows of a group fit into a tile of 16, then have a launch of their own, in which
// their heads are packed and their keys split; the other has those of `least` queries on. Which is
// which only the GPU knows: either launch skips the other's. 0: there is one launch, as all that does
// not read a cache has, or may be of one length.
int64_t decoding_queries(const Forward& p);
ForwardPlan decoding_plan(const Forward& p, const Limits& limits);

// Whether the kernel that takes the call can append to the cache, too (fresh.h): each key of a head is
// one block's alone.
bool takes_fresh(const Forward& p, const Limits& limits, bool prefer_sm90);

}  // namespace weft::attention::cuda
