"""Elements more than 2^31 apart, in memory of which few pages are touched: the same bits as side by
side. More blocks than a dimension of old grids held, and a million keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import weft
from backends import Backend

from .cases import Shape, check, draw, integers, name, problem

pytestmark = pytest.mark.slow
DIMENSIONS = {"batch": 0, "rows": 1, "heads": 2}


class Memory:
    """Tensors with one stride, or what it adds up to, of more than 2^31 elements."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.data = torch.empty(2**31 + 2**22, dtype=dtype, device=device)
        self.used = 0

    def apart(self, t: Tensor, dim: int) -> Tensor:
        strides = list(t.stride())
        strides[dim] = (2**31 // (t.shape[dim] - 1) // 64 + 1) * 64
        far = self.data.as_strided(t.shape, strides, self.used)
        self.used += t.numel() // 64 * 64 + 64
        return far.copy_(t)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=name)
@pytest.mark.parametrize("dim", DIMENSIONS)
def test_gradients(backend: Backend, dtype: torch.dtype, dim: str) -> None:
    call = problem(("causal",), dtype, Shape(B=2, S=70, T=70, H=2, K=2), backend.device)
    memory, at = Memory(dtype, backend.device), DIMENSIONS[dim]
    far = call | {x: memory.apart(call[x], at) for x in "qkv"}
    dout = draw(call["q"].shape[:3] + call["v"].shape[3:], dtype, backend.device)

    def run(call: dict[str, Any], dout: Tensor) -> list[Tensor]:
        leaves = {x: call[x].detach().requires_grad_() for x in "qkv"}
        out, lse = weft.attention(**call | leaves, return_lse=True)
        return [out, lse, *torch.autograd.grad(out, list(leaves.values()), dout)]

    for ours, expected in zip(run(far, memory.apart(dout, at)), run(call, dout), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_bias(backend: Backend, dim: str) -> None:
    call = problem(("bias",), torch.float32, Shape(B=2, S=5, T=70, H=2, K=2), backend.device)
    memory = Memory(torch.float32, backend.device)
    far = call | {"bias": memory.apart(call["bias"], {"batch": 0, "heads": 1, "rows": 2}[dim])}
    assert torch.equal(weft.attention(**far), weft.attention(**call))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=name)
@pytest.mark.parametrize("dim", DIMENSIONS)
def test_pages(backend: Backend, dtype: torch.dtype, dim: str) -> None:
    """A cache that grows, and is read."""
    q, k, v = (draw((2, 1, heads, 64), torch.bfloat16, backend.device) for heads in (4, 2, 2))
    caches = [(draw((6, 16, 2, 64), device=backend.device) * 30).to(dtype) for _ in range(2)]
    call: dict[str, Any] = {
        "block_table": integers([3, 0, 5, 1, 4, 2], backend.device).view(2, 3),
    }
    if dtype == torch.int8:
        call |= {f"{x}_scale": torch.full((2,), 0.03, device=backend.device) for x in "kv"}
    memory = Memory(dtype, backend.device)
    far = [memory.apart(t, DIMENSIONS[dim]) for t in caches]
    used = integers([40, 3], backend.device)
    ours, expected = (
        weft.attention_with_kvcache_(q, *into, k, v, used, **call) for into in (far, caches)
    )
    assert torch.equal(ours, expected)
    for t, side_by_side in zip(far, caches, strict=True):
        assert torch.equal(t, side_by_side)


def test_many_blocks(backend: Backend) -> None:
    """Of one key each, whose value is the result: of a score of 0 and few bits, exactly."""
    k, v = (draw((65_540, 1, 1, 8), torch.bfloat16, backend.device).float() for _ in range(2))
    assert torch.equal(weft.attention(torch.zeros_like(k), k, v), v)


def test_a_million_keys(backend: Backend) -> None:
    shape = Shape(B=1, S=1, T=2**20 + 5, H=2, K=1, D=8, Dv=8)
    check(problem(("causal",), torch.bfloat16, shape, backend.device))
