// Launches the kernels of pack.h.
#include "int8/cuda/pack.h"

#include "gpu/plan.h"
#include "int8/cuda/int8.h"

namespace weft::int8::cuda {

int64_t packed_bytes(int64_t N, int64_t K, int bits) { return PackedLayout(N, K, bits).bytes; }

void pack(const Pack& p, const Device& device) {
  PackedHeader header;
  header.N = p.N;
  header.K = p.K;
  header.bits = p.bits;
  const int64_t blocks =
      ceil_div<int64_t>(PackedLayout(p.N, p.K, p.bits).rows, kPackThreads / kWarp);
  launch<pack_kernel>({.grid = {grid_size(blocks)}, .block = kPackThreads, .stream = device.stream},
                      p, header);
}

void unpack(const Unpack& p, const Device& device) {
  const int64_t blocks = ceil_div<int64_t>(p.N * p.K, kPackThreads);
  launch<unpack_kernel>(
      {.grid = {grid_size(blocks)}, .block = kPackThreads, .stream = device.stream}, p);
}

}  // namespace weft::int8::cuda
