// The norm family in the simulator.
#pragma once

#include "library_norm.h"
#include "library_simulator.h"
#include "norm/cuda/norm.h"

namespace weft {

class NormMemory : simulator::Memory {
 public:
  NormMemory(int64_t N, int64_t C) : N_(N), C_(C) {}

  void input(const Rows& rows) {
    each(rows, [&](const void* data, int64_t n) { Memory::input(data, rows.dtype, n); });
  }
  void input(const norm::Channels& c) { Memory::input(c.data, c.dtype, c.heads * C_); }
  void input(const norm::PerRow& v) { Memory::input(v.data, v.dtype, N_); }
  void input(const float* scale) { Memory::input(scale, DType::f32, 1); }
  void input(const Dropout& dropout) { Memory::input(dropout.state, DType::i64, 2); }
  void output(const Rows& rows) {
    each(rows, [&](const void* data, int64_t n) { Memory::output(data, rows.dtype, n); });
  }
  void output(const norm::Channels& c) { Memory::output(c.data, c.dtype, c.heads * C_); }
  void output(const norm::PerRow& v) { Memory::output(v.data, v.dtype, N_); }
  using Memory::output;
  using Memory::workspace;

  // Rows without channels have nothing to write, statistics included.
  void check_written() const {
    if (C_ > 0) Memory::check_written();
  }

 private:
  // Rows that lie apart are allocations of their own, so that what is between them is no one's.
  template <class F>
  void each(const Rows& rows, const F& add) {
    if (!rows || N_ == 0) return;
    constexpr int64_t kManyRows = 64;
    if (rows.ndim == 1 && (rows.stride[0] == C_ || N_ > kManyRows)) {
      add(rows.data, (N_ - 1) * rows.stride[0] + C_);
    } else {
      for (int64_t n = 0; n < N_; ++n) add(rows.row(n), C_);
    }
  }

  int64_t N_, C_;
};

struct SimulatorNorm : simulator::Backend {
  static int64_t workspace_bytes(const norm::Forward&) { return 0; }
  static int64_t workspace_bytes(const norm::Backward& p) {
    return norm::cuda::workspace_bytes(p, simulator::limits());
  }

  static void forward(const norm::Forward& p) {
    NormMemory memory(p.N, p.C);
    describe(p, memory);
    norm::cuda::forward(p, {simulator::limits()});
    memory.check_written();
  }

  static void describe(const norm::Forward& p, NormMemory& memory) {
    for (const Rows* rows : {&p.x, &p.residual, &p.residual2, &p.x1}) memory.input(*rows);
    for (const norm::Channels* c : {&p.x_bias, &p.layerscale, &p.weight, &p.bias, &p.weight1,
                                    &p.bias1, &p.int8.shift, &p.int8.smooth})
      memory.input(*c);
    memory.input(p.rowscale);
    memory.input(p.int8.scale);
    memory.input(p.dropout);
    for (const Rows* rows : {&p.y, &p.y1, &p.residual_out, &p.mask, &p.mask1, &p.int8.q})
      memory.output(*rows);
    memory.output(p.mean);
    memory.output(p.rstd);
    memory.output(p.int8.scale_out, DType::f32, p.N);
    memory.output(p.int8.zero_point_out, DType::i32, p.N);
  }

  static void backward(const norm::Backward& p) {
    NormMemory memory(p.N, p.C);
    for (const Rows* rows : {&p.dy, &p.dy1, &p.dresidual_out, &p.saved, &p.x}) memory.input(*rows);
    for (const norm::Channels* c : {&p.weight, &p.bias, &p.weight1, &p.x_bias, &p.layerscale})
      if (c->data) memory.input(*c);
    for (const norm::PerRow* v : {&p.mean, &p.rstd, &p.rowscale}) memory.input(*v);
    memory.input(p.dropout);
    for (const Rows* rows : {&p.dx, &p.dx1, &p.dresidual, &p.dresidual2}) memory.output(*rows);
    for (const norm::Channels* c :
         {&p.dweight, &p.dbias, &p.dweight1, &p.dbias1, &p.dx_bias, &p.dlayerscale})
      memory.output(*c);
    memory.workspace(p.workspace, workspace_bytes(p));
    norm::cuda::backward(p, {simulator::limits()});
    memory.check_written();
  }

  static void dropout_mask(const Dropout& dropout, int64_t count, int stream, bool* mask) {
    NormMemory memory(1, count);
    memory.input(dropout);
    memory.output(mask, DType::boolean, count);
    norm::cuda::dropout_mask(dropout, count, stream, mask, {simulator::limits()});
    memory.check_written();
  }
};

}  // namespace weft
