// The attention family's ops: torch tensors in, checks, allocation, params out. Written once; a
// backend supplies
//
//   what torch/call.h asks for, with workspace_bytes(const Forward& | const Backward&)
//   static constexpr bool reads_indices;                the host sees what index tensors hold
//   static bool takes_fresh(const Forward&);           appends by itself what p.fresh says
//   static void forward(const Forward&), backward(const Backward&);
//   static void append(const Append&), rotary(const Rotary&), merge(const Merge&);
//
// All that is refused is refused here, so that a direct call of torch.ops.weft.* is memory-safe:
// index tensors by their values, too, where reads_indices, or where WEFT_CHECK=1 has them copied to
// the host.
//
// A kernel writes every row that a sequence reaches, and nothing else: what none reaches is cleared
// here.
#pragma once

#include <cmath>
#include <forward_list>
#include <optional>
#include <tuple>

#include "attention/params.h"
#include "torch/call.h"
#include "torch/dropout.h"

namespace weft::attention {

template <class Backend>
class Ops {
 public:
  // ---- attention_forward

  static std::tuple<Tensor, Tensor> forward(
      Tensor q, Tensor k, Tensor v, OptionalTensor bias, OptionalTensor mask,
      OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor cu_seqlens_q,
      OptionalTensor cu_seqlens_k, OptionalTensor seqused_q, OptionalTensor seqused_k,
      OptionalTensor rng_state, int64_t max_seqlen_q, int64_t max_seqlen_k, double softmax_scale,
      double softcap, int64_t window_left, int64_t window_right, bool top_left, double dropout_p,
      bool allow_tf32, OptionalTensor leftpad_k, OptionalTensor cache_batch_idx,
      OptionalTensor block_table, OptionalTensor k_scale, OptionalTensor v_scale,
      OptionalTensor out_shift, OptionalTensor out_smooth, OptionalTensor out_scale,
      int64_t num_splits) {
    Call call("attention_forward", q, "q");
    Forward p;
    call.dtypes(q, k, v, /*int8=*/true);
    call.geometry(p, q, k, v,
                  {cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k,
                   leftpad_k, cache_batch_idx, block_table});
    call.options(p, {bias, mask, alibi_slopes, sinks, rng_state, softmax_scale, softcap,
                     window_left, window_right, top_left, dropout_p, allow_tf32});
    p.q = call.heads(q, "q");
    p.k = call.heads(k, "k");
    p.v = call.heads(v, "v");
    p.k_scale = call.scales(k_scale, "k_scale", k, "k");
    p.v_scale = call.scales(v_scale, "v_scale", v, "v");
    call.check_splits(num_splits);
    p.num_splits = num_splits;
    p.out_shift = call.floats(out_shift, "out_shift", {p.H, p.Dv}, "H, Dv");
    p.out_smooth = call.floats(out_smooth, "out_smooth", {p.H, p.Dv}, "H, Dv");
    check(out_scale || (!out_shift && !out_smooth),
          "weft.attention_forward: out_shift and out_smooth need out_scale");
    if (out_scale)
      p.out_scale = call.floats(out_scale, "out_scale", sizes_of(*out_scale), "one element", 1);

    Tensor out = call.fresh(call.out_sizes(p), out_scale ? DType::i8 : p.q.dtype);
    Tensor lse = call.fresh(call.lse_sizes(p), acc_of(p.q.dtype));
    if (call.has_gaps(p.sequences.cu_q, p.sequences.used_q, p.B, p.total_q)) {
      torch::stable::zero_(out);
      torch::stable::fill_(lse, -INFINITY);
    }
    p.out = call.heads(out, "out");
    p.lse = lse.mutable_data_ptr();
    if (p.B > 0) call.run(p, Backend::forward);
    return {out, lse};
  }

  // ---- attention: forward without options and without lse, for inference and decoding. A small call
  // is spent on its arguments and its tensors: this one has few.

  static Tensor attention(Tensor q, Tensor k, Tensor v, OptionalTensor seqused_k,
                          std::optional<double> softmax_scale, int64_t window_left,
                          int64_t window_right, bool top_left, bool heads_first, bool allow_tf32) {
    Call call("attention", q, "q");
    Forward p;
    call.dtypes(q, k, v, /*int8=*/false);
    call.dense(p, q, k, v, heads_first);
    if (seqused_k) call.used_keys(p, seqused_k);
    call.windows(p, window_left, window_right, top_left);
    p.softmax_scale = softmax_scale.value_or(std::pow(static_cast<double>(p.D), -0.5));
    p.allow_tf32 = allow_tf32;
    // In memory always [B, S, H, Dv].
    const int64_t row = p.H * p.Dv;
    Tensor out = heads_first
                     ? call.fresh({p.B, p.H, p.S, p.Dv}, {p.S * row, p.Dv, row, 1}, p.q.dtype)
                     : call.fresh({p.B, p.S, p.H, p.Dv}, p.q.dtype);
    p.out = {out.mutable_data_ptr(), p.q.dtype, p.S * row, row, p.Dv};
    if (p.B > 0) call.run(p, Backend::forward);
    return out;
  }

  // ---- attention_with_kvcache_: append, rotary of k and q, and forward; in one kernel where the
  // backend has it.

  static std::tuple<Tensor, Tensor> with_kvcache_(
      Tensor q, Tensor k_cache, Tensor v_cache, OptionalTensor k_scale, OptionalTensor v_scale,
      Tensor k, Tensor v, Tensor seqused_k, OptionalTensor cos, OptionalTensor sin,
      bool interleaved, OptionalTensor alibi_slopes, OptionalTensor sinks, double softmax_scale,
      double softcap, int64_t window_left, int64_t window_right, bool allow_tf32,
      OptionalTensor leftpad_k, OptionalTensor cache_batch_idx, OptionalTensor block_table,
      int64_t num_splits) {
    Call call("attention_with_kvcache", q, "q");
    const OptionalTensor none, used = seqused_k;
    Forward p;
    call.dtypes(q, k_cache, v_cache, /*int8=*/true);
    call.check_dtype(k, "k", dtype_of(q), "q");
    call.check_dims(k, "k", 4, "[B, S, K, D]");
    p.sequences.new_k = k.size(1);
    call.geometry(p, q, k_cache, v_cache,
                  {none, none, none, used, 0, 0, leftpad_k, cache_batch_idx, block_table});
    call.options(p, {none, none, alibi_slopes, sinks, none, softmax_scale, softcap, window_left,
                     window_right, /*top_left=*/false, /*dropout_p=*/0, allow_tf32});
    call.check_splits(num_splits);
    p.num_splits = num_splits;
    p.q = call.heads(q, "q");
    p.k = call.written(k_cache, "k_cache");
    p.v = call.written(v_cache, "v_cache");
    p.k_scale = call.scales(k_scale, "k_scale", k_cache, "k_cache");
    p.v_scale = call.scales(v_scale, "v_scale", v_cache, "v_cache");

    Append a;
    call.cache(a, k_cache, v_cache, k, v);
    call.destination(a, k_cache, k, v, {none, used, cache_batch_idx, block_table});
    check(a.B == p.B, "weft.attention_with_kvcache: k has shape ", sizes_of(k),
          ", expected a first dimension of ", p.B, " (that of q)");
    a.k = call.heads(k, "k");
    a.v = call.heads(v, "v");
    a.k_cache = p.k, a.v_cache = p.v, a.k_scale = p.k_scale, a.v_scale = p.v_scale;

    // Where attention is causal, or has a window, queries stand where the new keys do, else all at the
    // first.
    Rotary turn_q, turn_k;
    check(cos.has_value() == sin.has_value(),
          "weft.attention_with_kvcache: cos and sin belong together");
    if (cos) {
      const int64_t step = window_left >= 0 || window_right >= 0;
      turn_q = call.rotary(q, *cos, *sin, used, 0, none, interleaved, false, step);
      turn_k = call.rotary(k, *cos, *sin, used, 0, none, interleaved, false);
    }

    Tensor out = call.fresh(call.out_sizes(p), p.q.dtype);
    Tensor lse = call.fresh(call.lse_sizes(p), acc_of(p.q.dtype));
    p.out = call.heads(out, "out");
    p.lse = lse.mutable_data_ptr();
    OptionalTensor turned_q, turned_k;
    if (p.sequences.new_k > 0 && Backend::takes_fresh(p)) {
      p.fresh = {a.k, a.v, turn_q};
    } else {
      const auto turn = [&](Rotary& r, Heads& x, OptionalTensor& turned, const Tensor& from) {
        if (!cos) return;
        turned = call.fresh(sizes_of(from), p.q.dtype);
        r.out = x = call.heads(*turned, "turned");
        Backend::rotary(r);
      };
      turn(turn_k, a.k, turned_k, k);
      turn(turn_q, p.q, turned_q, q);
      Backend::append(a);
    }
    if (p.B > 0) call.run(p, Backend::forward);
    return {out, lse};
  }

  // ---- attention_backward

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      Tensor dout, OptionalTensor dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
      OptionalTensor bias, OptionalTensor mask, OptionalTensor alibi_slopes, OptionalTensor sinks,
      OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, OptionalTensor seqused_q,
      OptionalTensor seqused_k, OptionalTensor rng_state, int64_t max_seqlen_q,
      int64_t max_seqlen_k, double softmax_scale, double softcap, int64_t window_left,
      int64_t window_right, bool top_left, double dropout_p, bool allow_tf32, bool bias_grad,
      bool sinks_grad) {
    Call call("attention_backward", q, "q");
    Backward p;
    call.dtypes(q, k, v, /*int8=*/false);
    call.geometry(
        p, q, k, v,
        {cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k, {}, {}, {}});
    call.options(p, {bias, mask, alibi_slopes, sinks, rng_state, softmax_scale, softcap,
                     window_left, window_right, top_left, dropout_p, allow_tf32});
    p.q = call.heads(q, "q");
    p.k = call.heads(k, "k");
    p.v = call.heads(v, "v");
    p.out = call.like_out(out, "out", p);
    p.dout = call.like_out(dout, "dout", p);
    p.lse = call.like_lse(lse, "lse", p);
    if (dlse) p.dlse = call.like_lse(*dlse, "dlse", p);
    check(bias || !bias_grad, "weft.attention_backward: the gradient of bias needs bias");
    check(sinks || !sinks_grad, "weft.attention_backward: the gradient of sinks needs sinks");

    const Sequences& s = p.sequences;
    Tensor dq = call.fresh(sizes_of(q), p.q.dtype);
    Tensor dk = call.fresh(sizes_of(k), p.k.dtype);
    Tensor dv = call.fresh(sizes_of(v), p.v.dtype);
    Tensor dbias = bias_grad ? call.fresh({p.B, p.H, p.S, p.T}, p.bias.dtype) : absent(q);
    Tensor dsinks = sinks_grad ? call.fresh({p.H}, DType::f32) : absent(q);
    if (call.has_gaps(s.cu_q, s.used_q, p.B, p.total_q)) torch::stable::zero_(dq);
    if (call.has_gaps(s.cu_k, s.used_k, p.B, p.total_k)) {
      torch::stable::zero_(dk);
      torch::stable::zero_(dv);
    }
    if (bias_grad && (s.cu_q || s.cu_k || s.used_q || s.used_k)) torch::stable::zero_(dbias);
    p.dq = call.heads(dq, "dq");
    p.dk = call.heads(dk, "dk");
    p.dv = call.heads(dv, "dv");
    if (bias_grad) p.dbias = call.scores(dbias);
    if (sinks_grad) p.dsinks = static_cast<float*>(dsinks.mutable_data_ptr());
    call.run(p, Backend::backward);
    return {dq, dk, dv, dbias, dsinks};
  }

  // ---- kv_cache_append_

  static void append_(Tensor k_cache, Tensor v_cache, OptionalTensor k_scale,
                      OptionalTensor v_scale, Tensor k, Tensor v, OptionalTensor seqused_k,
                      OptionalTensor cu_seqlens_new, OptionalTensor cache_batch_idx,
                      OptionalTensor block_table) {
    Call call("kv_cache_append", k_cache, "k_cache");
    Append p;
    call.cache(p, k_cache, v_cache, k, v);
    call.destination(p, k_cache, k, v, {cu_seqlens_new, seqused_k, cache_batch_idx, block_table});
    p.k = call.heads(k, "k");
    p.v = call.heads(v, "v");
    p.k_cache = call.written(k_cache, "k_cache");
    p.v_cache = call.written(v_cache, "v_cache");
    p.k_scale = call.scales(k_scale, "k_scale", k_cache, "k_cache");
    p.v_scale = call.scales(v_scale, "v_scale", v_cache, "v_cache");
    Backend::append(p);
  }

  // ---- rotary, rotary_

  static Tensor rotary(Tensor x, Tensor cos, Tensor sin, OptionalTensor offsets, int64_t offset,
                       OptionalTensor cu_seqlens, bool interleaved, bool conjugate) {
    Call call("rotary", x, "x");
    Rotary p = call.rotary(x, cos, sin, offsets, offset, cu_seqlens, interleaved, conjugate);
    Tensor out = call.fresh(sizes_of(x), p.x.dtype);
    if (call.has_gaps(p.cu_seqlens, nullptr, p.B, p.total)) torch::stable::copy_(out, x);
    p.out = call.heads(out, "out");
    Backend::rotary(p);
    return out;
  }

  static void rotary_(Tensor x, Tensor cos, Tensor sin, OptionalTensor offsets, int64_t offset,
                      OptionalTensor cu_seqlens, bool interleaved, bool conjugate) {
    Call call("rotary", x, "x");
    Rotary p = call.rotary(x, cos, sin, offsets, offset, cu_seqlens, interleaved, conjugate);
    p.out = call.written(x, "x");
    Backend::rotary(p);
  }

  // ---- merge_attention_states

  static std::tuple<Tensor, Tensor> merge(Tensor parts, Tensor lses) {
    Call call("merge_attention_states", parts, "parts");
    const Sizes sizes = sizes_of(parts);
    const int n = sizes.size();
    check(n == 4 || n == 5, "weft.", call.op, ": parts has shape ", sizes,
          ", expected [P, B, S, H, Dv] or [P, total_q, H, Dv]");
    Merge p;
    p.P = sizes[0];
    p.B = n == 5 ? sizes[1] : 1;
    p.S = sizes[n - 3];
    p.H = sizes[n - 2];
    p.Dv = sizes[n - 1];
    check(p.P >= 1, "weft.", call.op, ": parts has no part, expected at least one");
    call.check_head_size(p.Dv, "parts");
    const DType dtype = call.float_dtype(parts, "parts");
    const bool packed = n == 4;
    const Sizes rows = packed ? Sizes{p.H, p.S} : Sizes{p.B, p.H, p.S};
    call.check_tensor(lses, "lses", acc_of(dtype),
                      packed ? Sizes{p.P, p.H, p.S} : Sizes{p.P, p.B, p.H, p.S},
                      packed ? "P, H, total_q" : "P, B, H, S");

    call.check_last_stride(parts, "parts");
    const auto strides = parts.strides(), lse_strides = lses.strides();
    p.parts = {const_cast<void*>(parts.const_data_ptr()), dtype, packed ? 0 : strides[1],
               strides[n - 3], strides[n - 2]};
    p.part = strides[0];
    p.lse = lses.const_data_ptr();
    p.lse_part = lse_strides[0];
    p.lse_batch = packed ? 0 : lse_strides[1];
    p.lse_head = lse_strides[n - 3];
    p.lse_row = lse_strides[n - 2];

    Tensor out = call.fresh(Sizes(sizes.begin() + 1, sizes.end()), dtype);
    Tensor lse = call.fresh(rows, acc_of(dtype));
    p.out = call.heads(out, "out");
    p.lse_out = lse.mutable_data_ptr();
    Backend::merge(p);
    return {out, lse};
  }

 private:
  // Which rows of q, k and v belong to which sequence.
  struct Layout {
    const OptionalTensor &cu_seqlens_q, &cu_seqlens_k, &seqused_q, &seqused_k;
    int64_t max_seqlen_q, max_seqlen_k;
    const OptionalTensor &leftpad, &cache_batch_idx, &block_table;
  };
  struct Options {
    const OptionalTensor &bias, &mask, &alibi_slopes, &sinks, &rng_state;
    double softmax_scale, softcap;
    int64_t window_left, window_right;
    bool top_left;
    double dropout_p;
    bool allow_tf32;
  };
  // Where new rows go in a cache.
  struct Destination {
    const OptionalTensor &cu_seqlens, &seqused, &cache_batch_idx, &block_table;
  };

  class Call : public weft::Call<Backend> {
    using Base = weft::Call<Backend>;

   public:
    using Base::Base, Base::check_shape, Base::float_dtype, Base::op, Base::run;

    // ---- one tensor

    void check_tensor(const Tensor& t, const char* name, DType dtype, const Sizes& shape,
                      const char* what) const {
      check_device(t, name);
      check(dtype_of(t) == dtype && sizes_of(t) == shape, "weft.", op, ": ", name, " is ",
            name_of(dtype_of(t)), " ", sizes_of(t), ", expected ", name_of(dtype), " ", shape, " (",
            what, ")");
    }

    void check_dtype(const Tensor& t, const char* name, DType expected, const char* whose) const {
      check_device(t, name);
      check(dtype_of(t) == expected, "weft.", op, ": ", name, " has dtype ", name_of(dtype_of(t)),
            ", expected ", name_of(expected), " (that of ", whose, ")");
    }

    void check_dims(const Tensor& t, const char* name, int dims, const char* expected) const {
      check(t.dim() == dims, "weft.", op, ": ", name, " has shape ", sizes_of(t), ", expected ",
            expected);
    }

    void check_splits(int64_t num_splits) const {
      check(num_splits >= 0, "weft.", op, ": num_splits is ", num_splits,
            ", expected at least 0 (0: as many as are worth it)");
    }

    void check_head_size(int64_t size, const char* name) const {
      check(size >= 1 && size <= kMostElements, "weft.", op, ": the last dimension of ", name,
            " is ", size, ", expected 1 to ", kMostElements);
    }

    void check_last_stride(const Tensor& t, const char* name) const {
      const int last = static_cast<int>(t.dim()) - 1;
      check(t.size(last) <= 1 || t.stride(last) == 1, "weft.", op, ": ", name, " has stride ",
            t.stride(last), " in its last dimension, expected 1");
    }

    // [B, S, H, D], packed [rows, H, D], or pages.
    Heads heads(const Tensor& t, const char* name) const {
      check_last_stride(t, name);
      const auto strides = t.strides();
      const int n = static_cast<int>(t.dim());
      return {const_cast<void*>(t.const_data_ptr()), dtype_of(t), n == 4 ? strides[0] : 0,
              strides[n - 3], strides[n - 2]};
    }

    Heads written(const Tensor& t, const char* name) const {
      check_no_repeats(t, name, "so it cannot be written");
      return heads(t, name);
    }

    Scores scores(const Tensor& t) const {
      const auto strides = t.strides();
      return {const_cast<void*>(t.const_data_ptr()),
              dtype_of(t),
              strides[0],
              strides[1],
              strides[2],
              strides[3]};
    }

    const int32_t* index(const OptionalTensor& t, const char* name, const Sizes& shape,
                         const char* what) const {
      if (!t) return nullptr;
      check_tensor(*t, name, DType::i32, shape, what);
      check_contiguous(*t, name);
      const auto* data = static_cast<const int32_t*>(t->const_data_ptr());
      if constexpr (!Backend::reads_indices)
        if (is_checked()) copies_.push_front({data, t->numel(), on_host(*t)});
      return data;
    }

    const float* floats(const OptionalTensor& t, const char* name, const Sizes& shape,
                        const char* what, int64_t count = -1) const {
      if (!t) return nullptr;
      check_tensor(*t, name, DType::f32, shape, what);
      check(count < 0 || t->numel() == count, "weft.", op, ": ", name, " has shape ", sizes_of(*t),
            ", expected ", what);
      check_contiguous(*t, name);
      return static_cast<const float*>(t->const_data_ptr());
    }

    // Scales of an int8 cache: by head, or by row and head.
    Vectors scales(const OptionalTensor& t, const char* name, const Tensor& cache,
                   const char* cache_name) const {
      const bool int8 = dtype_of(cache) == DType::i8;
      check(t.has_value() == int8, "weft.", op, ": ", name,
            int8 ? " is missing, expected float32 scales, as " : " is given, but ", cache_name,
            " is ", name_of(dtype_of(cache)));
      if (!t) return {};
      const Sizes sizes = sizes_of(cache);
      const int n = sizes.size();
      const Sizes by_head = {sizes[n - 2]}, by_row(sizes.begin(), sizes.end() - 1);
      const Sizes own = sizes_of(*t);
      check_device(*t, name);
      check(dtype_of(*t) == DType::f32 && (own == by_head || own == by_row), "weft.", op, ": ",
            name, " is ", name_of(dtype_of(*t)), " ", own, ", expected float32 ", by_head,
            " (by head) or ", by_row, " (by row and head)");
      const auto strides = t->strides();
      Vectors s = {const_cast<float*>(static_cast<const float*>(t->const_data_ptr())), 0, 0,
                   strides[own.size() - 1]};
      if (own == by_row && n > 2) {
        check_no_repeats(*t, name, "expected scales of its own for each row");
        if (n == 4) s.batch = strides[0];
        s.row = sizes[n - 3] > 1 ? strides[n - 3] : 1;  // 0 says that there is one for all rows
      }
      return s;
    }

    // ---- the problem

    void dtypes(const Tensor& q, const Tensor& k, const Tensor& v, bool int8) const {
      const DType type = float_dtype(q, "q");
      check_device(k, "k");
      const DType k_type = dtype_of(k);
      check(k_type == type || (int8 && k_type == DType::i8), "weft.", op, ": k has dtype ",
            name_of(k_type), ", expected ", name_of(type),
            int8 ? " (that of q) or int8" : " (that of q)");
      check_dtype(v, "v", k_type, "k");
    }

    void geometry(Problem& p, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Layout& layout) const {
      const Sizes qs = sizes_of(q), ks = sizes_of(k), vs = sizes_of(v);
      const bool packed_q = layout.cu_seqlens_q.has_value(),
                 packed_k = layout.cu_seqlens_k.has_value(), paged = layout.block_table.has_value();
      check(!packed_k || (!paged && !layout.cache_batch_idx), "weft.", op,
            ": cu_seqlens_k is for packed keys, block_table and cache_batch_idx for a cache, "
            "expected one of them");
      check(!paged || !layout.cache_batch_idx, "weft.", op,
            ": block_table and cache_batch_idx both say where the keys lie, expected one of them");
      check(!paged || layout.seqused_k, "weft.", op, ": block_table needs seqused_k");
      check_dims(q, "q", packed_q ? 3 : 4, packed_q ? "[total_q, H, D]" : "[B, S, H, D]");
      const char* k_shape = packed_k ? "[total_k, K, D]"
                            : paged  ? "[pages, page_size, K, D]"
                                     : "[B, T, K, D]";
      check_dims(k, "k", packed_k ? 3 : 4, k_shape);
      const int n = qs.size(), m = ks.size();
      p.H = qs[n - 2];
      p.D = qs[n - 1];
      p.K = ks[m - 2];
      Sizes expected(ks.begin(), ks.end() - 1);
      p.Dv = vs.size() ? vs[vs.size() - 1] : 0;
      expected.push_back(p.Dv);
      check_shape(v, "v", expected, "that of k, but for the last dimension");
      check(ks[m - 1] == p.D, "weft.", op, ": k has shape ", ks, ", expected a last dimension of ",
            p.D, " (that of q)");
      check_heads(p);

      p.B = packed_q ? batch_of(*layout.cu_seqlens_q, "cu_seqlens_q") : qs[0];
      p.S = packed_q ? longest(layout.max_seqlen_q, "max_seqlen_q") : qs[1];
      Sequences& s = p.sequences;
      if (packed_q) p.total_q = qs[0];
      if (packed_k) p.total_k = ks[0];
      s.cu_q = index(layout.cu_seqlens_q, "cu_seqlens_q", {p.B + 1}, "B + 1");
      s.cu_k = index(layout.cu_seqlens_k, "cu_seqlens_k", {p.B + 1}, "B + 1");
      s.used_q = index(layout.seqused_q, "seqused_q", {p.B}, "B");
      s.used_k = index(layout.seqused_k, "seqused_k", {p.B}, "B");
      s.leftpad = index(layout.leftpad, "leftpad_k", {p.B}, "B");
      const int64_t rows = place(s, k, "k", p.B, layout.cache_batch_idx, layout.block_table);
      p.caches = ks[0];
      p.T = packed_k ? longest(layout.max_seqlen_k, "max_seqlen_k") : rows;
      if (paged && longest(layout.max_seqlen_k, "max_seqlen_k") > 0) p.T = layout.max_seqlen_k;
      with_indices(p,
                   [&](const Problem& read) { check_values(read, ks[0], packed_k ? p.T : rows); });
    }

    // Without any of these: [B, S, H, D], or [B, H, S, D] where heads come first.
    void dense(Forward& p, Tensor& q, Tensor& k, Tensor& v, bool heads_first) {
      const char* shape = heads_first ? "[B, H, S, D]" : "[B, S, H, D]";
      check_dims(q, "q", 4, shape);
      check_dims(k, "k", 4, shape);
      check_dims(v, "v", 4, shape);
      const int rows = heads_first ? 2 : 1, head = 3 - rows;
      const auto qs = q.sizes(), ks = k.sizes(), vs = v.sizes();
      p.B = qs[0];
      p.S = qs[rows];
      p.H = qs[head];
      p.D = qs[3];
      p.T = ks[rows];
      p.K = ks[head];
      p.Dv = vs[3];
      check_shape(k, "k", {p.B, ks[1], ks[2], p.D}, "first and last dimension those of q");
      check_shape(v, "v", {p.B, ks[1], ks[2], p.Dv}, "that of k, but for the last dimension");
      check_heads(p);
      for (auto [tensor, view] : {std::pair{&q, &p.q}, std::pair{&k, &p.k}, std::pair{&v, &p.v}}) {
        if (tensor->stride(3) != 1 && tensor->size(3) > 1) *tensor = contiguous(*tensor);
        const auto strides = tensor->strides();
        *view = {const_cast<void*>(tensor->const_data_ptr()), dtype_of(*tensor), strides[0],
                 strides[rows], strides[head]};
      }
    }

    void used_keys(Problem& p, const OptionalTensor& seqused_k) const {
      p.sequences.used_k = index(seqused_k, "seqused_k", {p.B}, "B");
      with_indices(p, [&](const Problem& read) { check_values(read, p.B, p.T); });
    }

    void windows(Problem& p, int64_t left, int64_t right, bool top_left) const {
      for (const int64_t window : {left, right})
        check(window >= -1, "weft.", op, ": ", window == left ? "window_left" : "window_right",
              " is ", window, ", expected at least -1 (-1: unbounded)");
      p.window_left = left;
      p.window_right = right;
      p.top_left = top_left;
    }

    void options(Problem& p, const Options& o) {
      check(o.softcap >= 0, "weft.", op, ": softcap is ", o.softcap,
            ", expected at least 0 (0: none)");
      windows(p, o.window_left, o.window_right, o.top_left);
      p.softmax_scale = o.softmax_scale;
      p.softcap = o.softcap;
      p.dropout = read_dropout(*this, o.dropout_p, o.rng_state);
      p.allow_tf32 = o.allow_tf32;
      const Sizes all = {p.B, p.H, p.S, p.T};
      if (o.bias) {
        float_dtype(*o.bias, "bias");
        check_shape(*o.bias, "bias", all, "B, H, S, T");
        p.bias = scores(*o.bias);
      }
      if (o.mask) {
        check_tensor(*o.mask, "mask", DType::boolean, all, "B, H, S, T");
        p.mask = scores(*o.mask);
      }
      if (o.alibi_slopes) {
        const bool by_batch = o.alibi_slopes->dim() == 2;
        check_tensor(*o.alibi_slopes, "alibi_slopes", DType::f32,
                     by_batch ? Sizes{p.B, p.H} : Sizes{p.H}, by_batch ? "B, H" : "H");
        p.alibi = by_head(*o.alibi_slopes);
      }
      if (o.sinks) {
        check_tensor(*o.sinks, "sinks", DType::f32, {p.H}, "H");
        p.sinks = by_head(*o.sinks);
      }
    }

    // ---- what forward returned, and its gradients

    Sizes out_sizes(const Problem& p) const {
      return p.sequences.cu_q ? Sizes{p.total_q, p.H, p.Dv} : Sizes{p.B, p.S, p.H, p.Dv};
    }
    Sizes lse_sizes(const Problem& p) const {
      return p.sequences.cu_q ? Sizes{p.H, p.total_q} : Sizes{p.B, p.H, p.S};
    }

    Heads like_out(const Tensor& t, const char* name, const Backward& p) {
      check_tensor(t, name, p.q.dtype, out_sizes(p), "as attention_forward returned out");
      const bool rows = t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1;
      return heads(rows ? t : contiguous(t), name);
    }
    const void* like_lse(const Tensor& t, const char* name, const Backward& p) {
      check_tensor(t, name, acc_of(p.q.dtype), lse_sizes(p), "as attention_forward returned lse");
      return contiguous(t).const_data_ptr();
    }

    // ---- a cache that grows

    void cache(Append& p, const Tensor& k_cache, const Tensor& v_cache, const Tensor& k,
               const Tensor& v) const {
      const DType type = float_dtype(k, "k");
      check_dtype(v, "v", type, "k");
      const DType cached = dtype_of(k_cache);
      check(cached == type || cached == DType::i8, "weft.", op, ": k_cache has dtype ",
            name_of(cached), ", expected ", name_of(type), " (that of k) or int8");
      check_dtype(v_cache, "v_cache", cached, "k_cache");
      const Sizes ks = sizes_of(k_cache), vs = sizes_of(v_cache);
      check_dims(k_cache, "k_cache", 4, "[B, T, K, D] or [pages, page_size, K, D]");
      p.K = ks[2];
      p.D = ks[3];
      p.Dv = vs.size() ? vs[vs.size() - 1] : 0;
      check_shape(v_cache, "v_cache", {ks[0], ks[1], ks[2], p.Dv},
                  "that of k_cache, but for the last dimension");
      check_head_size(p.D, "k_cache");
      check_head_size(p.Dv, "v_cache");
    }

    void destination(Append& p, const Tensor& k_cache, const Tensor& k, const Tensor& v,
                     const Destination& d) const {
      const bool packed = d.cu_seqlens.has_value();
      check(!d.block_table || !d.cache_batch_idx, "weft.", op,
            ": block_table and cache_batch_idx both say where the rows go, expected one of them");
      check_dims(k, "k", packed ? 3 : 4, packed ? "[total, K, D]" : "[B, S, K, D]");
      const int64_t first = k.size(0);
      p.B = packed ? batch_of(*d.cu_seqlens, "cu_seqlens_new") : first;
      p.S = packed ? first : k.size(1);
      check_shape(k, "k", packed ? Sizes{first, p.K, p.D} : Sizes{first, p.S, p.K, p.D},
                  "heads and last dimension those of k_cache");
      check_shape(v, "v", packed ? Sizes{first, p.K, p.Dv} : Sizes{first, p.S, p.K, p.Dv},
                  "rows and heads those of k, the last dimension that of v_cache");
      p.cu_new = index(d.cu_seqlens, "cu_seqlens_new", {p.B + 1}, "B + 1");
      Sequences& s = p.sequences;
      s.used_k = index(d.seqused, "seqused_k", {p.B}, "B");
      p.T = place(s, k_cache, "k_cache", p.B, d.cache_batch_idx, d.block_table);
      p.caches = k_cache.size(0);
      with_indices(p, [&](const Append& q) {
        for (int64_t b = 0; b < q.B; ++b) {
          if (q.cu_new) check_ascent(q.cu_new, "cu_seqlens_new", b, first, "the rows of k");
          const int64_t rows = q.cu_new ? q.cu_new[b + 1] - q.cu_new[b] : q.S;
          const int64_t used = q.sequences.used_k ? q.sequences.used_k[b] : 0;
          check_value(used, "seqused_k", b, 0, q.T - rows, "the cache's rows less the new ones");
          check_place(q.sequences, b, k_cache.size(0), used, used + rows);
        }
      });
    }

    Rotary rotary(const Tensor& x, const Tensor& cos, const Tensor& sin,
                  const OptionalTensor& offsets, int64_t offset, const OptionalTensor& cu_seqlens,
                  bool interleaved, bool conjugate, int64_t step = 1) const {
      const bool packed = cu_seqlens.has_value();
      float_dtype(x, "x");
      check_dims(x, "x", packed ? 3 : 4, packed ? "[total, H, D]" : "[B, S, H, D]");
      const int n = packed ? 3 : 4;
      Rotary p;
      p.B = packed ? batch_of(*cu_seqlens, "cu_seqlens") : x.size(0);
      p.S = x.size(n - 3);
      p.H = x.size(n - 2);
      p.D = x.size(n - 1);
      check_head_size(p.D, "x");
      if (packed) p.total = p.S;
      p.table_dtype = float_dtype(cos, "cos");
      check_dims(cos, "cos", 2, "[rows, R / 2]");
      check_tensor(sin, "sin", p.table_dtype, sizes_of(cos), "as cos");
      check_contiguous(cos, "cos");
      check_contiguous(sin, "sin");
      p.rows = cos.size(0);
      p.R = 2 * cos.size(1);
      check(p.R <= p.D, "weft.", op, ": cos has shape ", sizes_of(cos), ", expected at most ",
            p.D / 2, " columns (half the last dimension of x)");
      p.cos = cos.const_data_ptr();
      p.sin = sin.const_data_ptr();
      p.cu_seqlens = index(cu_seqlens, "cu_seqlens", {p.B + 1}, "B + 1");
      p.offsets = index(offsets, "offsets", {p.B}, "B");
      p.offset = offset;
      p.step = step;
      p.interleaved = interleaved;
      p.conjugate = conjugate;
      p.x = heads(x, "x");
      if (!p.offsets && !packed) check_offset(offset, p.S, p.rows);
      if constexpr (!Backend::reads_indices)
        check(p.rows > 0 || p.R == 0 || x.numel() == 0, "weft.", op, ": cos has shape ",
              sizes_of(cos), ", expected at least one row");
      with_indices(p, [&](const Rotary& q) {
        for (int64_t b = 0; b < q.B && (packed || q.offsets); ++b) {
          if (packed) check_ascent(q.cu_seqlens, "cu_seqlens", b, q.total, "the rows of x");
          const int64_t own = packed ? q.cu_seqlens[b + 1] - q.cu_seqlens[b] : q.S,
                        rows = q.step ? own : std::min<int64_t>(own, 1);
          if (q.offsets)
            check_value(q.offsets[b], "offsets", b, 0, q.rows - rows,
                        "the rows of cos less those of the sequence");
          else
            check_offset(offset, rows, q.rows);
        }
      });
      return p;
    }

    // ---- outputs

    using Base::fresh;
    Tensor fresh(const Sizes& sizes, const Sizes& strides, DType dtype) const {
      return prepared<Backend>(empty_strided(sizes, strides.data(), dtype, first_), dtype);
    }

    // Whether there may be rows that no sequence reaches.
    bool has_gaps(const int32_t* cu, const int32_t* used, int64_t B, int64_t total) const {
      if (used) return true;
      if constexpr (Backend::reads_indices)
        return cu && (cu[0] != 0 || cu[B] != total);
      else
        return cu != nullptr;
    }

   private:
    using Base::check_device, Base::check_no_repeats, Base::contiguous, Base::first_;
    using Base::is_checked;

    // ---- index tensors on the host

    // f(p), its index tensors such as the host can read; nothing where there are none.
    template <class Params, class F>
    void with_indices(const Params& p, F&& f) const {
      if constexpr (Backend::reads_indices) {
        f(p);
      } else if (!copies_.empty()) {
        Params copy = p;
        for_each_index(copy, [&](const int32_t*& index) { index = copy_of(index); });
        f(copy);
      }
    }
    template <class F>
    static void for_each_index(Sequences& s, F&& f) {
      for (auto* index :
           {&s.cu_q, &s.cu_k, &s.used_q, &s.used_k, &s.leftpad, &s.cache_row, &s.block_table})
        f(*index);
    }
    template <class F>
    static void for_each_index(Problem& p, F&& f) {
      for_each_index(p.sequences, f);
    }
    template <class F>
    static void for_each_index(Append& p, F&& f) {
      for_each_index(p.sequences, f);
      f(p.cu_new);
    }
    template <class F>
    static void for_each_index(Rotary& p, F&& f) {
      f(p.cu_seqlens);
      f(p.offsets);
    }

    // Tensors of different lengths may begin at one address.
    const int32_t* copy_of(const int32_t* data) const {
      const Copy* longest = nullptr;
      for (const Copy& copy : copies_)
        if (copy.of == data && (!longest || copy.count > longest->count)) longest = &copy;
      return longest ? static_cast<const int32_t*>(longest->host.const_data_ptr()) : data;
    }

    void check_heads(const Problem& p) const {
      check_head_size(p.D, "q");
      check_head_size(p.Dv, "v");
      check(p.K >= 1 && p.H >= 1 && p.H % p.K == 0, "weft.", op, ": q has ", p.H,
            " heads, expected a multiple of k's ", p.K);
    }
    void check_contiguous(const Tensor& t, const char* name) const {
      check(t.is_contiguous(), "weft.", op, ": ", name, " is not contiguous");
    }

    int64_t batch_of(const Tensor& cu, const char* name) const {
      check(cu.dim() == 1 && cu.numel() >= 1, "weft.", op, ": ", name, " has shape ", sizes_of(cu),
            ", expected [B + 1]");
      return cu.numel() - 1;
    }
    int64_t longest(int64_t max_seqlen, const char* name) const {
      check(max_seqlen >= 0 && max_seqlen <= INT32_MAX, "weft.", op, ": ", name, " is ", max_seqlen,
            ", expected 0 to ", INT32_MAX);
      return max_seqlen;
    }

    // Where the cache of each sequence is; how many rows there are for one.
    int64_t place(Sequences& s, const Tensor& k, const char* name, int64_t B,
                  const OptionalTensor& cache_batch_idx, const OptionalTensor& block_table) const {
      s.cache_row = index(cache_batch_idx, "cache_batch_idx", {B}, "B");
      if (block_table) {
        check_dims(*block_table, "block_table", 2, "[B, pages of a sequence]");
        s.table_stride = block_table->size(1);
        s.page_size = k.size(1);
        s.block_table =
            index(block_table, "block_table", {B, s.table_stride}, "B, pages of a sequence");
        check(s.page_size >= 1, "weft.", op, ": ", name, " has shape ", sizes_of(k),
              ", expected pages of at least one row");
        return s.table_stride * s.page_size;
      }
      check(k.dim() == 3 || s.cache_row || k.size(0) == B, "weft.", op, ": ", name, " has shape ",
            sizes_of(k), ", expected a first dimension of ", B, " (the batch)");
      return k.size(1);
    }

    Vectors by_head(const Tensor& t) const {
      const auto strides = t.strides();
      const bool by_batch = t.dim() == 2;
      return {const_cast<float*>(static_cast<const float*>(t.const_data_ptr())),
              by_batch ? strides[0] : 0, 0, strides[by_batch ? 1 : 0]};
    }

    // ---- index tensors, value by value

    void check_value(int64_t value, const char* name, int64_t b, int64_t least, int64_t most,
                     const char* what) const {
      check(value >= least && value <= most, "weft.", op, ": ", name, " is ", value,
            " for sequence ", b, ", expected ", least, " to ", most, " (", what, ")");
    }
    void check_ascent(const int32_t* cu, const char* name, int64_t b, int64_t total,
                      const char* what) const {
      check(cu[b] >= 0 && cu[b] <= cu[b + 1] && cu[b + 1] <= total, "weft.", op, ": ", name,
            " goes from ", cu[b], " to ", cu[b + 1], " at sequence ", b,
            ", expected an ascent from 0 to ", total, " (", what, ")");
    }
    void check_packed(const int32_t* cu, const char* name, int64_t b, int64_t total,
                      const char* what, int64_t most, const char* most_name) const {
      check_ascent(cu, name, b, total, what);
      check(cu[b + 1] - cu[b] <= most, "weft.", op, ": ", name, " gives sequence ", b, " ",
            cu[b + 1] - cu[b], " rows, expected at most ", most, " (", most_name, ")");
    }
    void check_offset(int64_t offset, int64_t rows, int64_t table) const {
      check(offset >= 0 && offset <= table - rows, "weft.", op, ": offset is ", offset,
            ", expected 0 to ", table - rows, " (the rows of cos less those of the sequence)");
    }
    // Rows [begin, end) of sequence b's cache, of which there are `count` or that many pages.
    void check_place(const Sequences& s, int64_t b, int64_t count, int64_t begin,
                     int64_t end) const {
      if (s.cache_row)
        check_value(s.cache_row[b], "cache_batch_idx", b, 0, count - 1, "the rows of the cache");
      if (s.block_table && begin < end)
        for (int64_t page = begin / s.page_size; page * s.page_size < end; ++page)
          check_value(s.block_table[b * s.table_stride + page], "block_table", b, 0, count - 1,
                      "the pages of the cache");
    }

    void check_values(const Problem& p, int64_t count, int64_t rows) const {
      const Sequences& s = p.sequences;
      for (int64_t b = 0; b < p.B; ++b) {
        if (s.cu_q)
          check_packed(s.cu_q, "cu_seqlens_q", b, p.total_q, "the rows of q", p.S, "max_seqlen_q");
        if (s.cu_k)
          check_packed(s.cu_k, "cu_seqlens_k", b, p.total_k, "the rows of k", p.T, "max_seqlen_k");
        const int64_t queries = s.cu_q ? s.cu_q[b + 1] - s.cu_q[b] : p.S;
        int64_t keys = s.cu_k ? s.cu_k[b + 1] - s.cu_k[b] : std::min(p.T, rows);
        if (s.used_q)
          check_value(s.used_q[b], "seqused_q", b, 0, queries, "the rows of its queries");
        if (s.used_k)
          check_value(s.used_k[b], "seqused_k", b, 0, keys - s.new_k,
                      s.new_k ? "the rows of its keys less the new ones" : "the rows of its keys");
        if (s.used_k) keys = s.used_k[b] + s.new_k;
        if (s.leftpad) check_value(s.leftpad[b], "leftpad_k", b, 0, keys, "the keys in use");
        check_place(s, b, count, s.leftpad ? s.leftpad[b] : 0, keys);
      }
    }

    struct Copy {
      const int32_t* of;
      int64_t count;
      Tensor host;
    };
    mutable std::forward_list<Copy> copies_;  // of index tensors, where WEFT_CHECK=1
  };
};

}  // namespace weft::attention
