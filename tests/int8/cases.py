"""What the INT8 tests run on: weights, inputs, and how results are held to the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import weft
from weft import reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# M×N×K off every tile: of rows, of 64 columns, of 4 and 8 of the depth.
SHAPES = ((1, 5, 7), (3, 64, 64), (7, 129, 130), (17, 65, 257), (50, 200, 96))


def name(value: Any) -> str | None:
    """A test id: bfloat16 for torch.bfloat16, 3x64x64 for a shape."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return "x".join(map(str, value)) if isinstance(value, tuple) else None


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, drawn on the CPU so that every backend sees the same, as all here."""
    return torch.randn(shape, device="cpu").to(torch.get_default_device(), dtype)


def integers(*shape: int, bits: int = 8) -> Tensor:
    """All values of an int8 or int4 tensor."""
    most = 1 << (bits - 1)
    drawn = torch.randint(-most, most, shape, dtype=torch.int8, device="cpu")
    return drawn.to(torch.get_default_device())


def scales(*shape: int) -> Tensor:
    return (torch.rand(shape, device="cpu") + 0.1).to(torch.get_default_device()) / 100


def packed(weight: Tensor, bits: int = 8) -> Tensor:
    return weft.pack_int8_weight(weight, bits=bits)


def assert_linear(
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    rounding: float = 0,
) -> None:
    """`result` is the linear layer of x [..., K] and weight [N, K], in float64, rounded once.

    float32's own roundings of the sum, the scales and what is added count in its largest terms;
    `rounding` is what else may be missing of each x, as a share of the largest of its row.
    """
    __tracebackhide__ = True
    wide = [t if t is None else t.double() for t in (x, weight, bias, residual)]
    x64, w64, b64, r64 = wide
    assert x64 is not None and w64 is not None
    truth = reference.int8.linear(x64, w64, b64, activation, r64)
    assert result.shape == truth.shape
    terms = x64.abs() @ w64.abs().t()
    missing = rounding * x64.abs().amax(-1, keepdim=True) * w64.abs().sum(-1)
    largest = terms + (0 if b64 is None else b64.abs()) + (0 if r64 is None else r64.abs())
    info = torch.finfo(result.dtype)
    once = 0.5 * info.eps * truth.abs() + info.tiny * info.eps
    allowed = once + 4 * torch.finfo(torch.float32).eps * largest + 1.2 * missing
    over = (result.double() - truth).abs() - allowed
    assert over.max() <= 0, f"{result.dtype}: {over.max():.3g} over, of {truth.abs().max():.3g}"
