#include <cuda_runtime_api.h>

#include "gpu/device.h"

namespace weft::gpu {

int runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

int driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

const char* architectures() { return WEFT_CUDA_ARCHITECTURES; }

}  // namespace weft::gpu
