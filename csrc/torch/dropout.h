// Dropout's state as torch hands it over: seed and offset of Philox, in a tensor on the CPU.
#pragma once

#include "core/philox.h"
#include "torch/tensor.h"

namespace weft {

inline Dropout read_dropout(const char* op, double p, const OptionalTensor& rng_state) {
  check(p >= 0 && p <= 1, "weft.", op, ": dropout_p is ", p,
        ", expected a probability from 0 to 1");
  if (p == 0) return {};
  check(rng_state.has_value(), "weft.", op, ": dropout needs rng_state");
  check(dtype_of(*rng_state) == DType::i64 && sizes_of(*rng_state) == Sizes{2} &&
            rng_state->is_contiguous(),
        "weft.", op, ": rng_state is ", name_of(dtype_of(*rng_state)), " ", sizes_of(*rng_state),
        ", expected contiguous int64 [2] (seed, offset)");
  check(rng_state->is_cpu(), "weft: rng_state is not on the CPU");
  const auto* state = static_cast<const int64_t*>(rng_state->const_data_ptr());
  return {p, {static_cast<uint64_t>(state[0]), static_cast<uint64_t>(state[1])}};
}

}  // namespace weft
