// The attention family's schemas, and its functions under their names: for every library that
// registers them.
#pragma once

#include <torch/csrc/stable/library.h>

#include "attention/ops.h"

// What forward and backward have in common. Every tensor of scores is [B, H, S, T], expanded.
#define WEFT_ATTENTION_OPTIONS                                                                \
  "Tensor? bias, Tensor? mask, Tensor? alibi_slopes, Tensor? sinks, Tensor? cu_seqlens_q, "   \
  "Tensor? cu_seqlens_k, Tensor? seqused_q, Tensor? seqused_k, Tensor? rng_state, "           \
  "int max_seqlen_q, int max_seqlen_k, float softmax_scale, float softcap, int window_left, " \
  "int window_right, bool top_left, float dropout_p, bool allow_tf32"

namespace weft::attention {

inline void define_ops(torch::stable::detail::StableLibrary& m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? seqused_k=None, float? softmax_scale=None, "
      "int window_left=-1, int window_right=-1, bool top_left=False, bool heads_first=False, bool "
      "allow_tf32=False) -> Tensor");
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, " WEFT_ATTENTION_OPTIONS
      ", Tensor? leftpad_k, Tensor? cache_batch_idx, Tensor? block_table, Tensor? k_scale, Tensor? "
      "v_scale, Tensor? out_shift, Tensor? out_smooth, Tensor? out_scale, int num_splits) -> "
      "(Tensor out, Tensor lse)");
  m.def(
      "attention_with_kvcache_(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!)? "
      "k_scale, Tensor(d!)? v_scale, Tensor k, Tensor v, Tensor seqused_k, Tensor? cos, Tensor? "
      "sin, bool interleaved, Tensor? alibi_slopes, Tensor? sinks, float softmax_scale, float "
      "softcap, int window_left, int window_right, bool allow_tf32, Tensor? leftpad_k, Tensor? "
      "cache_batch_idx, Tensor? block_table, int num_splits) -> (Tensor out, Tensor lse)");
  m.def(
      "attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, " WEFT_ATTENTION_OPTIONS
      ", bool bias_grad, bool sinks_grad) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, "
      "Tensor dsinks)");
  m.def(
      "kv_cache_append_(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!)? k_scale, Tensor(d!)? "
      "v_scale, Tensor k, Tensor v, Tensor? seqused_k, Tensor? cu_seqlens_new, Tensor? "
      "cache_batch_idx, Tensor? block_table) -> ()");
  m.def(
      "rotary(Tensor x, Tensor cos, Tensor sin, Tensor? offsets, int offset, Tensor? cu_seqlens, "
      "bool interleaved, bool conjugate) -> Tensor");
  m.def(
      "rotary_(Tensor(a!) x, Tensor cos, Tensor sin, Tensor? offsets, int offset, Tensor? "
      "cu_seqlens, bool interleaved, bool conjugate) -> ()");
  m.def("merge_attention_states(Tensor parts, Tensor lses) -> (Tensor out, Tensor lse)");
}

template <class Backend>
void implement_ops(torch::stable::detail::StableLibrary& m) {
  using Attention = Ops<Backend>;
  m.impl("attention", TORCH_BOX(&Attention::attention));
  m.impl("attention_forward", TORCH_BOX(&Attention::forward));
  m.impl("attention_with_kvcache_", TORCH_BOX(&Attention::with_kvcache_));
  m.impl("attention_backward", TORCH_BOX(&Attention::backward));
  m.impl("kv_cache_append_", TORCH_BOX(&Attention::append_));
  m.impl("rotary", TORCH_BOX(&Attention::rotary));
  m.impl("rotary_", TORCH_BOX(&Attention::rotary_));
  m.impl("merge_attention_states", TORCH_BOX(&Attention::merge));
}

}  // namespace weft::attention
