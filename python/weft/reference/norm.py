"""The norm family in plain PyTorch.

    u = dropout((x + x_bias) * rowscale * layerscale)
    z = u + dropout(x1) + residual_alpha * residual + residual2    what `prenorm` returns
    y = (z - mean(z)) / sqrt(var(z) + eps) * weight + bias         LayerNorm, biased variance
    y = z / sqrt(mean(z^2) + eps) * weight + bias                  RMSNorm
    q = round((y - shift) / smooth / scale) + zero_point           the int8 ends

Every operation runs in the dtype of its operands, with no hidden upcast: give float64 for an
oracle, and bfloat16 to see what plain PyTorch makes of it. Arguments that only steer memory (`out`,
`memory_efficient`) do not exist here. Autograd differentiates everything but the rounding of the
int8 ends.

Shapes: N leading dimensions of any number, C normalised ones. Weights have the shape of C, or [H,
C] with H the last of N.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import philox


def normalize(z: Tensor, ndim: int, eps: float, is_rms_norm: bool) -> Tensor:
    """Normalises the last `ndim` dimensions of `z` [*N, *C]."""
    dims = tuple(range(-ndim, 0))
    if not is_rms_norm:
        z = z - z.mean(dims, keepdim=True)
    return z / torch.sqrt(z.square().mean(dims, keepdim=True) + eps)


def affine(
    xhat: Tensor, weight: Tensor | None, bias: Tensor | None, zero_centered_weight: bool
) -> Tensor:
    if weight is not None:
        xhat = xhat * (1 + weight if zero_centered_weight else weight)
    return xhat if bias is None else xhat + bias


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    zero_centered_weight: bool = False,
) -> Tensor:
    xhat = normalize(input, len(normalized_shape), eps, is_rms_norm=False)
    return affine(xhat, weight, bias, zero_centered_weight)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    bias: Tensor | None = None,
    zero_centered_weight: bool = False,
) -> Tensor:
    if eps is None:  # that of the dtype in which torch computes: 16-bit types in float32
        eps = torch.finfo(torch.promote_types(input.dtype, torch.float32)).eps
    xhat = normalize(input, len(normalized_shape), eps, is_rms_norm=True)
    return affine(xhat, weight, bias, zero_centered_weight)


def drop(x: Tensor, p: float, mask: Tensor | None) -> Tensor:
    """`x` where `mask` keeps it, scaled up so that its expectation stays; without a mask, `x`."""
    return x if mask is None else torch.where(mask, x, 0) / (1 - p)


def dropout_masks(
    x: Tensor, x1: Tensor | None, dropout_p: float, rng_state: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The masks of `x` and `x1` that (seed, offset) stands for."""
    if dropout_p == 0:
        return None, None
    assert rng_state is not None, "dropout needs masks or rng_state"
    draw = partial(philox.dropout_mask, rng_state, tuple(x.shape), dropout_p)
    return draw(stream=0), None if x1 is None else draw(stream=1)


def add(
    x: Tensor,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    rowscale: Tensor | None = None,
    layerscale: Tensor | None = None,
    x_bias: Tensor | None = None,
    residual2: Tensor | None = None,
    residual_alpha: float = 1.0,
) -> Tensor:
    """z: what the fused functions normalise. `rowscale` has the shape of N."""
    u = x if x_bias is None else x + x_bias
    if rowscale is not None:
        u = u * rowscale.view(*rowscale.shape, *[1] * (x.dim() - rowscale.dim()))
    if layerscale is not None:
        u = u * layerscale
    z = drop(u, dropout_p, dropout_mask)
    if x1 is not None:
        z = z + drop(x1, dropout_p, dropout_mask1)
    if residual is not None:
        z = z + residual_alpha * residual
    if residual2 is not None:
        z = z + residual2
    return z


def layer_norm_fn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    zero_centered_weight: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
    out_dtype: torch.dtype | None = None,
    *,
    x_bias: Tensor | None = None,
    layerscale: Tensor | None = None,
    residual2: Tensor | None = None,
    residual_alpha: float = 1.0,
    rng_state: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
) -> Tensor | tuple[Tensor | None, ...]:
    """flash-attn's function: y, [y1 if weight1], [z if prenorm], [the two masks if asked for].

    Dropout takes the masks given, else those of `rng_state`. z is returned in the residual's dtype
    (without a residual: float32 if `residual_in_fp32`, else x's), but normalised as it is.
    """
    if dropout_mask is None:
        dropout_mask, dropout_mask1 = dropout_masks(x, x1, dropout_p, rng_state)
    z = add(
        x,
        residual,
        x1,
        dropout_p=dropout_p,
        dropout_mask=dropout_mask,
        dropout_mask1=dropout_mask1,
        rowscale=rowscale,
        layerscale=layerscale,
        x_bias=x_bias,
        residual2=residual2,
        residual_alpha=residual_alpha,
    )
    xhat = normalize(z, 1, eps, is_rms_norm)
    dtype = out_dtype or x.dtype
    results: list[Tensor | None] = [affine(xhat, weight, bias, zero_centered_weight).to(dtype)]
    if weight1 is not None:
        results.append(affine(xhat, weight1, bias1, zero_centered_weight).to(dtype))
    if prenorm:
        widest = torch.float32 if residual_in_fp32 and x.dtype != torch.float64 else x.dtype
        results.append(z.to(widest if residual is None else residual.dtype))
    if return_dropout_mask:
        results += [dropout_mask, dropout_mask1]
    return tuple(results) if len(results) > 1 else results[0]  # type: ignore[return-value]


rms_norm_fn = partial(layer_norm_fn, is_rms_norm=True)


def fused_add_rms_norm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    zero_centered_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    """What vLLM's in-place op leaves in `input` and `residual`."""
    z = input + residual
    return affine(normalize(z, 1, eps, True), weight, None, zero_centered_weight), z


class Int8(NamedTuple):
    values: Tensor  # int8 [*N, *C]
    scale: Tensor  # [*N, 1] dynamic, [1] static
    zero_point: Tensor | int  # int32 [*N, 1] dynamic and asymmetric, else one integer
    residual: Tensor  # z


def quantize(
    t: Tensor, ndim: int, scale: Tensor | None, zero_point: int, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor | int]:
    """int8 values of `t` with (value - zero_point) * scale close to it.

    With a scale: as told. Without: one per row. Symmetric: [-absmax, absmax] onto [-127, 127].
    Asymmetric: [min(t, 0), max(t, 0)] onto [-128, 127]. A row of zeros has scale 1.
    """
    if scale is not None:
        return clamp_to_int8(t / scale, zero_point, -128), scale, zero_point
    rows = t.flatten(-ndim)
    lowest = rows.amin(-1, keepdim=True).clamp(max=0)
    highest = rows.amax(-1, keepdim=True).clamp(min=0)
    scale = torch.maximum(-lowest, highest) / 127 if symmetric else (highest - lowest) / 255
    scale = torch.where(scale == 0, 1, scale)
    points = 0 if symmetric else torch.round(-128 - lowest / scale).to(torch.int32)
    values = clamp_to_int8(rows / scale, points, -127 if symmetric else -128)
    return values.view(t.shape), scale, points


def clamp_to_int8(steps: Tensor, zero_point: Tensor | int, lowest: int) -> Tensor:
    """Rounds halves to even, then moves by the zero point, then saturates."""
    return (torch.round(steps) + zero_point).clamp(lowest, 127).to(torch.int8)


def layer_norm_int8(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    normalized_shape: Sequence[int] | None = None,
    scale: Tensor | None = None,
    zero_point: int = 0,
    symmetric: bool = True,
    shift: Tensor | None = None,
    smooth: Tensor | None = None,
    residual: Tensor | None = None,
    residual2: Tensor | None = None,
    residual_alpha: float = 1.0,
    x_bias: Tensor | None = None,
    zero_centered_weight: bool = False,
    is_rms_norm: bool = False,
) -> Int8:
    """The norm of z = x + x_bias + residual_alpha * residual + residual2, quantised to int8."""
    ndim = 1 if normalized_shape is None else len(normalized_shape)
    z = add(x, residual, x_bias=x_bias, residual2=residual2, residual_alpha=residual_alpha)
    t = affine(normalize(z, ndim, eps, is_rms_norm), weight, bias, zero_centered_weight)
    t = t if shift is None else t - shift
    t = t if smooth is None else t / smooth
    return Int8(*quantize(t, ndim, scale, zero_point, symmetric), z)


def rms_norm_int8(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    **options: Any,
) -> Int8:
    return layer_norm_int8(x, weight, bias, eps, is_rms_norm=True, **options)
