// Which calls the backward kernel of sm_90a takes, and with what tiles.
#pragma once

#include "attention/cuda/backward_plan.h"

namespace weft::attention::cuda {

// A block has two warpgroups that compute, 64 keys each, and takes kStep queries at a time; the part of
// dQ that it makes of kQueries of them, 64 × 64 a warpgroup, is what it adds to memory at once.
//
//   D, Dv   queries   stages   registers of a thread                   shared memory, bytes
//                              dK  dV  s   dp/dQ  p/ds  sum  of        K, V   Q, dO   ds     dQ
//   64      2 · 64    4        32  32  32  32     16    144  240       32768  65536   65536  65536
//   128     64        2        64  64  32  32     16    208  240       65536  65536   32768  65536
//   with options (softcap, ALiBi, bias, mask, dropout), which take registers of their own:
//   64      2 · 64    4        32  32  32  32     16    144  240       32768  65536   65536  65536
//   128     2 · 32    4        64  64  16  16/32  8     168  240       65536  65536   32768  65536
//
// and 8 bytes a query of a stage of shifts and δ: some 231,600 of 232,448 in all. Head sizes between
// take the next larger ones: tensor copies fill up with zeros. With D = 192 or 256, dK and dV alone
// are 160 or 256 registers.
template <int D, bool Options>
struct BackwardShape {
  static_assert(D == 64 || D == 128);
  static constexpr bool kOptions = Options;
  static constexpr uint32_t kD = D, kWarpgroups = 2, kKeys = 64 * kWarpgroups;
  static constexpr uint32_t kQueries = 8192 / D, kStep = kOptions ? 4096 / D : 64;
  static constexpr uint32_t kHalves = kQueries / kStep, kStages = 2 * kHalves;
  static constexpr uint32_t kThreads = 128 * (1 + kWarpgroups);
  static constexpr uint32_t kPiece = 64 * 64;              // of dQ, a warpgroup's
  static constexpr uint32_t kPart = kWarpgroups * kPiece;  // of dQ, of kQueries
  static constexpr int kLoaderRegisters = 24, kRegisters = 240;
};

// Not taken: float32, head sizes beyond 128, elements that tensor copies do not reach, and many
// sequences that are much shorter than a block. Adds to `plan` what the launch needs.
void plan_sm90(const Backward& p, const Limits& limits, BackwardPlan& plan);

}  // namespace weft::attention::cuda
