// What the launches of the attention family share, on the host.
#pragma once

#include "attention/cuda/attention.h"
#include "attention/cuda/finish.h"
#include "gpu/plan.h"

namespace weft::attention::cuda {

using gpu::grid_size;

// A tensor of heads in boxes of 64 elements of so many rows. Of a dimension of one element the
// stride does not matter, and may be any.
inline gpu::TensorMap map_of(const Heads& t, int64_t elements, int64_t rows, int64_t heads,
                             int64_t batch, uint32_t box_rows) {
  const auto size = static_cast<int64_t>(size_of(t.dtype));
  const auto stride = [&](int64_t count, int64_t step) {
    return static_cast<uint64_t>(count > 1 ? step * size : 16);
  };
  gpu::TensorDescription d;
  d.data = t.data;
  d.dtype = t.dtype;
  d.ndim = 4;
  const int64_t sizes[] = {elements, rows, heads, batch};
  for (int i = 0; i < 4; ++i) d.size[i] = static_cast<uint64_t>(sizes[i]), d.box[i] = 1;
  d.stride[0] = stride(rows, t.row), d.stride[1] = stride(heads, t.head);
  d.stride[2] = stride(batch, t.batch);
  d.box[0] = 64, d.box[1] = box_rows;
  d.swizzle = gpu::Swizzle::bytes128;
  return gpu::make_tensor_map(d);
}

void forward_sm90(const ForwardCall&, const Device&);
// One for each dtype of q; of float32 two, by p.allow_tf32.
void forward_sm80_bf16(const ForwardCall&, const Device&);
void forward_sm80_f16(const ForwardCall&, const Device&);
void forward_sm80_f32(const ForwardCall&, const Device&);
void forward_sm80_tf32(const ForwardCall&, const Device&);

}  // namespace weft::attention::cuda
