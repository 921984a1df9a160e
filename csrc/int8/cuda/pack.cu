// Launches the kernels of pack.h.
#include "int8/cuda/pack.h"

#include "gpu/plan.h"
#include "int8/cuda/int8.h"

namespace weft::int8::cuda {

int64_t packed_bytes(int64_t N, int64_t K, int bits) { return PackedLayout(N, K, bits).bytes; }

PackedHeader packed_header(int64_t N, int64_t K, int bits) {
  PackedHeader header;
  header.version = kPackedVersion;
  header.N = N;
  header.K = K;
  header.bits = bits;
  return header;
}

void pack(const Pack& p, const Device& device) {
  const int64_t blocks =
      ceil_div<int64_t>(PackedLayout(p.N, p.K, p.bits).rows, kPackThreads / kWarp);
  launch<pack_kernel>({.grid = {grid_size(blocks)}, .block = kPackThreads, .stream = device.stream},
                      p, packed_header(p.N, p.K, p.bits));
}

void unpack(const Unpack& p, const Device& device) {
  const int64_t blocks = ceil_div<int64_t>(p.N * p.K, kPackThreads);
  launch<unpack_kernel>(
      {.grid = {grid_size(blocks)}, .block = kPackThreads, .stream = device.stream}, p);
}

}  // namespace weft::int8::cuda
