// Launches the kernels of backward_sm90.h.
#include "attention/cuda/backward_sm90.h"

#include "attention/cuda/launch.h"

namespace weft::attention::cuda {
namespace {

template <class T, class Shape>
void launch_shape(const BackwardCall& call, gpu::Stream stream) {
  const Backward& p = call.p;
  using M = BackwardTilesSm90<T, Shape>;
  const M smem;
  const Sequences& s = p.sequences;
  const int64_t q_rows = s.cu_q ? p.total_q : p.S, q_batch = s.cu_q ? 1 : p.B;
  const int64_t k_rows = s.cu_k ? p.total_k : p.T, k_batch = s.cu_k ? 1 : p.B;
  launch<backward_sm90_kernel<T, Shape>>(
      {.grid = {call.sm90.schedule.tiles},
       .block = Shape::kThreads,
       .shared_bytes = smem.layout.bytes(),
       .stream = stream},
      map_of(p.q, p.D, q_rows, p.H, q_batch, M::Queries::kRows),
      map_of(p.k, p.D, k_rows, p.K, k_batch, M::Keys::kRows),
      map_of(p.v, p.Dv, k_rows, p.K, k_batch, M::Keys::kRows),
      map_of(p.dout, p.Dv, q_rows, p.H, q_batch, M::Queries::kRows), call);
  constexpr uint32_t kPieceBytes = Shape::kPiece * sizeof(T);
  launch<backward_finish_kernel<T, static_cast<int>(Shape::kD)>>(
      {.grid = {grid_size(2 * p.B * p.H * call.sm90.longest)},
       .block = kWarpgroup,
       .shared_bytes = kPieceBytes,
       .stream = stream},
      call);
}

template <class T, bool kOptions>
void launch_options(const BackwardCall& call, gpu::Stream stream) {
  if (call.sm90.D == 64)
    launch_shape<T, BackwardShape<64, kOptions>>(call, stream);
  else
    launch_shape<T, BackwardShape<128, kOptions>>(call, stream);
}

template <class T>
void launch_type(const BackwardCall& call, gpu::Stream stream) {
  if (call.sm90.options)
    launch_options<T, true>(call, stream);
  else
    launch_options<T, false>(call, stream);
}

}  // namespace

void backward_sm90(const BackwardCall& call, gpu::Stream stream) {
  if (call.p.q.dtype == DType::bf16)
    launch_type<bf16>(call, stream);
  else
    launch_type<f16>(call, stream);
}

}  // namespace weft::attention::cuda
