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
    input(p.dropout.state, DType::i64, 2);
  }

  // q, or what has its rows; k and v.
  void queries(const attention::Heads& t, int64_t elements) {
    input(t.data, t.dtype, queries_span(t, elements));
  }
  void keys(const attention::Heads& t, int64_t elements, bool grow = false) {
    (this->*(grow ? &Memory::update : &Memory::input))(t.data, t.dtype,
                                                       keys_span(t.batch, t.row, t.head, elements));
  }
  void key_scales(const attention::Vectors& t, bool grow) {
    (this->*(grow && t.row != 0 ? &Memory::update : &Memory::input))(
        t.data, DType::f32, keys_span(t.batch, t.row, t.head, 1));
  }
  void fresh(const attention::Fresh& t) {
    for (const auto& [rows, elements] : {std::pair{&t.k, p_.D}, std::pair{&t.v, p_.Dv}})
      input(rows->data, rows->dtype,
            (p_.B - 1) * rows->batch + (p_.sequences.new_k - 1) * rows->row +
                (p_.K - 1) * rows->head + elements);
    for (const void* table : {t.turn.cos, t.turn.sin})
      input(table, t.turn.table_dtype, t.turn.rows * (t.turn.R / 2));
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
  void score_results(const attention::Scores& t) {
    const attention::Sequences& s = p_.sequences;
    const int64_t count = span(t, p_.B, p_.H, p_.S, p_.T);
    if (s.cu_q || s.cu_k || s.used_q || s.used_k)
      update(t.data, t.dtype, count);
    else
      output(t.data, t.dtype, count);
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
  // All rows, as tensor copies bring the neighbours of what they are for; of a paged cache, those of
  // the pages that any sequence reaches.
  int64_t keys_span(int64_t batch, int64_t row, int64_t head, int64_t elements) const {
    const attention::Sequences& s = p_.sequences;
    const int64_t rows = s.cu_k ? p_.total_k : p_.T, last = (p_.K - 1) * head + elements;
    int64_t most = 0;
    for (int64_t b = 0; b < p_.B; ++b) {
      const auto e = p_.extent(b);
      if (!s.block_table) {
        if (rows > 0) most = std::max(most, e.k_batch * batch + (rows - 1) * row + last);
        continue;
      }
      const int64_t end = std::min(e.k_row + e.T, s.table_stride * s.page_size);
      int64_t at = std::max<int64_t>(0, e.k_row);
      if (s.new_k > 0) at = std::clamp<int64_t>(s.used_k[b], 0, at);  // leftpad may hide new rows
      for (; at < end; ++at) {
        const int64_t page = s.block_table[b * s.table_stride + at / s.page_size];
        if (page < p_.caches) most = std::max(most, page * batch + (s.page_size - 1) * row + last);
      }
    }
    return most;
  }

  const attention::Problem& p_;
};

struct SimulatorAttention : simulator::Backend {
  static constexpr bool reads_indices = true;
  static attention::cuda::Device device() {
    return {simulator::limits(), nullptr, /*prefer_sm90=*/true};
  }
  static int64_t workspace_bytes(const attention::Forward& p) {
    return attention::cuda::workspace_bytes(p, device());
  }
  static int64_t workspace_bytes(const attention::Backward& p) {
    return attention::cuda::workspace_bytes(p, simulator::limits());
  }

  static bool takes_fresh(const attention::Forward& p) {
    return attention::cuda::takes_fresh(p, device());
  }
  static void forward(const attention::Forward& p) {
    AttentionMemory memory(p);
    memory.queries(p.q, p.D);
    const bool grows = static_cast<bool>(p.fresh);
    memory.keys(p.k, p.D, grows);
    memory.keys(p.v, p.Dv, grows);
    memory.key_scales(p.k_scale, grows);
    memory.key_scales(p.v_scale, grows);
    if (grows) memory.fresh(p.fresh);
    memory.input(p.out_shift, DType::f32, p.H * p.Dv);
    memory.input(p.out_smooth, DType::f32, p.H * p.Dv);
    memory.input(p.out_scale, DType::f32, 1);
    memory.results_of_queries(p.out, p.Dv);
    memory.row_results(p.lse);
    memory.workspace(p.workspace, workspace_bytes(p));
    attention::cuda::forward(p, device());
    memory.check_written();
  }

  static void backward(const attention::Backward& p) {
    AttentionMemory memory(p);
    memory.queries(p.q, p.D);
    memory.keys(p.k, p.D);
    memory.keys(p.v, p.Dv);
    memory.queries(p.out, p.Dv);
    memory.queries(p.dout, p.Dv);
    memory.row_inputs(p.lse);
    memory.row_inputs(p.dlse);
    memory.results_of_queries(p.dq, p.D);
    memory.results_of_keys(p.dk, p.D);
    memory.results_of_keys(p.dv, p.Dv);
    memory.score_results(p.dbias);
    memory.output(p.dsinks, DType::f32, p.H);
    memory.workspace(p.workspace, workspace_bytes(p));
    attention::cuda::backward(p, {simulator::limits()});
    memory.check_written();
  }

  static void append(const attention::Append& p) {
    simulator::Memory memory;
    const attention::Sequences& s = p.sequences;
    memory.input(p.cu_new, DType::i32, p.B + 1);
    memory.input(s.used_k, DType::i32, p.B);
    memory.input(s.cache_row, DType::i32, p.B);
    memory.input(s.block_table, DType::i32, p.B * s.table_stride);
    const int64_t batches = p.cu_new ? 1 : p.B;
    const auto new_rows = [&](const attention::Heads& t, int64_t elements) {
      if (batches == 0 || p.S == 0) return;
      memory.input(t.data, t.dtype,
                   (batches - 1) * t.batch + (p.S - 1) * t.row + (p.K - 1) * t.head + elements);
    };
    new_rows(p.k, p.D);
    new_rows(p.v, p.Dv);
    // The rows that the call is about, and no others.
    for (int64_t b = 0; b < p.B; ++b) {
      const int64_t used = s.used_k ? s.used_k[b] : 0,
                    count = p.cu_new ? p.cu_new[b + 1] - p.cu_new[b] : p.S;
      for (int64_t row = std::max<int64_t>(used, 0); row < std::min(used + count, p.T); ++row) {
        int64_t batch = s.cache_row ? s.cache_row[b] : b, at = row;
        if (s.block_table) {
          batch = s.block_table[b * s.table_stride + row / s.page_size];
          at = row % s.page_size;
        }
        for (int64_t k = 0; k < p.K && batch >= 0 && batch < p.caches; ++k) {
          const auto scale = [&](const attention::Vectors& t) {
            if (t) memory.update(&t.at(batch, at, k), DType::f32, 1);
          };
          memory.output(p.k_cache.at(batch, at, k), p.k_cache.dtype, p.D);
          memory.output(p.v_cache.at(batch, at, k), p.v_cache.dtype, p.Dv);
          scale(p.k_scale);
          scale(p.v_scale);
        }
      }
    }
    attention::cuda::append(p, {simulator::limits()});
    memory.check_written();
  }

  static void rotary(const attention::Rotary& p) {
    simulator::Memory memory;
    memory.input(p.cu_seqlens, DType::i32, p.B + 1);
    memory.input(p.offsets, DType::i32, p.B);
    memory.input(p.cos, p.table_dtype, p.rows * (p.R / 2));
    memory.input(p.sin, p.table_dtype, p.rows * (p.R / 2));
    const int64_t batches = p.cu_seqlens ? 1 : p.B, rows = p.cu_seqlens ? p.total : p.S;
    const auto span = [&](const attention::Heads& t) {
      if (batches == 0 || rows == 0 || p.H == 0) return int64_t{0};
      return (batches - 1) * t.batch + (rows - 1) * t.row + (p.H - 1) * t.head + p.D;
    };
    if (p.out.data != p.x.data) memory.input(p.x.data, p.x.dtype, span(p.x));
    if (p.out.data != p.x.data && !p.cu_seqlens)
      memory.output(p.out.data, p.out.dtype, span(p.out));
    else
      memory.update(p.out.data, p.out.dtype, span(p.out));
    attention::cuda::rotary(p, {simulator::limits()});
    memory.check_written();
  }

  static void merge(const attention::Merge& p) {
    simulator::Memory memory;
    if (p.B > 0 && p.S > 0 && p.H > 0) {
      memory.input(p.parts.data, p.parts.dtype,
                   (p.P - 1) * p.part + (p.B - 1) * p.parts.batch + (p.S - 1) * p.parts.row +
                       (p.H - 1) * p.parts.head + p.Dv);
      memory.input(p.lse, DType::f32,
                   (p.P - 1) * p.lse_part + (p.B - 1) * p.lse_batch + (p.H - 1) * p.lse_head +
                       (p.S - 1) * p.lse_row + 1);
    }
    memory.output(p.out.data, p.out.dtype, p.B * p.S * p.H * p.Dv);
    memory.output(p.lse_out, DType::f32, p.B * p.H * p.S);
    attention::cuda::merge(p, {simulator::limits()});
    memory.check_written();
  }
};

// What a GPU does with index tensors that a host that sees them would refuse.
struct UncheckedSimulatorAttention : SimulatorAttention {
  static constexpr bool reads_indices = false;
};

}  // namespace weft
