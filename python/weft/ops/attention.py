"""Attention, and what stands next to it: one function with every option, and torch's.

    s = q · kᵀ · softmax_scale                      head h of q reads head h / (H / K) of k and v
    s = softcap · tanh(s / softcap)                 where softcap > 0
    s = s + bias - slope · |t - (i + offset)|       i the query, t the key
    s = -inf                                        outside the window, or where mask is False
    lse = log(Σ exp(s) + exp(sink))
    o = dropout(exp(s - lse)) · v

Computed tile by tile, so that nothing of size S · T exists (Dao et al., FlashAttention, arXiv
2205.14135; Rabe, Staats, arXiv 2112.05682). Dtypes: float32, bfloat16, float16 and float64; the
arithmetic is float32 (float64 for float64; on a GPU tf32 where torch's matmul precision allows it).
q, k and v may be views with any strides; where their last dimension is not contiguous, they are
copied, and so are index tensors that are not.

A row that sees no key gives zeros and lse = -inf, or its sink; its gradients are zero. The same
input gives the same bits, backward included, whatever the number of threads.

Errors: a RuntimeError names the op, the argument, what came and what is taken; TypeError,
ValueError and NotImplementedError are for what the op does not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _attention_fake  # noqa: F401  registers itself
from ._attention_args import AttentionArgs
from ._attention_autograd import last_contiguous
from ._attention_dispatch import allows_tf32, attention_forward, plain_attention
from ._grad import needs_grad, refuse_grad
from ._rng_state import rng_state_for
from ._written import written

_kv_cache_append_ = torch.ops.weft.kv_cache_append_.default
_with_kvcache_ = torch.ops.weft.attention_with_kvcache_.default
_rotary = torch.ops.weft.rotary.default
_rotary_ = torch.ops.weft.rotary_.default
_merge = torch.ops.weft.merge_attention_states.default


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (-1, -1),
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
    num_splits: int = 0,
    return_lse: bool = False,
) -> Any:
    r"""softmax(q kᵀ) v with every option; all other functions of attention end here.

    What two queries see of five keys, and five of two, where attention is causal:

        bottom-right, the default     top_left=True
        1 1 1 1 0                     1 0 0 0 0
        1 1 1 1 1                     1 1 0 0 0

        0 0                           1 0
        0 0                           1 1
        0 0                           1 1
        1 0                           1 1
        1 1                           1 1

    Args:
        q: [B, S, H, D], or packed [total_q, H, D] with `cu_seqlens_q`. D is 1 to 512.
        k: [B, T, K, D] with K a divisor of H; packed [total_k, K, D] with `cu_seqlens_k`; or pages
            [pages, page_size, K, D] with `block_table`.
        v: as k, with Dv elements, 1 to 512.
        causal: query i sees no key beyond i + offset, which is T - S, or 0 with `top_left`.
        window_size: (left, right): query i sees the keys i + offset - left to i + offset + right,
            both included; None or less than 0: all.
        top_left: the diagonal of `causal`, `window_size` and `alibi_slopes` begins in the first row
            instead of ending in the last.
        softmax_scale: factor of the scores. Default: 1 / √D.
        softcap: scores become softcap · tanh(score / softcap); 0: they do not.
        bias: added to the scores; any float dtype, any shape that broadcasts to [B, H, S, T]. Has a
            gradient, of the shape [B, H, S, T] before it is summed.
        mask: bool, False where a key is not seen; broadcasts to [B, H, S, T].
        alibi_slopes: [H] or [B, H] (Press, Smith, Lewis: ALiBi, arXiv 2108.12409).
        sinks: [H], a logit without a value that joins each row's softmax (attention sinks).
        dropout_p: probability with which a weight is dropped; those kept are scaled by 1/(1-p).
        rng_state: int64 [2], the (seed, offset) that dropout draws from; element
            ((b · H + h) · S + s) · T + t of :func:`weft.dropout_mask`. Default: drawn from
            PyTorch's generator of q's device, at each replay of a CUDA graph anew.
        cu_seqlens_q, cu_seqlens_k: int32 [B + 1], where each sequence of a packed tensor begins.
            Packed queries may also meet dense k and v, or pages: prefill and decode in one call.
        max_seqlen_q, max_seqlen_k: the longest sequence of packed tensors: S and T. Default: found
            in `cu_seqlens` (which breaks a graph of torch.compile), or all of the block table.
        seqused_q, seqused_k: int32 [B], how many rows of each sequence count.
        leftpad_k: int32 [B], how many keys of a cache do not exist, from its first row on. Key t of
            the formulas, of `bias` and of `mask` is the first after these.
        cache_batch_idx: int32 [B], the row of k and v to read instead of b.
        block_table: int32 [B, n], the pages of each sequence; needs `seqused_k`.
        k_scale, v_scale: float32, for int8 k and v: [K], or by row and head, k's shape without D.
        out_scale: float32 [1]: the result is int8, ``clamp(round((o - shift) / smooth / scale))``.
        out_shift, out_smooth: float32 [H, Dv], with `out_scale`.
        num_splits: parts that the keys are split into, to be worked on at the same time. 0: as
            many as fill the machine.
        return_lse: return lse too.

    Returns:
        out in q's shape with Dv elements, contiguous, in q's dtype or int8; with `return_lse` also
        lse [B, H, S], packed [H, total_q], float32 (float64 for float64), with a gradient. Rows
        beyond `seqused_q` give 0 and -inf.

    Gradients: of q, k, v, bias and sinks, by autograd, once; not through a cache or int8.
    """
    left, right = _window(window_size, causal)
    # fmt: off
    without = not (return_lse or softcap or dropout_p or num_splits) and (
        bias is mask is alibi_slopes is sinks is cu_seqlens_q is cu_seqlens_k is seqused_q
        is leftpad_k is cache_batch_idx is block_table is k_scale is v_scale is out_scale
        is out_shift is out_smooth is None
    )
    # fmt: on
    if without:
        options: dict[str, Any] = {}
        if seqused_k is not None:
            options["seqused_k"] = seqused_k.contiguous()
        if softmax_scale is not None:
            options["softmax_scale"] = softmax_scale
        if left >= 0:
            options["window_left"] = left
        if right >= 0:
            options["window_right"] = right
        if top_left:
            options["top_left"] = True
        out = plain_attention(q, k, v, options)
        if out is not None:
            return out
    if cu_seqlens_q is not None and max_seqlen_q is None:
        max_seqlen_q = _longest(cu_seqlens_q)
    if cu_seqlens_k is not None and max_seqlen_k is None:
        max_seqlen_k = _longest(cu_seqlens_k)
    if block_table is not None and max_seqlen_k is None:
        max_seqlen_k = block_table.shape[-1] * k.shape[1]
    if bias is not None or mask is not None:
        B, S = q.shape[:2]
        if cu_seqlens_q is not None and max_seqlen_q is not None:
            B, S = cu_seqlens_q.shape[0] - 1, max_seqlen_q
        scores = (B, q.shape[-2], S, k.shape[1] if max_seqlen_k is None else max_seqlen_k)
        if bias is not None and bias.requires_grad and bias.shape != scores:
            bias = bias.to(torch.promote_types(bias.dtype, torch.float32))  # summed, then rounded
        bias, mask = _expand("bias", bias, scores), _expand("mask", mask, scores)
    args = AttentionArgs(
        last_contiguous(q),
        last_contiguous(k),
        last_contiguous(v),
        bias,
        mask,
        None if alibi_slopes is None else alibi_slopes.float(),
        None if sinks is None else sinks.float(),
        _contiguous(cu_seqlens_q),
        _contiguous(cu_seqlens_k),
        _contiguous(seqused_q),
        _contiguous(seqused_k),
        rng_state_for(q, dropout_p, rng_state),
        max_seqlen_q or 0,
        max_seqlen_k or 0,
        q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale,
        softcap,
        left,
        right,
        top_left,
        dropout_p,
        allows_tf32(q),
        _contiguous(leftpad_k),
        _contiguous(cache_batch_idx),
        _contiguous(block_table),
        k_scale,
        v_scale,
        out_shift,
        out_smooth,
        out_scale,
        num_splits,
    )
    out, lse = attention_forward(args)
    return (out, lse) if return_lse else out


def _window(window_size: tuple[int | None, int | None], causal: bool) -> tuple[int, int]:
    left, right = window_size
    left = -1 if left is None or left < 0 else left
    return left, 0 if causal else -1 if right is None or right < 0 else right


def _contiguous(index: Tensor | None) -> Tensor | None:
    return index if index is None else index.contiguous()


def _longest(cu_seqlens: Tensor) -> int:
    return int(cu_seqlens.diff().max()) if cu_seqlens.shape[0] > 1 else 0


def _expand(name: str, t: Tensor | None, scores: Sequence[int]) -> Tensor | None:
    """A view of [B, H, S, T]."""
    if t is None:
        return None
    fits = t.dim() <= 4 and all(
        size in (1, whole) for size, whole in zip(reversed(t.shape), reversed(scores), strict=False)
    )
    if not fits:
        raise ValueError(
            f"weft.attention: {name} has shape {list(t.shape)}, expected one that broadcasts to "
            f"{list(scores)} (batch, heads, queries, keys)"
        )
    return t.expand(scores)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    r"""Attention as :func:`torch.nn.functional.scaled_dot_product_attention`.

    A row that the mask hides entirely gives zeros, as there. Beyond torch's: `is_causal` together
    with `attn_mask` applies both, and a float mask may have any float dtype.

    Args:
        query: [\*B, H, S, D].
        key: [\*B, H, T, D]; [\*B, K, T, D] with `enable_gqa`.
        value: [\*B, H, T, Dv]; [\*B, K, T, Dv] with `enable_gqa`.
        attn_mask: broadcasts to [\*B, H, S, T]: bool, True where a key is seen, or added to the
            scores.
        dropout_p: probability with which a weight is dropped, in evaluation too. Which ones follows
            from PyTorch's generator of the device, but they are not those that PyTorch draws.
        is_causal: query i sees the keys 0 to i.
        scale: factor of the scores. Default: 1 / √D.
        enable_gqa: key and value have fewer heads than the query; each serves a group.

    Returns:
        [\*B, H, S, Dv], a view of memory laid out as [\*B, S, H, Dv].
    """
    if has_torch_function_variadic(query, key, value, attn_mask):
        return handle_torch_function(
            scaled_dot_product_attention,
            (query, key, value, attn_mask),
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale,
            enable_gqa,
        )
    alike = query.shape == key.shape == value.shape
    if query.dim() != 4 or not (alike or key.dim() == value.dim() == 4):
        return _of_other_dims(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if not alike and (not enable_gqa or query.shape[0] != key.shape[0]):
        query, key, value = _broadcast(query, key, value, enable_gqa)
    if attn_mask is None and not dropout_p:
        options: dict[str, Any] = {"heads_first": True}
        if scale is not None:
            options["softmax_scale"] = scale
        if is_causal:
            options |= {"window_right": 0, "top_left": True}
        plain = plain_attention(query, key, value, options)
        if plain is not None:
            return plain
    is_bool = attn_mask is not None and attn_mask.dtype == torch.bool
    out = attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        causal=is_causal,
        top_left=True,
        softmax_scale=scale,
        bias=None if is_bool else attn_mask,
        mask=attn_mask if is_bool else None,
        dropout_p=dropout_p,
    )
    return out.transpose(1, 2)


def _broadcast(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same batch, and without `enable_gqa` the same heads, as a matrix product broadcasts."""
    if query.shape[:2] == key.shape[:2] == value.shape[:2]:
        return query, key, value
    dims = 1 if enable_gqa or key.shape[1] == value.shape[1] == 1 else 2
    shape = torch.broadcast_shapes(query.shape[:dims], key.shape[:dims], value.shape[:dims])

    def expand(t: Tensor) -> Tensor:
        return t.expand(*shape, *t.shape[dims:])

    return expand(query), expand(key), expand(value)


def _of_other_dims(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *options: Any
) -> Tensor:
    """Leading dimensions as one batch: torch takes any number of them."""
    least, *_, most = sorted((query.dim(), key.dim(), value.dim()))
    if least < 2:
        raise ValueError(
            "weft.scaled_dot_product_attention: query, key and value have "
            f"{query.dim()}, {key.dim()} and {value.dim()} dimensions, expected 2 or more"
        )
    ndim = max(most, 3)
    lead = torch.broadcast_shapes(*(t.shape[:-3] for t in (query, key, value)))

    def batched(t: Tensor) -> Tensor:
        t = t[(None,) * (ndim - t.dim())]
        return t.expand(*lead, *t.shape[-3:]).reshape(math.prod(lead), *t.shape[-3:])

    if attn_mask is not None and attn_mask.dim() > 3:
        attn_mask = batched(attn_mask)
    out = scaled_dot_product_attention(
        batched(query), batched(key), batched(value), attn_mask, *options
    )
    out = out.reshape(*lead, *out.shape[1:])
    return out if most > 2 else out[0]


def merge_attn_states(
    parts: Tensor | Sequence[Tensor], lses: Tensor | Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    r"""Attention over all keys, from attention over P parts of them.

    .. math:: o = \sum_p e^{lse_p - lse} \, o_p \qquad lse = \log \sum_p e^{lse_p}

    Args:
        parts: [P, B, S, H, Dv], packed [P, total, H, Dv], or a sequence of P tensors.
        lses: float32 [P, B, H, S], packed [P, H, total], or a sequence of P tensors.

    Returns:
        out and lse of the whole, with gradients. A part with lse = -inf counts for nothing.
    """
    parts = parts if isinstance(parts, Tensor) else torch.stack(list(parts))
    lses = lses if isinstance(lses, Tensor) else torch.stack(list(lses))
    return _merge(last_contiguous(parts), lses)


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    r"""Rotary position embedding (Su et al.: RoFormer, arXiv 2104.09864), as flash-attn's.

    Args:
        x: [B, S, H, D], or packed [total, H, D] with `cu_seqlens`; the first R elements turn.
        cos, sin: [rows, R / 2], any float dtype: row s + offset is that of element s of a sequence.
        interleaved: the pairs are (x[2i], x[2i + 1]), as in GPT-J, instead of (x[i], x[i + R / 2]).
        inplace: write into x and return it.
        seqlen_offsets: of all sequences, or [B], int32 or int64.
        cu_seqlens: int32 [B + 1].
        max_seqlen: taken for flash-attn's sake; nothing depends on it.

    Returns:
        x's shape and dtype, with a gradient.
    """
    offsets, offset = None, seqlen_offsets
    if isinstance(seqlen_offsets, Tensor):
        offsets, offset = seqlen_offsets.to(torch.int32).contiguous(), 0
    cu_seqlens = _contiguous(cu_seqlens)
    table = cos.contiguous(), sin.contiguous(), offsets, offset, cu_seqlens, interleaved, False
    if not inplace:
        return _rotary(last_contiguous(x), *table)
    if needs_grad(x, cos, sin) or x.stride(-1) != 1:
        return x.copy_(_rotary(last_contiguous(x), *table))
    _rotary_(x, *table)
    written(x)
    return x


def kv_cache_append_(
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor,
    v: Tensor,
    cache_seqlens: Tensor | None = None,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    block_table: Tensor | None = None,
) -> None:
    """In place: row cache_seqlens[b] + j of sequence b takes new row j. Without gradients.

    Args:
        k_cache, v_cache: [rows, T, K, D], or pages [pages, page_size, K, D] with `block_table`; in
            the dtype of k and v, or int8.
        k, v: [B, S, K, D], or packed [total, K, D] with `cu_seqlens`.
        cache_seqlens: int32 [B], how many rows are there already. Default: none.
        k_scale, v_scale: of int8 caches: float32 [K], given; or the cache's shape without D, and
            written: each row and head has its own, largest magnitude / 127.
        cu_seqlens: int32 [B + 1], where the new rows of each sequence begin.
        cache_batch_idx: int32 [B], the row of the cache instead of b.
        block_table: int32 [B, n], the pages of each sequence.
    """
    refuse_grad("kv_cache_append_", k_cache, v_cache, k, v, what="writing into a cache")
    k, v = last_contiguous(k), last_contiguous(v)
    _kv_cache_append_(
        k_cache,
        v_cache,
        k_scale,
        v_scale,
        k,
        v,
        _contiguous(cache_seqlens),
        _contiguous(cu_seqlens),
        _contiguous(cache_batch_idx),
        _contiguous(block_table),
    )
    written(k_cache, v_cache, k_scale, v_scale)


def attention_with_kvcache_(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor,
    v: Tensor,
    cache_seqlens: Tensor,
    *,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    rotary_interleaved: bool = False,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (-1, -1),
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int = 0,
    return_lse: bool = False,
) -> Any:
    """A step of decoding: k and v into the cache in place, then q attends to all that is there.

    What :func:`apply_rotary_emb` of q and k, :func:`kv_cache_append_` and :func:`attention` give
    one after the other, bit for bit; on a GPU by one kernel where the queries of a group of heads
    fit into a tile of it. Without gradients.

    Args:
        q: [B, S, H, D].
        k_cache, v_cache: [rows, T, K, D], or pages [pages, page_size, K, D] with `block_table`; in
            the dtype of q, or int8.
        k, v: [B, S_new, K, D]: they take the rows cache_seqlens[b] and on.
        cache_seqlens: int32 [B], how many rows are in the cache before.
        rotary_cos, rotary_sin: [rows, R / 2]. k turns by the rows cache_seqlens and on; so does q
            where there is `causal` or a window, else all of q turns by row cache_seqlens.
        rotary_interleaved: pairs are (x[2i], x[2i + 1]) instead of (x[i], x[i + R / 2]).
        k_scale, v_scale: of int8 caches, as :func:`kv_cache_append_` takes them.

    The other arguments are :func:`attention`'s.

    Returns:
        out [B, S, H, Dv]; with `return_lse` also lse [B, H, S].
    """
    refuse_grad("attention_with_kvcache_", q, k_cache, v_cache, k, v, what="writing into a cache")
    left, right = _window(window_size, causal)
    out, lse = _with_kvcache_(
        last_contiguous(q),
        k_cache,
        v_cache,
        k_scale,
        v_scale,
        last_contiguous(k),
        last_contiguous(v),
        cache_seqlens.contiguous(),
        _contiguous(rotary_cos),
        _contiguous(rotary_sin),
        rotary_interleaved,
        None if alibi_slopes is None else alibi_slopes.float(),
        None if sinks is None else sinks.float(),
        q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale,
        softcap,
        left,
        right,
        allows_tf32(q),
        _contiguous(leftpad_k),
        _contiguous(cache_batch_idx),
        _contiguous(block_table),
        num_splits,
    )
    written(k_cache, v_cache, k_scale, v_scale)
    return (out, lse) if return_lse else out
