#pragma once

// What the GPU build holds and what it finds; for `weft doctor` and for launch plans.

#include <cstdint>

namespace weft::gpu {

// What launch plans depend on.
struct Limits {
  uint32_t multiprocessors = 1;
  uint32_t shared_bytes = 48 << 10;  // that a block may have
  bool clusters = false;             // sm_90: up to 16 blocks
  bool wgmma = false;                // sm_90a
};
Limits limits();  // of the current device

// CUDA versions as the runtime counts them: 13000 is 13.0.
int runtime_version();
int driver_version();  // the highest that the installed driver supports; 0 where there is no driver

// Space-separated, as compiled in: sm_80 is machine code, compute_80 is PTX, which the driver
// compiles for later GPUs.
const char* architectures();

}  // namespace weft::gpu
