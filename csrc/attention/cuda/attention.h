// The attention family on CUDA, as the op libraries call it: for a GPU, and for the simulator.
#pragma once

#include <cstdint>

#include "attention/params.h"
#include "gpu/device.h"
#include "gpu/launch.h"

namespace weft::attention::cuda {

// Where a call runs.
struct Device {
  gpu::Limits limits;
  gpu::Stream stream = nullptr;
  bool prefer_sm90 = false;  // also where it is not worth it: for tests
};

// Bytes of workspace that the call needs in params.workspace (16-byte aligned).
int64_t workspace_bytes(const Forward&, const Device&);
int64_t workspace_bytes(const Backward&, const gpu::Limits&);

bool takes_fresh(const Forward&, const Device&);  // else append and rotary come before forward
void forward(const Forward&, const Device&);
void backward(const Backward&, const Device&);
void append(const Append&, const Device&);
void rotary(const Rotary&, const Device&);
void merge(const Merge&, const Device&);

}  // namespace weft::attention::cuda
