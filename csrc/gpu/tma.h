// Tensor copies: one thread moves a box of a tensor of up to five dimensions between global and
// shared memory. The host describes the tensor once, in a TensorMap; the kernel takes that as
//
//   WEFT_KERNEL void kernel(WEFT_GRID_CONSTANT const TensorMap map, …)
//
// and names a box by the coordinates of its first element, the fastest dimension first. A box lies
// dense in shared memory, 128-byte aligned, its rows of 32, 64 or 128 bytes swizzled on request.
// Elements outside of the tensor are read as zeros and not written. sm_90.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "gpu/async.h"

namespace weft::gpu {

constexpr int kMostTensorDims = 5;

// How 16-byte units of a row are exchanged, so that columns of units can be read without bank
// conflicts. For an absolute byte address in shared memory:
//
//   bytes128: address ^ (address >> 7 & 7) << 4
//   bytes64:  address ^ (address >> 7 & 3) << 4
//   bytes32:  address ^ (address >> 7 & 1) << 4
enum class Swizzle : uint8_t { none, bytes32, bytes64, bytes128 };

// Where the byte that would lie at `offset` of a tile goes; tiles are aligned to 1024 bytes.
template <Swizzle kSwizzle>
WEFT_INLINE constexpr uint32_t swizzled(uint32_t offset) {
  constexpr uint32_t mask = (1u << static_cast<int>(kSwizzle)) - 1;
  return offset ^ (offset >> 7 & mask) << 4;
}

struct alignas(64) TensorMap {
  uint64_t words[16];
};

// A tensor, dimension 0 the fastest.
struct TensorDescription {
  void* data = nullptr;  // aligned to 16 bytes
  DType dtype = DType::bf16;
  int ndim = 1;
  uint64_t size[kMostTensorDims] = {};        // elements
  uint64_t stride[kMostTensorDims - 1] = {};  // bytes, of dimensions 1, 2, …: multiples of 16
  uint32_t box[kMostTensorDims] = {};         // elements, up to 256
  Swizzle swizzle = Swizzle::none;            // box[0] is then as many bytes
  bool nan_fill = false;                      // outside of the tensor, for floating types
};

// Throws where the description breaks a rule of the hardware.
TensorMap make_tensor_map(const TensorDescription& tensor);
void check_tensor(const TensorDescription& tensor);

// What L2 is to do with the data.
enum class CachePolicy { normal, evict_first, evict_last };

template <CachePolicy kPolicy = CachePolicy::normal, class T, int R>
WEFT_DEVICE void tensor_load(Shared<T> to, const TensorMap& map, const int32_t (&at)[R],
                             Shared<MBarrier> barrier);
// To the same place in each block of the cluster whose bit is set; each one's barrier counts.
template <CachePolicy kPolicy = CachePolicy::normal, class T, int R>
WEFT_DEVICE void tensor_load_multicast(Shared<T> to, const TensorMap& map, const int32_t (&at)[R],
                                       Shared<MBarrier> barrier, uint16_t blocks);
// In groups: bulk_commit, bulk_wait.
template <CachePolicy kPolicy = CachePolicy::normal, class T, int R>
WEFT_DEVICE void tensor_store(const TensorMap& map, const int32_t (&at)[R], Shared<T> from);
template <class T, int R>
WEFT_DEVICE void tensor_reduce_add(const TensorMap& map, const int32_t (&at)[R], Shared<T> from);

// Brings the map itself into the cache.
WEFT_DEVICE void prefetch(const TensorMap& map);

}  // namespace weft::gpu
