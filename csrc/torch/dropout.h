// Dropout's state as torch hands it over: seed and offset of Philox, in a tensor beside the others.
#pragma once

#include "core/philox.h"
#include "torch/call.h"

namespace weft {

template <class Backend>
Dropout read_dropout(const Call<Backend>& call, double p, const OptionalTensor& rng_state) {
  check(p >= 0 && p <= 1, "weft.", call.op, ": dropout_p is ", p,
        ", expected a probability from 0 to 1");
  if (p == 0) return {};
  check(rng_state.has_value(), "weft.", call.op, ": dropout needs rng_state");
  check(dtype_of(*rng_state) == DType::i64 && sizes_of(*rng_state) == Sizes{2} &&
            rng_state->is_contiguous(),
        "weft.", call.op, ": rng_state is ", name_of(dtype_of(*rng_state)), " ",
        sizes_of(*rng_state), ", expected contiguous int64 [2] (seed, offset)");
  call.check_device(*rng_state, "rng_state");
  return {p, static_cast<const int64_t*>(rng_state->const_data_ptr())};
}

}  // namespace weft
