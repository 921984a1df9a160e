#include "attention/cuda/launch_sm80.h"

namespace weft::attention::cuda {

void forward_sm80_f16(const ForwardCall& call, const Device& device) {
  launch_sm80<Operands<f16>>(call, device);
}

}  // namespace weft::attention::cuda
