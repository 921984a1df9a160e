"""flash-attn's functions, with its signatures and semantics, on :func:`weft.attention`.

Layout [B, S, H, D] or packed [total, H, D]; causal masks and windows are aligned bottom-right; a
row that sees nothing gives zeros and lse = -inf. More than flash-attn takes: any head size from 1
to 512, values of another head size, float32 and float64, any page size; lse has a gradient. Every
backward is deterministic, whether asked for or not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._grad import without_grad
from ._rng_state import new_rng_state
from .attention import attention, attention_with_kvcache_

Window = tuple[int | None, int | None]

_dropout_mask = torch.ops.weft.dropout_mask.default


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention on padded batches.

    Args:
        q: [B, S, H, D].
        k, v: [B, T, K, D], K a divisor of H.
        dropout_p: probability with which a weight is dropped.
        softmax_scale: factor of the scores. Default: 1 / √D.
        causal: query i sees the keys 0 to i + T - S.
        window_size: (left, right) around key i + T - S, both ends included; -1: all.
        softcap: scores become softcap · tanh(score / softcap); 0: they do not.
        alibi_slopes: float32 [H] or [B, H]; -slope · |i + T - S - t| joins the scores.
        deterministic: has no effect: it always is.
        return_attn_probs: return more, for tests.

    Returns:
        out [B, S, H, D]; with `return_attn_probs` the tuple of out, softmax_lse [B, H, S] and
        S_dmask, the weights [B, H, S, T], negative where dropped; empty without dropout.
    """
    options = _options(softmax_scale, causal, window_size, softcap, alibi_slopes)
    return _attend(q, k, v, dropout_p, options, return_attn_probs)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """:func:`flash_attn_func` of qkv [B, S, 3, H, D]."""
    options = _options(softmax_scale, causal, window_size, softcap, alibi_slopes)
    q, k, v = qkv.unbind(2)
    return _attend(q, k, v, dropout_p, options, return_attn_probs)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """:func:`flash_attn_func` of q [B, S, H, D] and kv [B, T, 2, K, D]."""
    options = _options(softmax_scale, causal, window_size, softcap, alibi_slopes)
    k, v = kv.unbind(2)
    return _attend(q, k, v, dropout_p, options, return_attn_probs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """Attention on packed sequences, without padding.

    Args:
        q: [total_q, H, D].
        k, v: [total_k, K, D]; pages [pages, page_size, K, D] with `block_table`.
        cu_seqlens_q, cu_seqlens_k: int32 [B + 1], where each sequence begins.
        max_seqlen_q, max_seqlen_k: the longest sequences.
        block_table: int32 [B, n], the pages of each sequence.

    The other arguments, and what is returned, are :func:`flash_attn_func`'s; out is
    [total_q, H, D], softmax_lse [H, total_q].
    """
    options = _options(softmax_scale, causal, window_size, softcap, alibi_slopes)
    options |= {"cu_seqlens_q": cu_seqlens_q, "max_seqlen_q": max_seqlen_q}
    if block_table is None:
        options |= {"cu_seqlens_k": cu_seqlens_k, "max_seqlen_k": max_seqlen_k}
    else:  # where the keys lie, the table says: cu_seqlens_k only how many there are
        options |= {"block_table": block_table, "seqused_k": cu_seqlens_k.diff()}
    return _attend(q, k, v, dropout_p, options, return_attn_probs)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """:func:`flash_attn_varlen_func` of qkv [total, 3, H, D]."""
    q, k, v = qkv.unbind(1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """:func:`flash_attn_varlen_func` of q [total_q, H, D] and kv [total_k, 2, K, D]."""
    k, v = kv.unbind(1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


@without_grad
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """Decoding: new keys and values go into the cache, and q meets all that is there.

    Without gradients, as flash-attn's.

    Args:
        q: [B, S, H, D].
        k_cache, v_cache: [rows, T, K, D], or pages [pages, page_size, K, D] with `block_table`.
        k, v: [B, S_new, K, D], written in place behind what is in the cache.
        rotary_cos, rotary_sin: [rows, R / 2]. k turns by the rows cache_seqlens and on; so does q
            where there is `causal` or a window, else all of q turns by row cache_seqlens.
        cache_seqlens: how many rows are in the cache: int, or int32 [B]. Default: all.
        cache_batch_idx: int32 [B], the row of the cache instead of b.
        cache_leftpad: int32 [B], how many rows of the cache do not count, from the first one on.
        block_table: int32 [B, n], the pages of each sequence.
        rotary_interleaved: pairs are (x[2i], x[2i + 1]) instead of (x[i], x[i + R / 2]).
        num_splits: parts that the keys are split into; 0: as many as fill the machine.
        return_softmax_lse: return softmax_lse [B, H, S] too.

    The other arguments are :func:`flash_attn_func`'s.

    Returns:
        out [B, S, H, D], or the tuple of out and softmax_lse.
    """
    if isinstance(cache_seqlens, int):
        cache_seqlens = torch.full((len(q),), cache_seqlens, dtype=torch.int32, device=q.device)
    if k is not None:
        if v is None or cache_seqlens is None:
            raise ValueError("weft.flash_attn_with_kvcache: k needs v and cache_seqlens")
        return attention_with_kvcache_(
            q,
            k_cache,
            v_cache,
            k,
            v,
            cache_seqlens,
            rotary_cos=rotary_cos,
            rotary_sin=rotary_sin,
            rotary_interleaved=rotary_interleaved,
            **_options(softmax_scale, causal, window_size, softcap, alibi_slopes),
            leftpad_k=cache_leftpad,
            cache_batch_idx=cache_batch_idx,
            block_table=block_table,
            num_splits=num_splits,
            return_lse=return_softmax_lse,
        )
    if rotary_cos is not None:
        raise ValueError("weft.flash_attn_with_kvcache: rotary_cos needs k and v")
    if block_table is not None and cache_seqlens is None:
        raise ValueError("weft.flash_attn_with_kvcache: block_table needs cache_seqlens")
    return attention(
        q,
        k_cache,
        v_cache,
        **_options(softmax_scale, causal, window_size, softcap, alibi_slopes),
        seqused_k=cache_seqlens,
        leftpad_k=cache_leftpad,
        cache_batch_idx=cache_batch_idx,
        block_table=block_table,
        num_splits=num_splits,
        return_lse=return_softmax_lse,
    )


def _options(
    softmax_scale: float | None,
    causal: bool,
    window_size: Window,
    softcap: float,
    alibi_slopes: Tensor | None,
) -> dict[str, Any]:
    return {
        "softmax_scale": softmax_scale,
        "causal": causal,
        "window_size": window_size,
        "softcap": max(softcap, 0.0),
        "alibi_slopes": alibi_slopes,
    }


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    options: dict[str, Any],
    return_attn_probs: bool,
) -> Any:
    if not return_attn_probs:
        return attention(q, k, v, dropout_p=dropout_p, **options)
    if dropout_p == 0:
        return *attention(q, k, v, return_lse=True, **options), q.new_empty(0)
    rng_state = new_rng_state(q)
    out, lse = attention(
        q, k, v, dropout_p=dropout_p, rng_state=rng_state, return_lse=True, **options
    )
    with torch.no_grad():
        weights = _weights(q, k, options)  # [B, H, S, T]
        kept = _dropout_mask(rng_state, weights.numel(), dropout_p, 0)
        return out, lse, weights.where(kept.view(weights.shape), -weights)


_CHUNK = 512  # the largest head size


def _weights(q: Tensor, k: Tensor, options: dict[str, Any]) -> Tensor:
    """The softmax [B, H, S, T] before dropout: attention whose values are unit vectors."""
    if "block_table" in options:
        raise NotImplementedError("weft: return_attn_probs with dropout takes no block_table")
    if "cu_seqlens_q" not in options:
        B, T = k.shape[:2]
        if T == 0:
            return q.new_zeros(B, q.shape[2], q.shape[1], 0)
        unit = torch.eye(T, dtype=k.dtype, device=k.device)
        columns = [
            attention(q, k, part[None, :, None].expand(*k.shape[:3], -1), **options)
            for part in unit.split(_CHUNK, dim=1)
        ]
        return torch.cat(columns, -1).transpose(1, 2)

    starts_q, starts_k = (options["cu_seqlens_" + x].long() for x in "qk")
    S, T = options["max_seqlen_q"], options["max_seqlen_k"]
    weights = q.new_zeros(len(starts_q) - 1, q.shape[1], S, T)
    for b in range(len(weights)):
        here = q[starts_q[b] : starts_q[b + 1]], k[starts_k[b] : starts_k[b + 1]]
        alone = {name: value for name, value in options.items() if "seqlen" not in name}
        slopes = alone["alibi_slopes"]
        if slopes is not None and slopes.dim() == 2:
            alone["alibi_slopes"] = slopes[b]
        found = _weights(here[0][None], here[1][None], alone)[0]
        weights[b, :, : found.shape[1], : found.shape[2]] = found
    return weights
