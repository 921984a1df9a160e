// The test kernels as torch ops, in the same words for the simulator (library.cpp, on CPU tensors)
// and for CUDA (library.cu). Each includes this page once.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "async.h"
#include "atomics.h"
#include "block.h"
#include "case.h"
#include "cluster.h"
#include "convert.h"
#include "mma.h"
#include "multimem.h"
#include "mutants.h"
#include "row_sum.h"
#include "tensor.h"
#include "vectors.h"
#include "warp.h"
#include "wgmma.h"

namespace weft::gpu::tests {

using torch::stable::Tensor;

inline std::vector<Array> arrays_of(const std::vector<Tensor>& tensors) {
  std::vector<Array> arrays;
  for (const Tensor& t : tensors)
    arrays.push_back({const_cast<void*>(t.const_data_ptr()), t.numel()});
  return arrays;
}

inline const Case& find_case(const std::string& name) {
  const auto found = cases().find(name);
  check(found != cases().end(), "weft_gpu_tests: no kernel is called ", name);
  return found->second;
}

}  // namespace weft::gpu::tests
