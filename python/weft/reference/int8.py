"""The INT8 family in plain PyTorch: sums of integers, of which none is rounded.

    t = (activation(x) - shift) / smooth
    q = clamp(round(t / scale) + zero_point, -128, 127)
    y = activation(x Wᵀ + bias) + residual

Floats run in the dtype of their operands: give float64 for an oracle.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "silu_mul":
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return x if activation == "none" else getattr(F, activation)(x)


def transform(
    x: Tensor, activation: str = "none", shift: Tensor | None = None, smooth: Tensor | None = None
) -> Tensor:
    """t, which is what is quantised."""
    t = activate(x, activation)
    t = t if shift is None else t - shift
    return t if smooth is None else t / smooth


def _grouped(t: Tensor, granularity: str, group_size: int) -> tuple[Tensor, tuple[int, ...]]:
    """`t` with a dimension for groups, and the dimensions that share a scale."""
    if granularity == "tensor":
        return t, tuple(range(t.dim()))
    if granularity == "channel":
        return t, tuple(range(t.dim() - 1))
    if granularity == "group":
        return t.unflatten(-1, (-1, group_size)), (-1,)
    return t, (-1,)


def scales(
    t: Tensor, granularity: str = "token", group_size: int = 0, symmetric: bool = True
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of every t, in t's shape."""
    grouped, dims = _grouped(torch.atleast_2d(t), granularity, group_size)
    if symmetric:
        scale = grouped.abs().amax(dims, keepdim=True) / 127
    else:
        low = grouped.amin(dims, keepdim=True).clamp(max=0)
        scale = (grouped.amax(dims, keepdim=True).clamp(min=0) - low) / 255
    scale = torch.where(scale == 0, 1, scale).to(torch.float32).to(t.dtype)
    point = torch.zeros_like(scale) if symmetric else torch.round(-128 - low / scale)
    shape = grouped.shape
    return scale.expand(shape).reshape(t.shape), point.expand(shape).reshape(t.shape)


def quantize(t: Tensor, scale: Tensor, zero_point: Tensor | float = 0) -> Tensor:
    return torch.clamp(torch.round(t / scale) + zero_point, -128, 127).to(torch.int8)


def dequantize(values: Tensor, scale: Tensor, zero_point: Tensor | float = 0) -> Tensor:
    return (values - zero_point) * scale


def products(q: Tensor, weight: Tensor, zero_point: Tensor | int = 0) -> Tensor:
    """Σ_k (q - zero_point) w, exact: [..., K] by [N, K] gives [..., N]. No GPU multiplies int64
    matrices; float64 holds these sums as well."""
    return ((q.double() - zero_point) @ weight.double().t()).long()


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """The linear layer on what the integers stand for."""
    y = activate(F.linear(x, weight, bias), activation)
    return y if residual is None else y + residual


def weight(values: Tensor, scale: Tensor, zero_point: Tensor | float = 0) -> Tensor:
    """A weight [N, K] by scales [N] or [N, groups]."""
    n, k = values.shape
    grouped = values.to(scale.dtype).reshape(n, scale.reshape(n, -1).shape[1], -1)
    point = zero_point.reshape(n, -1, 1) if isinstance(zero_point, Tensor) else zero_point
    return ((grouped - point) * scale.reshape(n, -1, 1)).reshape(n, k)


def llm_int8_linear(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    threshold: float = 6.0,
) -> Tensor:
    """int8 but for the columns of x that hold any |x| >= threshold."""
    rows = x.flatten(0, -2)
    outliers = ~(rows.abs() < threshold).all(0) if threshold > 0 else torch.zeros_like(rows[0]) > 0
    rest = torch.where(outliers, 0, rows)
    s, _ = scales(rest)
    y = products(quantize(rest, s), values).to(x.dtype) * s[:, :1] * scale
    y = y + torch.where(outliers, rows, 0) @ weight(values, scale).t()
    y = y if bias is None else y + bias
    return y.unflatten(0, x.shape[:-1])
