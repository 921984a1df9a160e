"""The reference itself: against torch, and against what a few lines of arithmetic say."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from weft.reference import attention as reference
from weft.reference import philox

from .cases import RNG, Shape, draw, integers, problem


def by_torch(call: dict[str, Tensor], **options) -> Tensor:  # type: ignore[no-untyped-def]
    q, k, v = (call[x].transpose(1, 2) for x in "qkv")
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
    return out.transpose(1, 2)


def test_plain_attention_is_torchs() -> None:
    call = problem((), torch.float64)
    mask = torch.rand(2, 4, 19, 37) < 0.6
    bias = draw((2, 4, 19, 37), torch.float64)
    for ours, theirs in (
        ({}, {}),
        ({"softmax_scale": 0.3}, {"scale": 0.3}),
        ({"mask": mask}, {"attn_mask": mask}),
        ({"bias": bias}, {"attn_mask": bias}),
        ({"causal": True, "top_left": True}, {"is_causal": True}),
    ):
        assert_close(reference.attention(**call, **ours), by_torch(call, **theirs))


@pytest.mark.parametrize("S, T", [(2, 5), (5, 2)])
def test_the_diagonal(S: int, T: int) -> None:
    bottom_right = [[t <= i + T - S for t in range(T)] for i in range(S)]
    top_left = [[t <= i for t in range(T)] for i in range(S)]
    for in_corner, expected in ((False, bottom_right), (True, top_left)):
        assert reference.visible(S, T, (-1, 0), in_corner).tolist() == expected
    assert reference.visible(3, 3, (1, 0), False).tolist() == [
        [True, False, False], [True, True, False], [False, True, True]
    ]  # fmt: skip


def test_one_query_by_hand() -> None:
    """softcap, bias, ALiBi, sink and lse, written out."""
    q, k, v = torch.tensor([2.0]), torch.tensor([1.0, -1.0]), torch.tensor([10.0, 20.0])
    out, lse = reference.attention(
        q.view(1, 1, 1, 1), k.view(1, 2, 1, 1), v.view(1, 2, 1, 1), softmax_scale=0.5, softcap=3.0,
        bias=torch.tensor([0.25, 0.5]), alibi_slopes=torch.tensor([0.1]), sinks=torch.tensor([0.7]),
        return_lse=True,
    )  # fmt: skip
    scores = [3 * math.tanh(1 / 3) + 0.25 - 0.1, 3 * math.tanh(-1 / 3) + 0.5]
    total = sum(map(math.exp, [*scores, 0.7]))
    assert_close(lse.item(), math.log(total))
    expected = (10 * math.exp(scores[0]) + 20 * math.exp(scores[1])) / total
    assert_close(out.item(), expected, rtol=1e-6, atol=0)


def test_dropped_weights() -> None:
    s = Shape(B=2, S=3, T=5, H=2, K=2, D=4, Dv=5)
    call = problem((), torch.float64, s)
    call["v"] = torch.eye(5, dtype=torch.float64)[None, :, None].expand(2, 5, 2, 5)
    weights = reference.attention(**call).transpose(1, 2)
    dropped = reference.attention(**call, dropout_p=0.4, rng_state=RNG).transpose(1, 2)
    kept = philox.dropout_mask(RNG, (2, 2, 3, 5), 0.4)
    assert_close(dropped, weights * kept / 0.6)


def test_sequences_lie_where_they_are_said_to() -> None:
    call = problem((), torch.float64, Shape(B=1, S=4, T=6))
    q, k, v = (call[x] for x in "qkv")
    expected = reference.attention(q[:, :3], k[:, 2:5], v[:, 2:5])

    left = {"seqused_k": integers([5]), "leftpad_k": integers([2])}
    used = reference.attention(q, k, v, seqused_q=integers([3]), **left)
    assert_close(used[:, :3], expected)
    assert used[:, 3:].count_nonzero() == 0

    index = {"cu_seqlens_q": integers([0, 3]), "cu_seqlens_k": integers([2, 5])}
    assert_close(reference.attention(q[0], k[0], v[0], **index)[:3], expected[0])

    pages = {"block_table": integers([1, 2]).view(1, 2), "seqused_k": integers([3])}
    paged = (t[0].view(3, 2, 2, 40) for t in (k, v))
    assert_close(reference.attention(q[:, :3], *paged, **pages), expected)

    rows = (torch.cat([t, t[:, [2, 3, 4] * 2]]) for t in (k, v))
    cache = {"cache_batch_idx": integers([1]), "seqused_k": integers([3])}
    assert_close(reference.attention(q[:, :3], *rows, **cache), expected)


def test_int8_ends() -> None:
    x = draw((5, 2, 8), torch.float64)
    values, scale = reference.quantize_rows(x)
    assert values.abs().amax(-1).eq(127).all()
    assert (reference.dequantize(values, scale, torch.float64) - x).abs().max() < scale.max() / 2
    steps = torch.tensor([0.5, 1.5, -0.5, 200.0, -200.0])
    assert reference.quantize(steps, torch.tensor(1.0)).tolist() == [0, 2, 0, 127, -128]
    shifted = reference.quantize(steps, torch.tensor(0.5), torch.tensor(0.5), torch.tensor(2.0))
    assert shifted.tolist() == [0, 1, -1, 127, -128]


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_a_complex_product(interleaved: bool) -> None:
    x, angle = draw((2, 5, 3, 10), torch.float64), draw((20, 4), torch.float64)
    turned = reference.apply_rotary_emb(
        x, angle.cos(), angle.sin(), interleaved, seqlen_offsets=torch.tensor([3, 0])
    )
    pairs = x[..., :8].unflatten(-1, (4, 2)) if interleaved else x[..., :8].unflatten(-1, (2, 4)).mT
    position = torch.tensor([[3], [0]]) + torch.arange(5)
    numbers = (
        torch.view_as_complex(pairs.contiguous()) * torch.exp(1j * angle[position])[:, :, None]
    )
    expected = torch.view_as_real(numbers)
    expected = expected.flatten(-2) if interleaved else expected.mT.flatten(-2)
    assert_close(turned, torch.cat([expected, x[..., 8:]], -1))
    back = reference.apply_rotary_emb(
        turned, angle.cos(), angle.sin(), interleaved, torch.tensor([3, 0]), conjugate=True
    )
    assert_close(back, x)


def test_merged_parts_are_the_whole() -> None:
    call = problem((), torch.float64)
    q, k, v = (call[x] for x in "qkv")
    parts = [
        reference.attention(q, k[:, a:b], v[:, a:b], return_lse=True)
        for a, b in ((0, 9), (9, 9), (9, 37))
    ]
    out, lse = (torch.stack(x) for x in zip(*parts, strict=True))
    assert_close(
        reference.merge_attn_states(out, lse), reference.attention(q, k, v, return_lse=True)
    )
