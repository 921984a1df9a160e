// Launches the kernels of kernels.h.
#include "comm/cuda/kernels.h"

#include "comm/cuda/communicator.h"

namespace weft::comm::cuda {
namespace {

// Can everything be moved 16 bytes at a time, the parts of x and y included?
bool is_vector(const Collective& c, int64_t size) {
  const auto bits = reinterpret_cast<uintptr_t>(c.x) | reinterpret_cast<uintptr_t>(c.y);
  const bool parts = c.kind == Kind::reduce_scatter || c.kind == Kind::all_gather;
  return (bits | static_cast<uintptr_t>(parts ? c.n * size : 0)) % kVectorBytes == 0;
}

template <class T>
void launch_reduction(const Plan& plan, const LaunchConfig& config, const Call& call) {
  if (call.c.kind == Kind::all_reduce_int8)
    launch<int8_kernel<T>>(config, call);
  else if (call.c.kind == Kind::reduce_scatter)
    launch<reduce_scatter_kernel<T>>(config, call);
  else if (plan.algorithm == Algorithm::multicast)
    launch<multicast_kernel<T>>(config, call);
  else if (plan.algorithm == Algorithm::two_shot)
    launch<two_shot_kernel<T>>(config, call);
  else
    launch<one_shot_kernel<T>>(config, call);
}

// In words as large as the size of everything allows.
template <class T>
bool launch_gather(const LaunchConfig& config, Call call, int64_t size) {
  const auto bits = reinterpret_cast<uintptr_t>(call.c.x) | reinterpret_cast<uintptr_t>(call.c.y) |
                    static_cast<uintptr_t>(call.c.n * size);
  constexpr int64_t word = sizeof(T);
  if (bits % word != 0) return false;
  call.c.n = call.c.n * size / word;
  call.piece = call.piece * size / word;
  launch<all_gather_kernel<T>>(config, call);
  return true;
}

}  // namespace

void launch_collective(const Collective& c, const Group& group, const Plan& plan, Stream stream) {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype));
  const Call call{c, group, c.signature(), plan.piece, is_vector(c, size)};
  const LaunchConfig config{.grid = {plan.blocks}, .block = plan.threads, .stream = stream};
  if (c.kind == Kind::all_gather) {
    launch_gather<uint32_t>(config, call, size) || launch_gather<uint16_t>(config, call, size) ||
        launch_gather<uint8_t>(config, call, size);
  } else if (c.dtype == DType::bf16) {
    launch_reduction<bf16>(plan, config, call);
  } else if (c.dtype == DType::f16) {
    launch_reduction<f16>(plan, config, call);
  } else {
    launch_reduction<float>(plan, config, call);
  }
}

}  // namespace weft::comm::cuda
