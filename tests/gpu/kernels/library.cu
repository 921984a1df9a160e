// The test kernels on CUDA. Loaded after library.cpp's, which declares the op.
#include "library.h"
#include "spellings.h"

namespace weft::gpu::tests {
namespace {

int64_t run(std::string name, std::vector<Tensor> inputs, std::vector<Tensor> inouts,
            std::vector<Tensor> outputs, std::vector<int64_t> numbers) {
  void* stream = nullptr;
  aoti_torch_get_current_cuda_stream(-1, &stream);
  find_case(name)(
      {arrays_of(inputs), arrays_of(inouts), arrays_of(outputs), std::move(numbers), stream});
  return static_cast<int64_t>(outputs.size());
}

}  // namespace
}  // namespace weft::gpu::tests

STABLE_TORCH_LIBRARY_IMPL(weft_gpu_tests, CUDA, m) {
  m.impl("run", TORCH_BOX(&weft::gpu::tests::run));
}
