// The INT8 family in the simulator.
#pragma once

#include <algorithm>

#include "int8/cuda/int8.h"
#include "library_int8.h"
#include "library_simulator.h"

namespace weft {

class Int8Memory : public simulator::Memory {
 public:
  // Rows that lie apart are one tensor, which holds them all.
  void rows(const Rows& rows, int64_t count, int64_t elements) {
    if (!rows || count == 0) return;
    int64_t most = 0;
    for (int64_t n = 0; n < count; ++n)
      most = std::max<int64_t>(most, rows.row(n) - static_cast<char*>(rows.data));
    input(rows.data, rows.dtype, most / static_cast<int64_t>(size_of(rows.dtype)) + elements);
  }
  void group_values(const int8::GroupValues& v, int64_t N, int64_t groups) {
    input(v.data, DType::f32, (N - 1) * v.column + (groups - 1) * v.group + 1);
  }
  void smoothing(const int8::Smoothing& s, int64_t C) {
    input(s.shift, DType::f32, C);
    input(s.smooth, DType::f32, C);
  }
  void packed(const void* data, int64_t N, int64_t K, int bits) {
    input(data, DType::u8, int8::cuda::packed_bytes(N, K, bits));
  }
};

struct SimulatorInt8 : simulator::Backend {
  static constexpr bool reads_values = false;  // as on a GPU
  static constexpr int64_t packed_alignment = 16;
  template <class Params>
  static int64_t workspace_bytes(const Params& p) {
    return int8::cuda::workspace_bytes(p, simulator::limits());
  }
  static int8::cuda::Device device() { return {simulator::limits()}; }

  static void quantize(const int8::Quantize& p) {
    Int8Memory memory;
    memory.rows(p.x, p.N, p.activation == int8::Activation::silu_mul ? 2 * p.C : p.C);
    memory.smoothing(p.smoothing, p.C);
    const auto scales = [&](const void* data, DType dtype) {
      p.dynamic ? memory.output(data, dtype, p.scales) : memory.input(data, dtype, p.scales);
    };
    scales(p.scale, DType::f32);
    scales(p.zero_point, DType::i32);
    memory.output(p.q, DType::i8, p.N * p.C);
    memory.workspace(p.workspace, workspace_bytes(p));
    int8::cuda::quantize(p, device());
    memory.check_written();
  }

  static void dequantize(const int8::Dequantize& p) {
    Int8Memory memory;
    const int64_t scales = p.grid.at(p.N - 1, p.C - 1) + 1;
    memory.rows(p.q, p.N, p.C);
    memory.input(p.scale, DType::f32, scales);
    memory.input(p.zero_point, DType::i32, scales);
    memory.output(p.x, p.dtype, p.N * p.C);
    int8::cuda::dequantize(p, device());
    memory.check_written();
  }

  static void linear(const int8::Linear& p) {
    Int8Memory memory;
    const int64_t groups = p.K / p.group, x_scales = p.x_scale_row ? p.M : 1;
    memory.rows(p.x, p.M, p.K);
    memory.smoothing(p.smoothing, p.K);
    memory.input(p.x_scale, DType::f32, x_scales);
    memory.input(p.x_zero_point, DType::i32, x_scales);
    memory.packed(p.packed, p.N, p.K, p.bits);
    memory.group_values(p.weight_scale, p.N, groups);
    if (p.weight_zero_point) memory.group_values(p.weight_zero_point, p.N, groups);
    memory.input(p.bias, p.bias_dtype, p.N);
    memory.rows(p.residual, p.M, p.N);
    memory.input(p.out_scale, DType::f32, 1);
    memory.output(p.out, p.out_dtype, p.M * p.N);
    memory.workspace(p.workspace, workspace_bytes(p));
    int8::cuda::linear(p, device());
    memory.check_written();
  }

  static int64_t packed_bytes(int64_t N, int64_t K, int bits) {
    return int8::cuda::packed_bytes(N, K, bits);
  }
  static int8::PackedHeader packed_header(int64_t N, int64_t K, int bits) {
    return int8::cuda::packed_header(N, K, bits);
  }

  static void pack(const int8::Pack& p) {
    Int8Memory memory;
    memory.input(p.weight, DType::i8, (p.N - 1) * p.row + (p.K - 1) * p.column + 1);
    memory.output(p.packed, DType::u8, packed_bytes(p.N, p.K, p.bits));
    int8::cuda::pack(p, device());
    memory.check_written();
  }
  static void unpack(const int8::Unpack& p) {
    Int8Memory memory;
    memory.packed(p.packed, p.N, p.K, p.bits);
    memory.output(p.weight, DType::i8, p.N * p.K);
    int8::cuda::unpack(p, device());
    memory.check_written();
  }
};

}  // namespace weft
