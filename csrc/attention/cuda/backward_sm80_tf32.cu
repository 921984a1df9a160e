#include "attention/cuda/launch_backward_sm80.h"

namespace weft::attention::cuda {

void backward_sm80_tf32(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream) {
  launch_backward_sm80<Operands<tf32>>(call, plan, stream);
}

}  // namespace weft::attention::cuda
