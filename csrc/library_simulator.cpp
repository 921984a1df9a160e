// The CUDA kernels behind the ops of weft, on CPU tensors: torch.ops.weft_simulator.*, for tests; and,
// as a GPU has them, without a look into index tensors: torch.ops.weft_simulator_unchecked.*.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "library_simulator_attention.h"
#include "library_simulator_norm.h"
#include "norm/cuda/plan.h"

namespace weft {
namespace {

void configure(int64_t seed, bool late_completion, bool clusters) {
  gpu::sim::options() = {static_cast<uint64_t>(seed), late_completion, /*check_races=*/true};
  simulator::limits() =
      clusters ? gpu::Limits{4, 227 << 10, true, true} : gpu::Limits{4, 163 << 10};
}

// Who works on rows of a width, with up to `most` columns a thread in registers.
std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> geometry(int64_t C, int64_t most) {
  const norm::cuda::Geometry g =
      norm::cuda::geometry(C, static_cast<int>(most), simulator::limits());
  return {g.lanes, g.threads, g.rows, g.split, g.span};
}

}  // namespace
}  // namespace weft

STABLE_TORCH_LIBRARY(weft_simulator, m) {
  weft::norm::define_ops(m);
  weft::attention::define_ops(m);
  m.def("configure(int seed, bool late_completion, bool clusters) -> ()");
  m.def(
      "geometry(int columns, int most) -> (int lanes, int threads, int rows, int split, int span)");
}

STABLE_TORCH_LIBRARY_IMPL(weft_simulator, CPU, m) {
  weft::norm::implement_ops<weft::SimulatorNorm>(m);
  weft::attention::implement_ops<weft::SimulatorAttention>(m);
}

STABLE_TORCH_LIBRARY(weft_simulator_unchecked, m) { weft::attention::define_ops(m); }

STABLE_TORCH_LIBRARY_IMPL(weft_simulator_unchecked, CPU, m) {
  weft::attention::implement_ops<weft::UncheckedSimulatorAttention>(m);
}

STABLE_TORCH_LIBRARY_IMPL(weft_simulator, CompositeExplicitAutograd, m) {
  m.impl("configure", TORCH_BOX(&weft::configure));
  m.impl("geometry", TORCH_BOX(&weft::geometry));
}
