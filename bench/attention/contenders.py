"""weft and its peers on the attention cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import weft
from bench.attention import onnx, plain
from bench.attention.cases import BF16_CACHE, CUDNN, FLASH, PRODUCT, AttentionCase
from bench.case import Bound, Inputs, Offer
from bench.peers import COMPILED, EAGER, ONNX, WEFT, as_tuple, aten_op, compiled, why_not

GROUPED = "grouped by hand"
"""torch with the query heads of a group as the rows of one product, so that the cache is read once;
torch's own attention reads it once for each query head."""

TWO_CALLS = "weft in two calls"
"""The yardstick of prefill and decode in one."""

Bind = Callable[[AttentionCase, Inputs], Bound]


def offers(case: AttentionCase, threads: int) -> list[Offer]:
    """Everything that can compute the case, and for each peer that cannot, why."""

    def offer(peer: str, bind: Bind, variant: str = "", competes: bool = True) -> Offer:
        return Offer(peer, variant, build=lambda: partial(bind, case), competes=competes)

    found = [offer(WEFT, _bind_weft)]
    if case.recipe == "varlen":
        found.append(offer(EAGER, plain.bind_loop, "a sequence at a time"))
        found.append(offer(EAGER, plain.bind_padded, "padded"))
    else:
        found.append(offer(EAGER, _bind_eager, _paged(case)))
    if case.recipe == "mixed":
        found.append(offer(TWO_CALLS, _bind_weft_twice, competes=False))
    elif case.device == "cuda" and case.recipe != "decode":
        found.append(offer(CUDNN, partial(_bind_by, plain.by_cudnn), _paged(case)))
        found.append(
            Offer(FLASH, reason="one head size for q, k and v")
            if case.value_size
            else offer(FLASH, partial(_bind_by, plain.by_flash), _paged(case))
        )
    if case.device == "cuda" and case.recipe != "decode":
        found.append(offer(PRODUCT, plain.product, competes=False))
    if case.recipe == "decode":
        found += [
            offer(GROUPED, partial(_bind_grouped, function), f"{variant} {_paged(case)}".strip())
            for variant, function in plain.GROUPED.items()
        ]
    found.append(_compiled(case))
    missing = why_not(ONNX) or onnx.why_not(case)
    found += [Offer(ONNX, reason=missing)] if missing else onnx.offers(case, threads)
    if case.int8 == "int8":
        found.append(offer(BF16_CACHE, _bind_weft_cache, competes=False))
    if case.shape[2] == 1:
        found.append(aten_op("q"))
    return found


def _paged(case: AttentionCase) -> str:
    """What torch has for pages."""
    return "pages gathered first" if case.page else ""


def _bind_eager(case: AttentionCase, tensors: Inputs) -> Bound:
    attention = plain.options(case, F.scaled_dot_product_attention)
    return plain.bind_dense(case, attention, tensors)


def _bind_by(attention: plain.Attention, case: AttentionCase, tensors: Inputs) -> Bound:
    return plain.bind_dense(case, partial(attention, is_causal=case.causal), tensors)


def _bind_grouped(function: plain.Attention, case: AttentionCase, tensors: Inputs) -> Bound:
    return plain.bind_dense(case, function, tensors)


def _compiled(case: AttentionCase) -> Offer:
    """Only decode is written out, for there is something to fuse."""
    missing = why_not(COMPILED)
    if case.recipe != "decode":
        missing = missing or "calls what eager calls"
    if missing:
        return Offer(COMPILED, reason=missing)

    def build() -> Callable[[Inputs], Bound]:
        function = compiled(plain.of_cache(case, plain.products))
        return lambda tensors: Bound(partial(function, *plain.arguments(case, tensors)), as_tuple)

    return Offer(COMPILED, _paged(case), build=build)


def _bind_weft(case: AttentionCase, tensors: Inputs) -> Bound:
    if case.recipe == "varlen":
        q, k, v, starts = (tensors[name] for name in ("q", "k", "v", "cu_seqlens"))
        longest = max(case.lengths)
        run = partial(weft.flash_attn_varlen_func, q, k, v, starts, starts, longest, longest)
        return Bound(run, as_tuple)
    if case.recipe == "mixed":
        return _bind_weft_mixed(case, tensors)
    if case.recipe == "decode" or case.page:
        return (_bind_weft_int8 if case.int8 else _bind_weft_cache)(case, tensors)
    attention = plain.options(case, weft.scaled_dot_product_attention)
    return plain.bind_dense(case, attention, tensors)


def _bind_weft_cache(case: AttentionCase, tensors: Inputs) -> Bound:
    q, k, v = (_tokens_first(tensors[name]) for name in "qkv")
    table = None
    if case.page:
        k, v, table = plain.pages(case, tensors)
    return Bound(
        partial(
            weft.flash_attn_with_kvcache,
            q, k, v, cache_seqlens=_lengths(case), block_table=table, causal=case.causal,
        ),
        _heads_first,
    )  # fmt: skip


def _bind_weft_mixed(case: AttentionCase, tensors: Inputs) -> Bound:
    q, k, v, table = plain.arguments(case, tensors)
    B, _, S, _ = case.shape
    starts = torch.tensor([0, *range(case.chunk, case.chunk + B)], dtype=torch.int32)
    run = partial(
        weft.attention,
        q, k, v, cu_seqlens_q=starts.to(case.device), max_seqlen_q=case.chunk,
        seqused_k=_lengths(case), max_seqlen_k=S, block_table=table,
    )  # fmt: skip
    return Bound(run, as_tuple)


def _bind_weft_twice(case: AttentionCase, tensors: Inputs) -> Bound:
    q, k, v, table = plain.arguments(case, tensors)
    first, others, lengths = q[None, : case.chunk], q[case.chunk :, None], _lengths(case)
    call = weft.flash_attn_with_kvcache

    def run() -> tuple[Tensor, ...]:
        return (
            call(first, k, v, cache_seqlens=lengths[:1], block_table=table[:1]),
            call(others, k, v, cache_seqlens=lengths[1:], block_table=table[1:]),
        )

    return Bound(run, as_tuple)


def _bind_weft_int8(case: AttentionCase, tensors: Inputs) -> Bound:
    q, k, v, *scales = map(_tokens_first, plain.arguments(case, tensors))
    shape = k.shape[:3] if case.int8 == "int8" else (-1,)
    k_scale, v_scale = (t.view(shape) for t in scales)
    run = partial(
        weft.attention, q, k, v, k_scale=k_scale, v_scale=v_scale, seqused_k=_lengths(case)
    )
    return Bound(run, _heads_first)


def _tokens_first(t: Tensor) -> Tensor:
    """[B, T, heads, …], as flash-attn lays out its caches, of [B, heads, T, …]."""
    return t.transpose(1, 2).contiguous()


def _heads_first(out: Tensor) -> tuple[Tensor]:
    return (out.transpose(1, 2),)


def _lengths(case: AttentionCase) -> Tensor:
    """How many keys of the cache count: all of them."""
    B, _, T, _ = case.shape
    return torch.full((B,), T, dtype=torch.int32, device=case.device)
