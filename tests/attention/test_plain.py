"""weft::attention, the op of few arguments: what attention_forward gives, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import weft
from backends import Backend

from .cases import FLOATS, draw, integers, name

dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=name)
WINDOWS = [(-1, -1, False), (-1, 0, False), (-1, 0, True), (3, 2, False)]


def heads_first(*tensors: Tensor) -> list[Tensor]:
    """As torch's attention takes them, the same memory."""
    return [t.transpose(1, 2) for t in tensors]


def both(
    q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int, bool], used: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """With few arguments, and with many."""
    left, right, top_left = window
    scale = q.shape[-1] ** -0.5
    plain = torch.ops.weft.attention(q, k, v, used, scale, left, right, top_left, False, False)
    options = {"window_size": (left, right), "top_left": top_left, "return_lse": True}
    options["seqused_k"] = used
    return plain, weft.attention(q, k, v, **options)[0]


@dtypes
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(
    "S, T, used",
    [
        (1, 1, None), (1, 700, None), (1, 700, [700, 33]), (5, 0, None), (0, 5, None),
        (70, 33, None), (70, 33, [0, 20]),
    ],
)  # fmt: skip
def test_same_bits(
    backend: Backend,
    dtype: torch.dtype,
    window: tuple[int, int, bool],
    S: int,
    T: int,
    used: list[int] | None,
) -> None:
    lengths = None if used is None else integers(used, backend.device)
    q, k, v = (
        draw(shape, dtype, backend.device)
        for shape in ((2, S, 4, 24), (2, T, 2, 24), (2, T, 2, 40))
    )
    plain, forward = both(q, k, v, window, lengths)
    assert torch.equal(plain, forward) and plain.is_contiguous()
    options = {"window_size": window[:2], "top_left": window[2], "seqused_k": lengths}
    assert torch.equal(weft.attention(q, k, v, **options), forward)
    scale, first = q.shape[-1] ** -0.5, heads_first(q, k, v)
    out = torch.ops.weft.attention(*first, lengths, scale, *window, True, False)
    assert out.shape == (2, 4, S, 40) and torch.equal(out.transpose(1, 2), forward)
    assert out.transpose(1, 2).is_contiguous()


def test_views(backend: Backend) -> None:
    """Strided heads are read where they lie, elements that are apart are copied."""
    qkv = draw((2, 9, 3, 4, 48), torch.float32, backend.device)
    for q, k, v in (qkv[..., 3:35].unbind(2), qkv[..., ::2].unbind(2)):
        plain, forward = both(q, k, v, (-1, 0, False))
        assert torch.equal(plain, forward)
        dense, _ = both(q.contiguous(), k.contiguous(), v.contiguous(), (-1, 0, False))
        assert torch.equal(plain, dense)


def test_who_calls_it(backend: Backend) -> None:
    """Calls without options that nobody differentiates; the others go to attention_forward."""
    q, k, v = (draw((1, 4, 2, 16), torch.float32, backend.device) for _ in range(3))

    def ops(*tensors: Tensor, **options: object) -> set[str]:
        with torch.profiler.profile() as profile:
            weft.attention(*tensors, **options)  # type: ignore[arg-type]
            weft.scaled_dot_product_attention(*heads_first(*tensors))
        return {e.key for e in profile.key_averages() if e.key.startswith("weft::attention")}

    assert ops(q, k, v, causal=True) == {"weft::attention"}
    assert ops(q, k, v, seqused_k=integers([3], backend.device)) == {"weft::attention"}
    assert ops(q, k, v, softcap=1.0) == {"weft::attention", "weft::attention_forward"}
    assert ops(q.clone().requires_grad_(), k, v) == {"weft::attention_forward"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
def test_autocast(dtype: torch.dtype) -> None:
    q, k, v = (draw((2, 5, 3, 16)) for _ in range(3))
    with torch.autocast("cpu", dtype=dtype):
        ours = weft.attention(q, k, v), weft.scaled_dot_product_attention(*heads_first(q, k, v))
    expected = weft.attention(q.to(dtype), k.to(dtype), v.to(dtype))
    assert torch.equal(ours[0], expected) and torch.equal(ours[1].transpose(1, 2), expected)
