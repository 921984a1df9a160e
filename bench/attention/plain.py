"""The recipes around any attention of torch's signature, and torch's own ways to compute them.

An attention takes q [B, H, S, D], k and v [B, key heads, T, D].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.attention.cases import AttentionCase
from bench.case import Bound, Inputs
from bench.peers import as_tuple

Attention = Callable[..., Tensor]


def options(case: AttentionCase, attention: Attention) -> Attention:
    return partial(attention, is_causal=case.causal, enable_gqa=case.group > 1)


def bind_dense(case: AttentionCase, attention: Attention, tensors: Inputs) -> Bound:
    """All but packed sequences."""
    if case.recipe == "backward":
        return Bound(backward(attention, **tensors), as_tuple)
    if case.trains:
        return Bound(partial(train, attention, **tensors), as_tuple)
    mask = {"attn_mask": tensors["mask"]} if case.mask else {}
    if case.recipe == "mixed":
        attention = partial(two_calls, attention, case.chunk)
    attention = of_cache(case, attention)
    return Bound(partial(attention, *arguments(case, tensors), **mask), as_tuple)


def of_cache(case: AttentionCase, attention: Attention) -> Attention:
    """Of what arguments() gives."""
    if case.int8:
        return partial(dequantise_first, attention)
    return partial(gather_first, attention) if case.page else attention


def arguments(case: AttentionCase, tensors: Inputs) -> list[Tensor]:
    if case.page:
        return [tensors["q"], *pages(case, tensors)]
    names = ("q", "k_int8", "v_int8", "k_scale", "v_scale") if case.int8 else ("q", "k", "v")
    return [tensors[name] for name in names]


def pages(case: AttentionCase, tensors: Inputs) -> list[Tensor]:
    """k and v as pages [pages, page, heads, D] in no order, and the table [B, pages of each]."""
    k, v = (tensors[name].transpose(1, 2) for name in "kv")
    table = torch.randperm(k.shape[0] * k.shape[1] // case.page, device=k.device)

    def paged(t: Tensor) -> Tensor:
        found = t.new_empty(len(table), case.page, *t.shape[2:])
        found[table] = t.reshape(found.shape)
        return found

    return [paged(k), paged(v), table.view(len(k), -1).to(torch.int32)]


def gather_first(attention: Attention, q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    def rows(t: Tensor) -> Tensor:
        found = t.index_select(0, table.flatten()).view(len(table), -1, *t.shape[2:])
        return found.transpose(1, 2)

    return attention(q, rows(k), rows(v))


def two_calls(attention: Attention, chunk: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of `mixed`: the chunk over the first sequence's keys, one query over those of each other."""
    first, others = q[:chunk].transpose(0, 1)[None], q[chunk:, :, None]
    prompt, decoded = attention(first, k[:1], v[:1]), attention(others, k[1:], v[1:])
    return torch.cat([prompt[0].transpose(0, 1), decoded[:, :, 0]])


def train(attention: Attention, q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> tuple[Tensor, ...]:
    """Forward, then the gradients."""
    out = attention(q, k, v)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), do)


def backward(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, do: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """Computes o now; what it returns computes the gradients, again at every call."""
    out = attention(q, k, v)
    return partial(torch.autograd.grad, out, (q, k, v), do, retain_graph=True)


def dequantise_first(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, k_scale: Tensor, v_scale: Tensor
) -> Tensor:
    def floats(x: Tensor, scale: Tensor) -> Tensor:
        return x.to(q.dtype) * scale.to(q.dtype)

    return attention(q, floats(k, k_scale), floats(v, v_scale))


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Decode, written out: the queries of a group are the rows of one product."""
    rows = q.view(*k.shape[:2], -1, q.shape[-1])  # [B, key heads, group, D]
    p = torch.softmax(rows @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
    return (p @ v).view(q.shape)


def rows_of_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Decode, the queries of a group given as a sequence of queries."""
    rows = q.view(*k.shape[:2], -1, q.shape[-1])
    return F.scaled_dot_product_attention(rows, k, v).reshape(q.shape)


def by_cudnn(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    op = torch.ops.aten._scaled_dot_product_cudnn_attention
    return op(q, k, v, None, q.requires_grad, 0.0, is_causal)[0]


def by_flash(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]


def product(case: AttentionCase, tensors: Inputs) -> Bound:
    """A square product of as many operations, as far as whole tiles go."""
    n = max(round((case.flops / 2) ** (1 / 3) / 128), 1) * 128
    a, b = torch.randn(2, n, n, dtype=case.dtype, device=case.device)
    return Bound(partial(torch.mm, a, b), as_tuple)


GROUPED: dict[str, Attention] = {"bmm": products, "SDPA": rows_of_sdpa}


def bind_loop(case: AttentionCase, tensors: Inputs) -> Bound:
    """Packed sequences one by one."""
    q, k, v = (tensors[name].transpose(0, 1).unsqueeze(0) for name in "qkv")  # [1, H, total, D]
    bounds = list(pairwise(tensors["cu_seqlens"].tolist()))

    def run() -> Tensor:
        parts = [
            F.scaled_dot_product_attention(*(t[:, :, begin:end] for t in (q, k, v)))
            for begin, end in bounds
        ]
        return torch.cat([part[0].transpose(0, 1) for part in parts])

    return Bound(run, as_tuple)


def bind_padded(case: AttentionCase, tensors: Inputs) -> Bound:
    """Packed sequences as a padded batch, which takes no time to make: a model that pads, pads
    once."""
    q, k, v = (padded(tensors[name], case.lengths) for name in "qkv")
    seen = torch.arange(q.shape[2]) < torch.tensor(case.lengths)[:, None]
    run = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=seen[:, None, None])

    def packed(out: Tensor) -> tuple[Tensor]:
        rows = [o[:, :n].transpose(0, 1) for o, n in zip(out, case.lengths, strict=True)]
        return (torch.cat(rows),)

    return Bound(run, packed)


def padded(packed: Tensor, lengths: Sequence[int]) -> Tensor:
    """[B, H, S, D] of [total, H, D]."""
    rows = packed.split(list(lengths))
    return torch.nn.utils.rnn.pad_sequence(list(rows), True).transpose(1, 2).contiguous()
