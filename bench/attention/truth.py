"""What every contender of an attention case must return: weft.reference in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase
from bench.attention.plain import two_calls
from bench.case import Inputs
from weft.reference.attention import attention

ROWS = 2048
"""Queries at a time: their scores are what takes memory."""


def truth(case: AttentionCase, inputs: Inputs) -> tuple[Tensor, ...]:
    exact = {
        name: t.detach().double().requires_grad_(t.requires_grad)
        for name, t in inputs.items()
        if t.is_floating_point()
    }
    q, k, v = (exact[name] for name in "qkv")
    if case.recipe == "varlen":
        starts = inputs["cu_seqlens"]
        return (attention(q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts),)
    if case.int8:
        k, v = (inputs[f"{n}_int8"] * exact[f"{n}_scale"] for n in "kv")
    if case.recipe == "mixed":
        return (two_calls(_heads_first, case.chunk, q, k, v),)
    out = _attention(case, q, k, v, exact.get("mask"), exact.get("do"))
    if not case.trains:
        return (out,)
    gradients = [t.grad for t in (q, k, v) if t.grad is not None]
    return tuple(gradients) if case.recipe == "backward" else (out, *gradients)


def _heads_first(*qkv: Tensor) -> Tensor:
    return attention(*(t.transpose(1, 2) for t in qkv)).transpose(1, 2)


def _attention(
    case: AttentionCase, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, do: Tensor | None
) -> Tensor:
    """A key head and a block of queries at a time, with its gradients where there is `do`. The last
    of a causal block's queries sees the last of the keys that it is given."""
    B, _, S, _ = q.shape
    groups = []
    for g, (heads, k_head, v_head) in enumerate(
        zip(q.split(case.group, 1), k.split(1, 1), v.split(1, 1), strict=True)
    ):
        blocks = []
        for begin in range(0, S, ROWS):
            end = min(begin + ROWS, S)
            seen = slice(end if case.causal else None)
            block = attention(
                heads[:, :, begin:end].transpose(1, 2),
                k_head[:, :, seen].transpose(1, 2),
                v_head[:, :, seen].transpose(1, 2),
                causal=case.causal,
                bias=None if mask is None else mask[:, :, begin:end, seen],
            )
            if do is not None:
                of_heads = do[:, g * case.group : (g + 1) * case.group, begin:end]
                block.backward(of_heads.transpose(1, 2))
            blocks.append(block.detach().transpose(1, 2))
        groups.append(torch.cat(blocks, 2))
    return torch.cat(groups, 1)
