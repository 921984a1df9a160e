"""What torch.library.opcheck says of every op: schema, fake tensors, autograd, AOT dispatch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.library import opcheck

from weft.ops._attention_args import OPTIONS, AttentionArgs

from .cases import RNG, draw, integers

OPS = torch.ops.weft


def rand(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    return draw(shape, dtype).requires_grad_(grad)


def training_samples(grad: bool) -> Iterator[AttentionArgs]:
    like = {"grad": grad}
    q, k, v = rand(2, 5, 4, 8, **like), rand(2, 7, 2, 8, **like), rand(2, 7, 2, 6, **like)
    yield AttentionArgs(q, k, v, softmax_scale=0.4)
    yield AttentionArgs(
        q,
        k,
        v,
        bias=rand(2, 4, 5, 7, **like),
        mask=rand(2, 4, 5, 7) > -1,
        alibi_slopes=rand(4).abs(),
        sinks=rand(4, **like),
        rng_state=RNG,
        softcap=2.0,
        window_left=3,
        window_right=0,
        dropout_p=0.25,
    )
    yield AttentionArgs(
        *(t.detach().bfloat16().requires_grad_(grad) for t in (q, k, v)),
        mask=(rand(5, 7) > -1).expand(2, 4, 5, 7),
        seqused_q=integers([3, 5]),
        seqused_k=integers([7, 2]),
        top_left=True,
    )
    yield AttentionArgs(
        rand(9, 4, 8, **like),
        rand(12, 4, 8, **like),
        rand(12, 4, 8, **like),
        cu_seqlens_q=integers([0, 4, 9]),
        cu_seqlens_k=integers([0, 5, 12]),
        max_seqlen_q=5,
        max_seqlen_k=7,
    )


def inference_samples() -> Iterator[AttentionArgs]:
    q, k, v = rand(2, 3, 4, 8), rand(6, 4, 2, 8), rand(6, 4, 2, 8)
    used = integers([5, 8])
    pages = AttentionArgs(
        q, k, v, seqused_k=used, max_seqlen_k=8, block_table=integers([3, 0, 5, 1]).view(2, 2)
    )
    yield pages
    yield pages._replace(
        q=rand(4, 4, 8), cu_seqlens_q=integers([0, 3, 4]), max_seqlen_q=3, num_splits=2
    )
    int8 = {"k": k.mul(30).to(torch.int8), "v": v.mul(30).to(torch.int8)}
    yield pages._replace(**int8, k_scale=torch.full((2,), 0.03), v_scale=rand(6, 4, 2).abs())
    yield AttentionArgs(
        q, k, v, leftpad_k=integers([0, 2]), cache_batch_idx=integers([4, 1]), window_right=0
    )
    yield AttentionArgs(
        q,
        k[:2],
        v[:2],
        out_shift=rand(4, 8),
        out_smooth=rand(4, 8).abs() + 0.1,
        out_scale=torch.tensor([0.02]),
    )


@pytest.mark.parametrize("grad", [False, True])
def test_forward(grad: bool) -> None:
    for args in training_samples(grad):
        opcheck(OPS.attention_forward.default, tuple(args))


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("lengths", [None, [3, 1]], ids=str)
def test_plain(heads_first: bool, lengths: list[int] | None) -> None:
    q, k, v = rand(2, 6, 6, 8), rand(2, 3, 3, 8), rand(2, 3, 3, 6)
    used = None if lengths is None else integers(lengths)
    opcheck(OPS.attention.default, (q, k, v, used, 0.4, -1, 0, True, heads_first, False))


def test_forward_for_inference() -> None:
    for args in inference_samples():
        opcheck(OPS.attention_forward.default, tuple(args))


def test_backward() -> None:
    for i, args in enumerate(training_samples(grad=False)):
        out, lse = OPS.attention_forward(*args)
        upstream = torch.randn_like(out), torch.randn_like(lse) if i % 2 else None
        wanted = args.bias is not None, args.sinks is not None
        opcheck(
            OPS.attention_backward.default,
            (*upstream, args.q, args.k, args.v, out, lse, *args[OPTIONS], *wanted),
        )


def test_kv_cache_append() -> None:
    new = rand(2, 3, 2, 8), rand(2, 3, 2, 8)
    used = integers([1, 4])
    caches = rand(3, 8, 2, 8), rand(3, 8, 2, 8)
    rows = None, integers([2, 0]), None
    opcheck(OPS.kv_cache_append_.default, (*caches, None, None, *new, used, *rows))
    pages = tuple(torch.zeros(6, 4, 2, 8, dtype=torch.int8) for _ in range(2))
    scales = torch.zeros(6, 4, 2), torch.zeros(6, 4, 2)
    table = None, None, integers([3, 0, 5, 1]).view(2, 2)
    opcheck(OPS.kv_cache_append_.default, (*pages, *scales, *new, used, *table))


def test_attention_with_kvcache() -> None:
    q, new = rand(2, 3, 4, 8), (rand(2, 3, 2, 8), rand(2, 3, 2, 8))
    used, turn = integers([1, 4]), (rand(20, 3), rand(20, 3), False)
    options = None, None, 0.4, 0.0, -1, 0, False
    op = OPS.attention_with_kvcache_.default
    caches, rows = (rand(3, 8, 2, 8), rand(3, 8, 2, 8)), integers([2, 0])
    opcheck(op, (q, *caches, None, None, *new, used, *turn, *options, None, rows, None, 0))
    pages = tuple(torch.zeros(6, 4, 2, 8, dtype=torch.int8) for _ in range(2))
    scales, table = (torch.ones(6, 4, 2), torch.ones(6, 4, 2)), integers([3, 0, 5, 1]).view(2, 2)
    absent = None, None, False
    opcheck(op, (q, *pages, *scales, *new, used, *absent, *options, None, None, table, 0))


@pytest.mark.parametrize("grad", [False, True])
def test_rotary(grad: bool) -> None:
    cos, sin = rand(20, 3), rand(20, 3)
    x = rand(2, 5, 4, 8, grad=grad)
    opcheck(OPS.rotary.default, (x, cos, sin, None, 7, None, False, False))
    opcheck(OPS.rotary.default, (x, cos, sin, integers([3, 0]), 0, None, True, True))
    packed = rand(9, 4, 8, grad=grad)
    opcheck(OPS.rotary.default, (packed, cos, sin, None, 0, integers([0, 4, 9]), False, False))
    opcheck(OPS.rotary_.default, (x.detach(), cos, sin, None, 7, None, False, False))


@pytest.mark.parametrize("grad", [False, True])
def test_merge(grad: bool) -> None:
    opcheck(
        OPS.merge_attention_states.default,
        (rand(3, 2, 5, 4, 8, grad=grad), rand(3, 2, 4, 5, grad=grad)),
    )
    opcheck(
        OPS.merge_attention_states.default, (rand(2, 9, 4, 8, grad=grad), rand(2, 4, 9, grad=grad))
    )
