// The INT8 family on CUDA, as the op libraries call it: for a GPU, and for the simulator.
#pragma once

#include <cstdint>

#include "gpu/device.h"
#include "gpu/launch.h"
#include "int8/packed.h"
#include "int8/params.h"

namespace weft::int8::cuda {

// Where a call runs.
struct Device {
  gpu::Limits limits;
  gpu::Stream stream = nullptr;
};

// Bytes of workspace that the call needs in params.workspace (128-byte aligned).
int64_t workspace_bytes(const Quantize&, const gpu::Limits&);
int64_t workspace_bytes(const Linear&, const gpu::Limits&);

void quantize(const Quantize&, const Device&);
void dequantize(const Dequantize&, const Device&);
void linear(const Linear&, const Device&);

int64_t packed_bytes(int64_t N, int64_t K, int bits);
PackedHeader packed_header(int64_t N, int64_t K, int bits);
// 4-bit weights beyond -8 … 7 become the nearest of these.
void pack(const Pack&, const Device&);
void unpack(const Unpack&, const Device&);

}  // namespace weft::int8::cuda
