"""The attention family in plain PyTorch, a sequence at a time.

    s = q · kᵀ · softmax_scale                      GQA: head h reads key head h / (H / K)
    s = softcap · tanh(s / softcap)
    s = s + bias - slope · |t - (i + offset)|       i the query, t the key
    s = -inf                                        outside the window, or where mask is False
    lse = log(Σ exp(s) + exp(sink))
    o = dropout(exp(s - lse)) · v
    q8 = clamp(round((o - out_shift) / out_smooth / out_scale))

Query i sees the keys i + offset - left … i + offset + right; offset is T - S, or 0 where top_left.
A row that sees nothing gives o = 0 and lse = -inf, or its sink; a row that is none of a sequence's
queries gives 0 and -inf.

Every operation runs in the dtype of its operands, with no hidden upcast, but lse, which is float32
at least: give float64 for an oracle, and bfloat16 to see what plain PyTorch makes of it. Autograd
differentiates everything but the rounding to int8.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import philox


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    top_left: bool = False,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    rng_state: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    block_table: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_shift: Tensor | None = None,
    out_smooth: Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """q [B, S, H, D] or packed [total_q, H, D]; k and v dense, packed, or pages of a cache."""
    H, D = q.shape[-2:]
    B = len(q) if cu_seqlens_q is None else len(cu_seqlens_q) - 1
    S = longest(q, cu_seqlens_q, max_seqlen_q)
    T = longest(k, cu_seqlens_k, max_seqlen_k)
    if block_table is not None and not max_seqlen_k:
        T = block_table.shape[1] * k.shape[1]
    scores_shape = (B, H, S, T)
    bias = None if bias is None else bias.expand(scores_shape)
    mask = None if mask is None else mask.expand(scores_shape)
    slopes = None if alibi_slopes is None else alibi_slopes.expand(B, H)
    k, v = dequantize(k, k_scale, q.dtype), dequantize(v, v_scale, q.dtype)

    def queries(t: Tensor, b: int) -> Tensor:
        rows = t[b] if cu_seqlens_q is None else t[cu_seqlens_q[b] : cu_seqlens_q[b + 1]]
        return rows if seqused_q is None else rows[: seqused_q[b]]

    def keys(t: Tensor, b: int) -> Tensor:
        if block_table is not None:
            assert seqused_k is not None, "a paged cache needs seqused_k"
            pages = -(-int(seqused_k[b]) // t.shape[1])
            rows = t[block_table[b, :pages].long()].flatten(0, 1)
        elif cu_seqlens_k is not None:
            rows = t[cu_seqlens_k[b] : cu_seqlens_k[b + 1]]
        else:
            rows = t[b if cache_batch_idx is None else cache_batch_idx[b]]
        rows = rows if seqused_k is None else rows[: seqused_k[b]]
        return rows if leftpad_k is None else rows[leftpad_k[b] :]

    out_dtype = q.dtype if out_scale is None else torch.int8
    out = q.new_zeros((*q.shape[:-1], v.shape[-1]), dtype=out_dtype)
    lse = q.new_full(q.shape[:-1], -math.inf, dtype=torch.promote_types(q.dtype, torch.float32))
    for b in range(B):
        q_b, k_b, v_b = queries(q, b), keys(k, b), keys(v, b)
        s, t = len(q_b), len(k_b)
        logits = scores(
            q_b,
            k_b,
            D**-0.5 if softmax_scale is None else softmax_scale,
            softcap,
            None if bias is None else bias[b, :, :s, :t],
            None if slopes is None else slopes[b],
            0 if top_left else t - s,
        )
        seen = visible(s, t, (window_size[0], 0) if causal else window_size, top_left).to(q.device)
        if mask is not None:
            seen = seen & mask[b, :, :s, :t]
        p, lse_b = softmax(logits, seen, sinks)
        if dropout_p > 0:
            assert rng_state is not None, "dropout needs rng_state"
            p = drop(p, dropout_p, kept(rng_state, dropout_p, b, scores_shape)[:, :s, :t])
        group = H // v_b.shape[1]
        o = torch.einsum("hst,thd->shd", p, v_b.repeat_interleave(group, 1))
        if out_scale is not None:
            o = quantize(o, out_scale, out_shift, out_smooth)
        queries(out, b).copy_(o)
        queries(lse, b).copy_(lse_b.T)
    return (out, lse.transpose(-1, -2)) if return_lse else out


def longest(t: Tensor, cu_seqlens: Tensor | None, max_seqlen: int | None) -> int:
    """How many rows the longest sequence of `t` has, or is said to have."""
    if cu_seqlens is None and t.dim() == 4:
        return max_seqlen or t.shape[1]
    assert cu_seqlens is not None
    return int(cu_seqlens.diff().max()) if max_seqlen is None else max_seqlen


def scores(
    q: Tensor,
    k: Tensor,
    softmax_scale: float,
    softcap: float,
    bias: Tensor | None,
    slopes: Tensor | None,
    offset: int,
) -> Tensor:
    """The scores [H, S, T] of one sequence, all keys visible."""
    group = q.shape[1] // k.shape[1]
    s = torch.einsum("shd,thd->hst", q, k.repeat_interleave(group, 1)) * softmax_scale
    if softcap > 0:
        s = softcap * torch.tanh(s / softcap)
    if bias is not None:
        s = s + bias.to(s)
    if slopes is not None:
        i, t = torch.arange(len(q))[:, None] + offset, torch.arange(len(k))
        s = s - slopes.to(s)[:, None, None] * (t - i).abs().to(s)
    return s


def visible(S: int, T: int, window_size: tuple[int, int], top_left: bool) -> Tensor:
    """Which keys each query sees: bool [S, T]."""
    left, right = window_size
    distance = torch.arange(T) - torch.arange(S)[:, None] - (0 if top_left else T - S)
    seen = torch.ones(S, T, dtype=torch.bool)
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    return seen


def softmax(s: Tensor, seen: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """p [H, S, T] and lse [H, S] over the keys that are seen, and the sink."""
    hidden = ~seen | (s == -math.inf)
    logits = s.masked_fill(hidden, -math.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.to(s)[:, None, None].expand(*s.shape[:2], 1)], -1)
    lse = torch.logsumexp(logits.to(torch.promote_types(s.dtype, torch.float32)), -1)
    p = torch.softmax(logits, -1)[..., : s.shape[-1]]
    return p.masked_fill(hidden, 0), lse


def kept(rng_state: Tensor, p: float, b: int, shape: tuple[int, ...]) -> Tensor:
    """What dropout keeps of sequence b's probabilities: bool [H, S, T]."""
    _, H, S, T = shape
    elements = torch.arange(H * S * T) + b * H * S * T
    return (philox.words(elements, rng_state).double() >= p * 2.0**32).view(H, S, T)


def drop(x: Tensor, p: float, mask: Tensor) -> Tensor:
    """`x` where `mask` keeps it, scaled up so that its expectation stays."""
    return torch.where(mask.to(x.device), x / (1 - p), 0)


def quantize(
    out: Tensor, scale: Tensor, shift: Tensor | None = None, smooth: Tensor | None = None
) -> Tensor:
    """Rounds halves to even, then saturates."""
    out = out if shift is None else out - shift
    out = out if smooth is None else out / smooth
    return torch.round(out / scale).clamp(-128, 127).to(torch.int8)


def dequantize(t: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """int8 rows [..., K, D] times a scale by head [K], or by row and head [..., K]."""
    return t if scale is None else t.to(dtype) * scale.to(dtype).unsqueeze(-1)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values of x [..., D] and a scale for each row, from its largest magnitude."""
    scale = x.abs().amax(-1) / 127
    scale = torch.where(scale == 0, 1, scale)
    return quantize(x, scale.unsqueeze(-1)), scale


def merge_attn_states(parts: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over all keys from that over P parts of them: [P, B, S, H, Dv], [P, B, H, S]."""
    lse = torch.logsumexp(lses, 0)
    weights = torch.exp(lses - lse.masked_fill(lse == -math.inf, 0))
    return (weights.transpose(-1, -2).unsqueeze(-1) * parts).sum(0), lse


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    conjugate: bool = False,
) -> Tensor:
    """Turns the pairs of x [B, S, H, D], or packed [total, H, D], by the angles of their rows."""
    if cu_seqlens is None:
        position = torch.arange(x.shape[1]).expand(x.shape[:2])
        offsets = torch.as_tensor(seqlen_offsets).expand(len(x)).cpu()[:, None]
    else:
        lengths = cu_seqlens.diff().cpu()
        position = torch.cat([torch.arange(n) for n in lengths.tolist()])
        offsets = torch.as_tensor(seqlen_offsets).expand(len(lengths)).cpu()
        offsets = offsets.repeat_interleave(lengths)
    rows = (position + offsets).to(cos.device)
    cos, sin = cos[rows].unsqueeze(-2), sin[rows].unsqueeze(-2)  # [..., 1, R / 2]
    sin = -sin if conjugate else sin

    R = 2 * cos.shape[-1]
    pairs = (R // 2, 2) if interleaved else (2, R // 2)
    pair = -1 if interleaved else -2
    a, b = x[..., :R].unflatten(-1, pairs).unbind(pair)
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), pair).flatten(-2)
    return torch.cat((turned, x[..., R:]), -1).to(x.dtype)
