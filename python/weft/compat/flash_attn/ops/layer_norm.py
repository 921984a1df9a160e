"""``flash_attn.ops.layer_norm``, but for its functions over subsets of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....nn import DropoutAddLayerNorm
from ....ops.norm import layer_norm_fn

__all__ = [
    "DropoutAddLayerNorm",
    "dropout_add_layer_norm",
    "dropout_add_layer_norm_parallel_residual",
    "layer_norm",
]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """LayerNorm over the last dimension."""
    return dropout_add_layer_norm(x, None, weight, bias, 0.0, epsilon)


def dropout_add_layer_norm(
    x0: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dropout_p: float,
    epsilon: float,
    rowscale: Tensor | None = None,
    layerscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
    *,
    is_rms_norm: bool = False,
) -> Any:
    """``norm(dropout(x0 * rowscale * layerscale) + residual)``.

    Returns y alone, or the tuple of y, the sum (with `prenorm`) and the mask (with
    `return_dropout_mask`; uint8, 1 where kept). `residual_in_fp32` only has an effect without a
    residual: else the sum has the residual's dtype.
    """
    y, *others = _tuple(
        layer_norm_fn(
            x0,
            weight,
            bias,
            residual,
            eps=epsilon,
            dropout_p=dropout_p,
            rowscale=rowscale,
            layerscale=layerscale,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
            is_rms_norm=is_rms_norm,
            return_dropout_mask=return_dropout_mask,
        )
    )
    if return_dropout_mask:
        others[-2:] = [_uint8(others[-2], x0)]
    return (y, *others) if others else y


def dropout_add_layer_norm_parallel_residual(
    x0: Tensor,
    x1: Tensor | None,
    residual: Tensor | None,
    weight0: Tensor,
    bias0: Tensor | None,
    weight1: Tensor | None,
    bias1: Tensor | None,
    dropout_p: float,
    epsilon: float,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
    *,
    is_rms_norm: bool = False,
) -> Any:
    """Two norms of ``dropout(x0) + dropout(x1) + residual``.

    Returns the tuple of y0, y1 (None without `weight1`), the sum (with `prenorm`) and the masks of
    x0 and x1 (with `return_dropout_mask`; uint8, 1 where kept).
    """
    y0, *others = _tuple(
        layer_norm_fn(
            x0,
            weight0,
            bias0,
            residual,
            x1,
            weight1,
            bias1,
            eps=epsilon,
            dropout_p=dropout_p,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
            is_rms_norm=is_rms_norm,
            return_dropout_mask=return_dropout_mask,
        )
    )
    if weight1 is None:
        others.insert(0, None)
    if return_dropout_mask:
        others[-2:] = [_uint8(mask, x0) for mask in others[-2:]]
    return (y0, *others)


def _tuple(results: Tensor | tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return results if isinstance(results, tuple) else (results,)


def _uint8(mask: Tensor | None, x: Tensor) -> Tensor:
    """The mask as upstream has it; all ones where nothing is dropped."""
    return torch.ones_like(x, dtype=torch.uint8) if mask is None else mask.view(torch.uint8)
