#include "attention/cuda/launch_backward_sm80.h"

namespace weft::attention::cuda {

void backward_sm80_bf16(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream) {
  launch_backward_sm80<Operands<bf16>>(call, plan, stream);
}

}  // namespace weft::attention::cuda
