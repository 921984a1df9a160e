"""What the attention ops return, without computing it: for meta tensors, torch.compile, export.

Outputs that were not asked for have shape [0].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ._attention_args import AttentionArgs
from ._fake import register


def _lse_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _forward(*args):
    a = AttentionArgs(*args)
    out_dtype = a.q.dtype if a.out_scale is None else torch.int8
    *rows, H, _ = a.q.shape
    lse_shape = (rows[0], H, rows[1]) if a.cu_seqlens_q is None else (H, rows[0])
    return (
        a.q.new_empty((*rows, H, a.v.shape[-1]), dtype=out_dtype),
        a.q.new_empty(lse_shape, dtype=_lse_dtype(a.q.dtype)),
    )


def _plain(
    q,
    k,
    v,
    seqused_k=None,
    softmax_scale=None,
    window_left=-1,
    window_right=-1,
    top_left=False,
    heads_first=False,
    allow_tf32=False,
):
    B, *rows, _ = q.shape
    if not heads_first:
        return q.new_empty((B, *rows, v.shape[-1]))
    return q.new_empty((B, rows[1], rows[0], v.shape[-1])).transpose(1, 2)


def _with_kvcache(q, k_cache, v_cache, *args):
    B, S, H, _ = q.shape
    lse = q.new_empty((B, H, S), dtype=_lse_dtype(q.dtype))
    return q.new_empty((B, S, H, v_cache.shape[-1])), lse


def _backward(dout, dlse, q, k, v, out, lse, bias, mask, alibi_slopes, sinks, *options):
    *_, bias_grad, sinks_grad = options
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        bias.new_empty(bias.shape) if bias_grad else q.new_empty((0,), dtype=torch.float32),
        q.new_empty((q.shape[-2] if sinks_grad else 0,), dtype=torch.float32),
    )


def _rotary(x, cos, sin, offsets, offset, cu_seqlens, interleaved, conjugate):
    return x.new_empty(x.shape)


def _merge(parts, lses):
    return parts.new_empty(parts.shape[1:]), lses.new_empty(lses.shape[1:])


def _nothing(*args, **kwargs) -> None:
    """Of ops that only write into their arguments."""


_FAKES: dict[str, Callable[..., Any]] = {
    "attention": _plain,
    "attention_forward": _forward,
    "attention_with_kvcache_": _with_kvcache,
    "attention_backward": _backward,
    "kv_cache_append_": _nothing,
    "rotary": _rotary,
    "rotary_": _nothing,
    "merge_attention_states": _merge,
}

for _name, _fake in _FAKES.items():
    register(_name, _fake)
