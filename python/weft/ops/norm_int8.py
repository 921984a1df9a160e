"""Norms that end in int8: y is quantised while it is still in registers.

    t = (y - shift) / smooth
    q = clamp(round(t / scale) + zero_point, -128, 127)            t is about (q - zero_point) *
    scale

Shift and smooth move outliers of single channels into the weights that follow (SmoothQuant, arXiv
2211.10438; Outlier Suppression+, arXiv 2304.09145). Inference only: rounding has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._written import written

_norm_int8 = torch.ops.weft.norm_int8.default
_norm_int8_out = torch.ops.weft.norm_int8.out


class Int8Output(NamedTuple):
    """A quantised norm: about ``(values - zero_point) * scale``, which broadcast as they are.

    values: int8 [*N, *C].
    scale: float32, one per row [*N, 1, ..., 1], or the one that was given.
    zero_point: int32, one per row [*N, 1, ..., 1], for dynamic asymmetric scales; else an int.
    residual: z [*N, *C] with `prenorm`, else None.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | int
    residual: Tensor | None


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
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    zero_centered_weight: bool = False,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
    zero_point_out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> Int8Output:
    r"""LayerNorm of ``z = x + x_bias + residual_alpha * residual + residual2``, quantised to int8.

    Static where `scale` is given, else dynamic, with a scale for each row:

    * symmetric: scale = max|t| / 127, values from -127 to 127, zero point 0;
    * asymmetric: scale = (max(t, 0) - min(t, 0)) / 255, values from -128 to 127,
      zero_point = round(-128 - min(t, 0) / scale).

    A row of zeros has scale 1.

    Args:
        x: [\*N, \*C].
        weight, bias: [\*C], or None.
        eps: added to the variance.
        normalized_shape: C. Default: the last dimension of x.
        scale: float32, one element: the static scale. Default: dynamic.
        zero_point: of the static scale, -128 to 127.
        symmetric: of the dynamic scales.
        shift, smooth: [\*C], subtracted from y, and divided by.
        residual, residual2: [\*N, \*C], added to x.
        residual_alpha: factor of `residual`.
        x_bias: [\*C], added to x.
        prenorm: return z too.
        residual_in_fp32: z is float32 (where there is no `residual`; else it has that one's dtype).
        zero_centered_weight: multiply by ``weight + 1``.
        out, scale_out, zero_point_out, residual_out: written and returned instead of new tensors.

    Returns:
        :class:`Int8Output`.
    """
    return _quantized_norm(
        "layer_norm_int8",
        False,
        x,
        weight,
        bias,
        eps,
        normalized_shape,
        scale,
        zero_point,
        symmetric,
        shift,
        smooth,
        residual,
        residual2,
        residual_alpha,
        x_bias,
        prenorm,
        residual_in_fp32,
        zero_centered_weight,
        (out, scale_out, zero_point_out, residual_out),
    )


def rms_norm_int8(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
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
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    zero_centered_weight: bool = False,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
    zero_point_out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> Int8Output:
    """:func:`weft.layer_norm_int8` with RMSNorm; the same arguments, results and errors."""
    return _quantized_norm(
        "rms_norm_int8",
        True,
        x,
        weight,
        bias,
        eps,
        normalized_shape,
        scale,
        zero_point,
        symmetric,
        shift,
        smooth,
        residual,
        residual2,
        residual_alpha,
        x_bias,
        prenorm,
        residual_in_fp32,
        zero_centered_weight,
        (out, scale_out, zero_point_out, residual_out),
    )


def _quantized_norm(
    op: str,
    is_rms_norm: bool,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    normalized_shape: Sequence[int] | None,
    scale: Tensor | None,
    zero_point: int,
    symmetric: bool,
    shift: Tensor | None,
    smooth: Tensor | None,
    residual: Tensor | None,
    residual2: Tensor | None,
    residual_alpha: float,
    x_bias: Tensor | None,
    prenorm: bool,
    residual_in_fp32: bool,
    zero_centered_weight: bool,
    outs: tuple[Tensor | None, ...],
) -> Int8Output:
    ndim = 1 if normalized_shape is None else len(normalized_shape)
    if normalized_shape is not None and x.shape[-ndim:] != tuple(normalized_shape):
        raise ValueError(
            f"weft.{op}: normalized_shape is {list(normalized_shape)}, expected the last "
            f"dimensions of x, which has shape {list(x.shape)}"
        )
    if scale is None and zero_point != 0:
        raise ValueError(f"weft.{op}: zero_point belongs to a static scale; none was given")
    z_dtype = x.dtype if residual is None else residual.dtype
    if residual is None and residual_in_fp32 and x.dtype != torch.float64:
        z_dtype = torch.float32
    new_residual = prenorm and not (
        x_bias is None and residual is None and residual2 is None and z_dtype == x.dtype
    )
    args = (
        x,
        ndim,
        weight,
        bias,
        x_bias,
        residual,
        residual2,
        shift,
        smooth,
        scale,
        zero_point,
        symmetric,
        residual_alpha,
        eps,
        is_rms_norm,
        zero_centered_weight,
    )
    points = scale is None and not symmetric  # drawn per row
    if all(t is None for t in outs):
        q, scales, zero_points, z = _norm_int8(*args, new_residual, z_dtype)
        scales = scales if scale is None else scale
    else:
        q, scales, zero_points, z = _outputs(x, ndim, outs, scale, points, new_residual, z_dtype)
        _norm_int8_out(
            *args,
            False,
            z_dtype,
            out=q,
            scale_out=scales if scale is None else None,
            zero_point_out=zero_points if points else None,
            residual_out=z,
        )
        written(*outs)
    kept = z if new_residual or outs[3] is not None else x
    return Int8Output(
        q,
        scales,
        zero_points if points else (zero_point if scale is not None else 0),
        kept if prenorm or outs[3] is not None else None,
    )


def _outputs(
    x: Tensor,
    ndim: int,
    outs: tuple[Tensor | None, ...],
    scale: Tensor | None,
    points: bool,
    new_residual: bool,
    z_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The tensors given, and new ones for those that are needed besides."""
    out, scale_out, zero_point_out, residual_out = outs
    per_row = (*x.shape[: x.dim() - ndim], *(1,) * ndim)
    if out is None:
        out = x.new_empty(x.shape, dtype=torch.int8)
    if scale_out is None:
        scale_out = scale if scale is not None else x.new_empty(per_row, dtype=torch.float32)
    if zero_point_out is None and points:
        zero_point_out = x.new_empty(per_row, dtype=torch.int32)
    if residual_out is None and new_residual:
        residual_out = x.new_empty(x.shape, dtype=z_dtype)
    return out, scale_out, zero_point_out, residual_out
