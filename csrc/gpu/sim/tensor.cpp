// Boxes of tensors, cut into the pieces of up to 16 bytes that a copy moves.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "core/error.h"
#include "gpu/sim/state.h"

namespace weft::gpu {

namespace sim {
namespace {

// What a TensorMap of the simulator holds.
struct CopyTensor {
  static constexpr uint64_t kMagic = 0x77656674746D6170;
  uint64_t magic;
  std::byte* data;
  uint64_t stride[kMostTensorDims - 1];
  uint32_t last[kMostTensorDims];  // size - 1
  uint16_t box[kMostTensorDims];
  DType dtype;
  uint8_t ndim;
  Swizzle swizzle;
  bool nan_fill;
};
static_assert(sizeof(CopyTensor) <= sizeof(TensorMap));

uint32_t swizzled_at(uint32_t offset, Swizzle swizzle) {
  const uint32_t mask = (1u << static_cast<int>(swizzle)) - 1;
  return offset ^ (offset >> 7 & mask) << 4;
}

// What an element outside of the tensor is read as.
void fill(const CopyTensor& t, std::array<std::byte, 16>& piece, uint32_t at, uint32_t bytes) {
  std::memset(piece.data() + at, 0, bytes);
  if (!t.nan_fill) return;
  const uint64_t nan = t.dtype == DType::f64    ? 0x7FF8000000000000
                       : t.dtype == DType::f32  ? 0x7FC00000
                       : t.dtype == DType::bf16 ? 0x7FC0
                                                : 0x7E00;
  std::memcpy(piece.data() + at, &nan, bytes);
}

CopyTensor open(const TensorMap& map, int ndim, const char* name) {
  CopyTensor t;
  std::memcpy(&t, &map, sizeof t);
  if (t.magic != CopyTensor::kMagic) error(std::string(name) + ": not a tensor map");
  if (t.ndim != ndim)
    error(std::string(name) + " at " + std::to_string(ndim) + " coordinates of a tensor of " +
          std::to_string(t.ndim) + " dimensions");
  return t;
}

uint32_t box_bytes(const CopyTensor& t) {
  uint32_t bytes = static_cast<uint32_t>(size_of(t.dtype));
  for (int d = 0; d < t.ndim; ++d) bytes *= t.box[d];
  return bytes;
}

// The pieces of the box at `at`, which lies at `shared`. Where `all`, those outside of the tensor
// are there, too, to be filled.
std::vector<BoxPiece> cut(const CopyTensor& t, const int32_t* at, uint32_t shared, bool all) {
  const uint32_t element = static_cast<uint32_t>(size_of(t.dtype));
  const uint32_t row = t.box[0] * element;
  const uint32_t rows = box_bytes(t) / row;
  std::vector<BoxPiece> pieces;
  for (uint32_t r = 0; r < rows; ++r) {
    bool inside = true;
    std::byte* start = t.data;
    uint32_t rest = r;
    for (int d = 1; d < t.ndim; ++d) {
      const int64_t x = int64_t{at[d]} + rest % t.box[d];
      rest /= t.box[d];
      inside &= x >= 0 && x <= t.last[d];
      start += x * static_cast<int64_t>(t.stride[d - 1]);
    }
    for (uint32_t c = 0; c < row; c += 16) {
      const uint32_t to = swizzled_at(shared + r * row + c, t.swizzle);
      const int64_t x = int64_t{at[0]} + c / element;
      const int64_t elements = 16 / element;
      if (inside && x >= 0 && x + elements - 1 <= t.last[0]) {
        std::byte* from = start + x * element;  // as aligned as `unit`
        const auto unit =
            std::min<uint32_t>(16, 1u << std::countr_zero(reinterpret_cast<uintptr_t>(from)));
        for (uint32_t i = 0; i < 16; i += unit) pieces.push_back({to + i, unit, from + i, {}});
        continue;
      }
      for (int64_t i = 0; i < elements; ++i) {  // the edge of the tensor
        const bool here = inside && x + i >= 0 && x + i <= t.last[0];
        BoxPiece piece{to + static_cast<uint32_t>(i) * element,
                       element,
                       here ? start + (x + i) * element : nullptr,
                       {}};
        if (!here) {
          std::array<std::byte, 16> nothing;
          fill(t, nothing, 0, element);
          std::memcpy(piece.fill, nothing.data(), element);
        }
        if (here || all) pieces.push_back(piece);
      }
    }
  }
  return pieces;
}

void expect_room(const char* name, const CopyTensor& t, uint32_t shared, uint32_t room) {
  if (shared % 128 || (t.swizzle != Swizzle::none && shared % kSharedAlignment))
    error(std::string(name) + " at shared offset " + std::to_string(shared) +
          ": expected a multiple of 128, and of 1024 for a swizzled box");
  if (box_bytes(t) > room)
    error(std::string(name) + ": a box of " + std::to_string(box_bytes(t)) +
          " bytes for a view of " + std::to_string(room));
}

}  // namespace

void tensor_load(uint32_t to, uint32_t room, const TensorMap& map, const int32_t* at, int ndim,
                 uint32_t barrier, uint32_t blocks) {
  WEFT_SIM_ENTER;
  const CopyTensor t = open(map, ndim, "tensor_load");
  expect_room("tensor_load", t, to, room);
  load_boxes(self(), "tensor_load", barrier, blocks, box_bytes(t), cut(t, at, to, true));
}

void tensor_store(const TensorMap& map, const int32_t* at, int ndim, uint32_t from, uint32_t room,
                  const Reduction* reduction) {
  WEFT_SIM_ENTER;
  const char* name = reduction ? "tensor_reduce_add" : "tensor_store";
  const CopyTensor t = open(map, ndim, name);
  expect_room(name, t, from, room);
  if (reduction && reduction->element_bytes != size_of(t.dtype))
    error("tensor_reduce_add of elements of " + std::to_string(reduction->element_bytes) +
          " bytes to a tensor of " + name_of(t.dtype));
  store_boxes(self(), name, reduction, cut(t, at, from, false));
}

}  // namespace sim

TensorMap make_tensor_map(const TensorDescription& tensor) {
  check_tensor(tensor);
  sim::CopyTensor t{};
  t.magic = sim::CopyTensor::kMagic;
  t.data = static_cast<std::byte*>(tensor.data);
  t.dtype = tensor.dtype;
  t.ndim = static_cast<uint8_t>(tensor.ndim);
  t.swizzle = tensor.swizzle;
  t.nan_fill = tensor.nan_fill;
  for (int d = 0; d < tensor.ndim; ++d) {
    t.last[d] = static_cast<uint32_t>(tensor.size[d] - 1);
    t.box[d] = static_cast<uint16_t>(tensor.box[d]);
    if (d > 0) t.stride[d - 1] = tensor.stride[d - 1];
  }
  TensorMap map{};
  std::memcpy(&map, &t, sizeof t);
  return map;
}

}  // namespace weft::gpu
