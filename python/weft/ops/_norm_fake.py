"""What the norm ops return, without computing it: for meta tensors, torch.compile, torch.export.

Outputs that were not asked for have shape [0].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._fake import register
from ._norm_args import NormArgs, compute_dtype


def _output(x: Tensor, shape, dtype: torch.dtype, present: bool = True) -> Tensor:
    """A new tensor on x's device; what stands for it where it was not asked for."""
    return x.new_empty(shape, dtype=dtype) if present else x.new_empty((0,), dtype=torch.float32)


def _rows(x: Tensor, normalized_ndim: int) -> torch.Size:
    """*N of a tensor [*N, *C]."""
    return x.shape[: x.dim() - normalized_ndim]


def _norm(x, normalized_ndim, weight, bias, eps, zero_centered_weight):
    return x.new_empty(x.shape)


def _add_norm(
    x, residual, weight, bias, eps, is_rms_norm, zero_centered_weight, return_residual
):  # fmt: skip
    return x.new_empty(x.shape), _output(x, x.shape, residual.dtype, return_residual)


def _norm_forward(*args):
    a = NormArgs(*args)
    stats = compute_dtype(a.x.dtype)
    rows = _rows(a.x, a.normalized_ndim)

    has_y1 = a.weight1 is not None or a.bias1 is not None
    y_dtype = a.out_dtype or a.x.dtype
    return (
        _output(a.x, a.x.shape, y_dtype),
        _output(a.x, a.x.shape, y_dtype, has_y1),
        _output(a.x, a.x.shape, a.z_dtype, a.return_residual),
        _output(a.x, rows, stats, a.save_stats and not a.is_rms_norm),
        _output(a.x, rows, stats, a.save_stats),
        _output(a.x, a.x.shape, torch.bool, a.return_dropout_mask),
        _output(a.x, a.x.shape, torch.bool, a.return_dropout_mask and a.x1 is not None),
    )


# The gradients of norm_backward in order: each one's bit in `needs`.
DX, DX1, DRESIDUAL, DRESIDUAL2, DWEIGHT, DBIAS, DWEIGHT1, DBIAS1, DX_BIAS, DLAYERSCALE = (
    1 << i for i in range(10)
)


def _norm_backward(
    dy, dy1, dresidual_out, saved, mean, rstd, normalized_ndim, weight, bias, weight1, x, x_bias,
    rowscale, layerscale, rng_state, dropout_p, residual_alpha, eps, is_rms_norm,
    zero_centered_weight, memory_efficient, x_dtype, residual_dtype, needs,
):  # fmt: skip
    residual_dtype = residual_dtype or saved.dtype
    channels = saved.shape[saved.dim() - normalized_ndim :]

    def rows(bit: int, dtype: torch.dtype) -> Tensor:
        return _output(saved, saved.shape, dtype, bool(needs & bit))

    def vector(bit: int, like: Tensor | None) -> Tensor:
        shape = channels if like is None else like.shape
        dtype = x_dtype if like is None else like.dtype
        return _output(saved, shape, dtype, bool(needs & bit))

    return (
        rows(DX, x_dtype),
        rows(DX1, x_dtype),
        rows(DRESIDUAL, residual_dtype),
        rows(DRESIDUAL2, residual_dtype),
        vector(DWEIGHT, weight),
        vector(DBIAS, weight if bias is None else bias),
        vector(DWEIGHT1, weight1),
        vector(DBIAS1, weight1),
        vector(DX_BIAS, x_bias),
        vector(DLAYERSCALE, layerscale),
    )


def _norm_int8(
    x, normalized_ndim, weight, bias, x_bias, residual, residual2, shift, smooth, scale, zero_point,
    symmetric, residual_alpha, eps, is_rms_norm, zero_centered_weight, return_residual,
    residual_dtype,
):  # fmt: skip
    per_row = (*_rows(x, normalized_ndim), *(1,) * normalized_ndim)
    dynamic = scale is None
    z_dtype = residual_dtype or (x.dtype if residual is None else residual.dtype)
    return (
        _output(x, x.shape, torch.int8),
        _output(x, per_row, torch.float32, dynamic),
        _output(x, per_row, torch.int32, dynamic and not symmetric),
        _output(x, x.shape, z_dtype, return_residual),
    )


def _dropout_mask(rng_state, numel, p, stream):
    return rng_state.new_empty((numel,), dtype=torch.bool)


def _nothing(*args, **kwargs) -> None:
    """Of ops that only write into their arguments."""


_FAKES: dict[str, Callable[..., Any]] = {
    "layer_norm": _norm,
    "rms_norm": _norm,
    "layer_norm.out": _nothing,
    "rms_norm.out": _nothing,
    "fused_add_rms_norm_": _nothing,
    "add_norm": _add_norm,
    "norm_forward": _norm_forward,
    "norm_forward.out": _nothing,
    "norm_backward": _norm_backward,
    "norm_int8": _norm_int8,
    "norm_int8.out": _nothing,
    "dropout_mask": _dropout_mask,
}


for _name, _fake in _FAKES.items():
    register(_name, _fake)
