// The collectives' schemas, and their functions under their names: for every library that registers
// them.
#pragma once

#include <torch/csrc/stable/library.h>

#include "comm/ops.h"

namespace weft::comm {

inline void define_ops(torch::stable::detail::StableLibrary& m) {
  m.def("all_reduce(Tensor x, int communicator, str op) -> Tensor");
  m.def("all_reduce_(Tensor(a!) x, int communicator, str op) -> ()");
  m.def("all_reduce_int8(Tensor x, int communicator, str op, int group_size) -> Tensor");
  m.def("all_reduce_int8_(Tensor(a!) x, int communicator, str op, int group_size) -> ()");
  m.def("reduce_scatter(Tensor x, int communicator, str op) -> Tensor");
  m.def("all_gather(Tensor x, int communicator) -> Tensor");
}

template <class Backend>
void implement_ops(torch::stable::detail::StableLibrary& m) {
  using Comm = Ops<Backend>;
  m.impl("all_reduce", TORCH_BOX(&Comm::all_reduce));
  m.impl("all_reduce_", TORCH_BOX(&Comm::all_reduce_));
  m.impl("all_reduce_int8", TORCH_BOX(&Comm::all_reduce_int8));
  m.impl("all_reduce_int8_", TORCH_BOX(&Comm::all_reduce_int8_));
  m.impl("reduce_scatter", TORCH_BOX(&Comm::reduce_scatter));
  m.impl("all_gather", TORCH_BOX(&Comm::all_gather));
}

}  // namespace weft::comm
