// Stands in for libtorch_cuda.so at link time where the torch at hand is a CPU build (see
// cmake/cuda.cmake). It is never installed and never called: at run time the real library is in the
// process. Whatever weft takes from it is declared here, or linking fails with an undefined symbol.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) int32_t
aoti_torch_get_current_cuda_stream(int32_t, void**) {
  return 1;
}
