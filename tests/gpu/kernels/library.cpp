// The test kernels on the simulator. run gives back how many outputs have been written in full.
#include "library.h"

#include <algorithm>

#include "engine.h"
#include "gpu/sim/simulator.h"
#include "layouts.h"
#include "mma_mutants.h"
#include "streams.h"

namespace weft::gpu::tests {
namespace {

using sim::Allocation;

int64_t run(std::string name, std::vector<Tensor> inputs, std::vector<Tensor> inouts,
            std::vector<Tensor> outputs, std::vector<int64_t> numbers) {
  std::vector<Allocation> allocations;
  const auto allow = [&](const std::vector<Tensor>& tensors, Allocation::Rights rights,
                         Allocation::Contents contents) {
    for (const Tensor& t : tensors)
      allocations.emplace_back(t.const_data_ptr(), t.numel() * t.element_size(), rights, contents);
  };
  allow(inputs, Allocation::Rights::read, Allocation::Contents::initialised);
  allow(inouts, Allocation::Rights::read_write, Allocation::Contents::initialised);
  allow(outputs, Allocation::Rights::read_write, Allocation::Contents::poison);
  find_case(name)(
      {arrays_of(inputs), arrays_of(inouts), arrays_of(outputs), std::move(numbers), nullptr});
  return std::count_if(allocations.end() - static_cast<std::ptrdiff_t>(outputs.size()),
                       allocations.end(), [](const Allocation& a) { return a.written(); });
}

void configure(int64_t seed, bool late_completion, bool check_races, int64_t multiprocessors) {
  sim::options() = {static_cast<uint64_t>(seed), late_completion, check_races,
                    static_cast<uint32_t>(multiprocessors)};
}

}  // namespace
}  // namespace weft::gpu::tests

STABLE_TORCH_LIBRARY(weft_gpu_tests, m) {
  m.def(
      "run(str name, Tensor[] inputs, Tensor(a!)[] inouts, Tensor(b!)[] outputs, int[] numbers) -> "
      "int written");
  m.def("configure(int seed, bool late_completion, bool check_races, int multiprocessors) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(weft_gpu_tests, CPU, m) {
  m.impl("run", TORCH_BOX(&weft::gpu::tests::run));
}

STABLE_TORCH_LIBRARY_IMPL(weft_gpu_tests, CompositeExplicitAutograd, m) {
  m.impl("configure", TORCH_BOX(&weft::gpu::tests::configure));
}
