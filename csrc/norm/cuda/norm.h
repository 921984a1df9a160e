// The norm family on CUDA, as the op libraries call it: for a GPU, and for the simulator.
#pragma once

#include <cstdint>

#include "gpu/device.h"
#include "gpu/launch.h"
#include "norm/params.h"

namespace weft::norm::cuda {

// Where a call runs.
struct Device {
  gpu::Limits limits;
  gpu::Stream stream = nullptr;
};

// Bytes of workspace that the call needs in params.workspace (16-byte aligned).
int64_t workspace_bytes(const Backward&, const gpu::Limits&);

void forward(const Forward&, const Device&);
void backward(const Backward&, const Device&);
void dropout_mask(const Dropout&, int64_t count, int stream, bool* mask, const Device&);

}  // namespace weft::norm::cuda
