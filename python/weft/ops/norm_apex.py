"""NVIDIA Apex's norm functions: its names and arguments, on weft's ops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._norm_args import NormArgs, compute_dtype
from ._norm_dispatch import norm_forward


def fused_layer_norm_affine(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalized_shape: int | Sequence[int],
    eps: float = 1e-6,
    memory_efficient: bool = False,
) -> Tensor:
    """LayerNorm with weight and bias; the output has the input's dtype.

    Args:
        input: [*N, *C].
        weight, bias: [*C].
        normalized_shape: C, or an int where that is one dimension.
        eps: added to the variance.
        memory_efficient: keep the output for backward, not the input.

    Under autocast all tensors are cast to autocast's dtype first, here and in the functions below.
    """
    return _norm(input, weight, bias, normalized_shape, eps, memory_efficient, False)


def fused_layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    eps: float = 1e-6,
    memory_efficient: bool = False,
) -> Tensor:
    """LayerNorm without weight and bias; the output has the input's dtype."""
    return _norm(input, None, None, normalized_shape, eps, memory_efficient, False)


def mixed_dtype_fused_layer_norm_affine(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalized_shape: int | Sequence[int],
    eps: float = 1e-6,
    memory_efficient: bool = False,
) -> Tensor:
    """LayerNorm with weight and bias; the output has the weight's dtype."""
    return _norm(input, weight, bias, normalized_shape, eps, memory_efficient, False, mixed=True)


def fused_rms_norm_affine(
    input: Tensor,
    weight: Tensor,
    normalized_shape: int | Sequence[int],
    eps: float = 1e-6,
    memory_efficient: bool = False,
) -> Tensor:
    """RMSNorm with a weight; the output has the input's dtype."""
    return _norm(input, weight, None, normalized_shape, eps, memory_efficient, True)


def fused_rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    eps: float = 1e-6,
    memory_efficient: bool = False,
) -> Tensor:
    """RMSNorm without a weight; the output has the input's dtype."""
    return _norm(input, None, None, normalized_shape, eps, memory_efficient, True)


def mixed_dtype_fused_rms_norm_affine(
    input: Tensor,
    weight: Tensor,
    normalized_shape: int | Sequence[int],
    eps: float = 1e-6,
    memory_efficient: bool = False,
) -> Tensor:
    """RMSNorm with a weight; the output has the weight's dtype."""
    return _norm(input, weight, None, normalized_shape, eps, memory_efficient, True, mixed=True)


def manual_rms_norm(
    input: Tensor, normalized_shape: int | Sequence[int], weight: Tensor | None, eps: float
) -> Tensor:
    """RMSNorm with the dtypes of Apex's Python code.

    The output is float32 (float64 for float64 inputs), but has the dtype of a 16-bit weight.
    """
    out_dtype = compute_dtype(input.dtype)
    if weight is not None:
        half = weight.dtype in (torch.float16, torch.bfloat16)
        out_dtype = weight.dtype if half else torch.promote_types(out_dtype, weight.dtype)
    return _norm(input, weight, None, normalized_shape, eps, False, True, out_dtype=out_dtype)


def _norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalized_shape: int | Sequence[int],
    eps: float,
    memory_efficient: bool,
    is_rms_norm: bool,
    *,
    mixed: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if input.shape[-len(shape) :] != shape:
        raise ValueError(
            f"weft: normalized_shape is {list(shape)}, expected the last dimensions of input, "
            f"which has shape {list(input.shape)}"
        )
    kind = input.device.type
    if out_dtype is None and torch.amp.is_autocast_available(kind):
        if torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            input = input.to(dtype)
            weight = None if weight is None else weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
    if out_dtype is None:
        out_dtype = weight.dtype if mixed and weight is not None else input.dtype
    args = NormArgs(
        input,
        len(shape),
        weight,
        bias,
        eps=eps,
        is_rms_norm=is_rms_norm,
        memory_efficient=memory_efficient,
        out_dtype=out_dtype,
    )
    return norm_forward(args)[0]
