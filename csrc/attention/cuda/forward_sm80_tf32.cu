#include "attention/cuda/launch_sm80.h"

namespace weft::attention::cuda {

void forward_sm80_tf32(const ForwardCall& call, const Device& device) {
  launch_sm80<Operands<tf32>>(call, device);
}

}  // namespace weft::attention::cuda
