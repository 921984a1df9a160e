// The attention family in the simulator.
#pragma once

#include <algorithm>

#include "attention/cuda/attention.h"
#include "library_attention.h"
#include "library_simulator.h"

namespace weft {

class AttentionMemory : public simulator::Memory {
 public:
  explicit AttentionMemory(const attention::Problem& p) : p_(p) {
    const attention::Sequences& s = p.sequences;
    index(s.cu_q, p.B + 1);
    index(s.cu_k, p.B + 1);
    for (const int32_t* t : {s.used_q, s.used_k, s.leftpad, s.cache_row}) index(t, p.B);
    index(s.block_table, p.B * s.table_stride);
    for (const attention::Scores* t : {&p.bias, &p.mask})
      input(t->data, t->dtype, span(*t, p.B, p.H, p.S, p.T));
    for (const attention::Vectors* t : {&p.alibi, &p.sinks})
      input(t->data, DType::f32, (p.B - 1) * t->batch + (p.H - 1) * t->head + 1);
  }

  // q, or what has its rows; k and v.
  void queries(const attention::Heads& t, int64_t elements) {
    input(t.data, t.dtype, queries_span(t, elements));
  }
  void keys(const attention::Heads& t, int64_t elements) {
    input(t.data, t.dtype, keys_span(t.batch, t.row, t.head, elements));
  }
  void key_scales(const attention::Vectors& t) {
    input(t.data, DType::f32, keys_span(t.batch, t.row, t.head, 1));
  }
  // Results by query, which are written unless no sequence reaches them, then by key.
  void results_of_queries(const attention::Heads& t, int64_t elements) {
    result(t.data, t.dtype, queries_span(t, elements), p_.sequences.cu_q, p_.sequences.used_q);
  }
  void results_of_keys(const attention::Heads& t, int64_t elements) {
    result(t.data, t.dtype, keys_span(t.batch, t.row, t.head, elements), p_.sequences.cu_k,
           p_.sequences.used_k);
  }
  // [B, H, S], packed [H, total_q].
  void row_results(const void* data) {
    result(data, DType::f32, rows(), p_.sequences.cu_q, p_.sequences.used_q);
  }
  void row_inputs(const void* data) { input(data, DType::f32, rows()); }

  static int64_t span(const attention::Scores& t, int64_t B, int64_t H, int64_t S, int64_t T) {
    if (B == 0 || H == 0 || S == 0 || T == 0) return 0;
    return (B - 1) * t.batch + (H - 1) * t.head + (S - 1) * t.row + (T - 1) * t.column + 1;
  }

 private:
  void index(const int32_t* t, int64_t count) { input(t, DType::i32, count); }
  void result(const void* data, DType dtype, int64_t count, const int32_t* cu,
              const int32_t* used) {
    if (cu || used)
      update(data, dtype, count);
    else
      output(data, dtype, count);
  }
  int64_t rows() const { return p_.H * (p_.sequences.cu_q ? p_.total_q : p_.B * p_.S); }
  int64_t queries_span(const attention::Heads& t, int64_t elements) const {
    const bool packed = p_.sequences.cu_q;
    const int64_t batches = packed ? 1 : p_.B, rows = packed ? p_.total_q : p_.S;
    if (batches == 0 || rows == 0) return 0;
    return (batches - 1) * t.batch + (rows - 1) * t.row + (p_.H - 1) * t.head + elements;
  }
  // As far as any sequence reaches.
  int64_t keys_span(int64_t batch, int64_t row, int64_t head, int64_t elements) const {
    const attention::Sequences& s = p_.sequences;
    int64_t most = 0;
    for (int64_t b = 0; b < p_.B; ++b) {
      const auto e = p_.extent(b);
      for (int64_t t = 0; t < e.T; t += s.block_table ? 1 : std::max<int64_t>(e.T - 1, 1)) {
        int64_t in = e.k_batch, at = e.k_row + t;
        if (s.block_table) {
          in = s.block_table[b * s.table_stride + at / s.page_size];
          at %= s.page_size;
        }
        most = std::max(most, in * batch + at * row + (p_.K - 1) * head + elements);
      }
    }
    return most;
  }

  const attention::Problem& p_;
};

struct SimulatorAttention : simulator::Backend {
  static constexpr bool reads_indices = true;
  static int64_t workspace_bytes(const attention::Forward& p) {
    return attention::cuda::workspace_bytes(p, simulator::limits());
  }

  static void forward(const attention::Forward& p) {
    AttentionMemory memory(p);
    memory.queries(p.q, p.D);
    memory.keys(p.k, p.D);
    memory.keys(p.v, p.Dv);
    memory.key_scales(p.k_scale);
    memory.key_scales(p.v_scale);
    memory.input(p.out_shift, DType::f32, p.H * p.Dv);
    memory.input(p.out_smooth, DType::f32, p.H * p.Dv);
    memory.input(p.out_scale, DType::f32, 1);
    memory.results_of_queries(p.out, p.Dv);
    memory.row_results(p.lse);
    memory.workspace(p.workspace, workspace_bytes(p));
    attention::cuda::forward(p, {simulator::limits()});
    memory.check_written();
  }
};

}  // namespace weft
