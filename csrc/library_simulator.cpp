// The CUDA kernels behind the ops of weft, on CPU tensors: torch.ops.weft_simulator.*, for tests.

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "gpu/sim/simulator.h"
#include "library_norm.h"
#include "norm/cuda/norm.h"
#include "norm/cuda/plan.h"

namespace weft {
namespace {

namespace sim = gpu::sim;

// Small, so that persistent blocks take several rows; with clusters as sm_90 or without as sm_80.
gpu::Limits& limits() {
  static gpu::Limits instance = {4, 227 << 10, true};
  return instance;
}

// What a call may touch: every tensor, in its own bounds and rights.
class Memory {
 public:
  Memory(int64_t N, int64_t C) : N_(N), C_(C) {}

  void input(const norm::Rows& rows) { add(rows, kRead); }
  void input(const norm::Channels& c) { add(c.data, c.dtype, c.heads * C_, kRead); }
  void input(const norm::PerRow& v) { add(v.data, v.dtype, N_, kRead); }
  void input(const float* scale) { add(scale, DType::f32, 1, kRead); }
  void output(const norm::Rows& rows) { add(rows, kWrite); }
  void output(const norm::Channels& c) { add(c.data, c.dtype, c.heads * C_, kWrite); }
  void output(const norm::PerRow& v) { add(v.data, v.dtype, N_, kWrite); }
  void output(const void* data, DType dtype, int64_t count) { add(data, dtype, count, kWrite); }

  // Has all been written that was to be? Rows without channels have nothing, statistics included.
  void check_written() const {
    if (C_ == 0) return;
    for (const sim::Allocation& output : outputs_)
      check(output.written(), "simulator: the kernel has left parts of a result unwritten");
  }

 private:
  static constexpr auto kRead = sim::Allocation::Rights::read,
                        kWrite = sim::Allocation::Rights::read_write;

  // Rows that lie apart are allocations of their own, so that what is between them is no one's.
  void add(const norm::Rows& rows, sim::Allocation::Rights rights) {
    if (!rows || N_ == 0) return;
    constexpr int64_t kManyRows = 64;
    if (rows.ndim == 1 && (rows.stride[0] == C_ || N_ > kManyRows)) {
      add(rows.data, rows.dtype, (N_ - 1) * rows.stride[0] + C_, rights);
    } else {
      for (int64_t n = 0; n < N_; ++n) add(rows.row(n), rows.dtype, C_, rights);
    }
  }
  void add(const void* data, DType dtype, int64_t count, sim::Allocation::Rights rights) {
    if (!data || count == 0) return;
    const bool reads = rights == kRead;
    auto& list = reads ? inputs_ : outputs_;
    list.emplace_back(
        data, static_cast<size_t>(count) * size_of(dtype), rights,
        reads ? sim::Allocation::Contents::initialised : sim::Allocation::Contents::poison);
  }

  int64_t N_, C_;
  std::vector<sim::Allocation> inputs_, outputs_;
};

struct SimulatorNorm {
  static constexpr const char* name = "cpu";
  static constexpr const char* dtypes = "float32, bfloat16 or float16 (on CUDA)";
  static bool has(const Tensor& t) { return t.is_cpu(); }
  static bool has(const Tensor& t, const Tensor&) { return t.is_cpu(); }
  static bool takes(DType dtype) { return is_float(dtype) && dtype != DType::f64; }
  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  static void prepare(void*, int64_t) {}
  static int64_t workspace_bytes(const norm::Forward&) { return 0; }
  static int64_t workspace_bytes(const norm::Backward& p) {
    return norm::cuda::workspace_bytes(p, limits());
  }

  static void forward(const norm::Forward& p) {
    Memory memory(p.N, p.C);
    for (const norm::Rows* rows : {&p.x, &p.residual, &p.residual2, &p.x1}) memory.input(*rows);
    for (const norm::Channels* c : {&p.x_bias, &p.layerscale, &p.weight, &p.bias, &p.weight1,
                                    &p.bias1, &p.int8.shift, &p.int8.smooth})
      memory.input(*c);
    memory.input(p.rowscale);
    memory.input(p.int8.scale);
    for (const norm::Rows* rows : {&p.y, &p.y1, &p.residual_out, &p.mask, &p.mask1, &p.int8.q})
      memory.output(*rows);
    memory.output(p.mean);
    memory.output(p.rstd);
    memory.output(p.int8.scale_out, DType::f32, p.N);
    memory.output(p.int8.zero_point_out, DType::i32, p.N);
    norm::cuda::forward(p, {limits()});
    memory.check_written();
  }

  static void backward(const norm::Backward& p) {
    Memory memory(p.N, p.C);
    for (const norm::Rows* rows : {&p.dy, &p.dy1, &p.dresidual_out, &p.saved, &p.x})
      memory.input(*rows);
    for (const norm::Channels* c : {&p.weight, &p.bias, &p.weight1, &p.x_bias, &p.layerscale})
      if (c->data) memory.input(*c);
    for (const norm::PerRow* v : {&p.mean, &p.rstd, &p.rowscale}) memory.input(*v);
    for (const norm::Rows* rows : {&p.dx, &p.dx1, &p.dresidual, &p.dresidual2})
      memory.output(*rows);
    for (const norm::Channels* c :
         {&p.dweight, &p.dbias, &p.dweight1, &p.dbias1, &p.dx_bias, &p.dlayerscale})
      memory.output(*c);
    Memory workspace(p.N, p.C);  // may be used in part
    workspace.output(p.workspace, DType::u8, workspace_bytes(p));
    norm::cuda::backward(p, {limits()});
    memory.check_written();
  }

  static void dropout_mask(const Dropout& dropout, int64_t count, int stream, bool* mask) {
    Memory memory(1, count);
    memory.output(mask, DType::boolean, count);
    norm::cuda::dropout_mask(dropout, count, stream, mask, {limits()});
    memory.check_written();
  }
};

void configure(int64_t seed, bool late_completion, bool clusters) {
  sim::options() = {static_cast<uint64_t>(seed), late_completion, /*check_races=*/true};
  limits() = clusters ? gpu::Limits{4, 227 << 10, true} : gpu::Limits{4, 163 << 10, false};
}

// Who works on rows of a width, with up to `most` columns a thread in registers.
std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> geometry(int64_t C, int64_t most) {
  const norm::cuda::Geometry g = norm::cuda::geometry(C, static_cast<int>(most), limits());
  return {g.lanes, g.threads, g.rows, g.split, g.span};
}

}  // namespace
}  // namespace weft

STABLE_TORCH_LIBRARY(weft_simulator, m) {
  weft::norm::define_ops(m);
  m.def("configure(int seed, bool late_completion, bool clusters) -> ()");
  m.def(
      "geometry(int columns, int most) -> (int lanes, int threads, int rows, int split, int span)");
}

STABLE_TORCH_LIBRARY_IMPL(weft_simulator, CPU, m) {
  weft::norm::implement_ops<weft::SimulatorNorm>(m);
}

STABLE_TORCH_LIBRARY_IMPL(weft_simulator, CompositeExplicitAutograd, m) {
  m.impl("configure", TORCH_BOX(&weft::configure));
  m.impl("geometry", TORCH_BOX(&weft::geometry));
}
