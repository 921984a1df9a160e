"""INT8: quantisers, packed weights, and the linear layers on them.

    q = clamp(round(t / scale) + zero_point, -128, 127), t = (activation(x) - shift) / smooth
    y = activation(x Wᵀ + bias) + residual

with x and W int8 (`int8_linear`), W alone int8 or int4 (`weight_only_linear`), or both int8 but for
the columns of x that hold outliers (`llm_int8_linear`). Weights are packed once; what packing made
of them belongs to weft, and checkpoints keep the plain int8 weight and its scales.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from . import _int8_autocast, _int8_autograd, _int8_fake  # noqa: F401  they register themselves
from ._grad import has_tangent, needs_grad
from ._int8_autocast import autocast_dtype

_MAGIC = 0x74666577  # "weft", which every packed weight begins with

_quantize = torch.ops.weft.int8_quantize.default
_dequantize = torch.ops.weft.int8_dequantize.default
_pack = torch.ops.weft.int8_pack.default
_unpack = torch.ops.weft.int8_unpack.default
_int8_linear = torch.ops.weft.int8_linear.default
_weight_only_linear = torch.ops.weft.weight_only_linear.default
_llm_int8_linear = torch.ops.weft.llm_int8_linear.default


class Quantized(NamedTuple):
    """About ``(values - zero_point) * scale``.

    values: int8, the shape of t, or transposed.
    scale: float32; [] of a tensor, [..., 1] of tokens, [C] of channels, [..., C / group] of groups.
    zero_point: int32, as scale; None if symmetric.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None


def quantize_int8(
    x: Tensor,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    granularity: str = "token",
    group_size: int = 0,
    symmetric: bool = True,
    activation: str = "none",
    shift: Tensor | None = None,
    smooth: Tensor | None = None,
    transposed: bool = False,
) -> Quantized:
    r"""Quantises t = (activation(x) - shift) / smooth to int8, to the nearest, ties to even.

    Static where `scale` is given, else dynamic:

    * symmetric: scale = max\|t\| / 127, values from -127 to 127, zero point 0;
    * asymmetric: scale = (max(t, 0) - min(t, 0)) / 255, values from -128 to 127,
      zero_point = round(-128 - min(t, 0) / scale).

    Where t is 0 throughout, the scale is 1. Where it holds NaN or infinity, the scale is that and
    the values are the zero point; by a static scale NaN becomes the zero point, infinity the last
    value.

    Args:
        x: [..., C], float32, bfloat16 or float16; [..., 2 C] for silu_mul.
        scale: float32, of the shape that `granularity` gives scales.
        zero_point: int32, as scale, -128 to 127. Default: 0.
        granularity: what has a scale of its own: "tensor", "token" (a row; of a weight [N, K], an
            output channel), "channel" (an index of the last dimension), or "group" (`group_size`
            elements of a row).
        group_size: a divisor of C.
        symmetric: of dynamic scales.
        activation: "none", "relu", "gelu", "gelu_tanh", "silu", or "silu_mul":
            silu(x[..., :C]) * x[..., C:].
        shift, smooth: float32 [C].
        transposed: values are tᵀ, [C, rows], as the product of a weight's gradient takes them;
            scales as they would be else.

    Returns:
        :class:`Quantized`.
    """
    options = activation, granularity, group_size, symmetric, transposed
    values, scales, points = _quantize(x, scale, zero_point, shift, smooth, *options)
    if scale is not None:
        return Quantized(values, scale, zero_point)
    return Quantized(values, scales, None if symmetric else points)


def dequantize_int8(
    values: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(values - zero_point) * scale, for every granularity of :func:`weft.quantize_int8`.

    Args:
        values: int8 [..., C].
        scale: float32; its shape says which values a scale belongs to. [C] is of channels, also
            where there are as many rows: a scale for each row is [..., 1].
        zero_point: int32, as scale. Default: 0.
        dtype: of the result.
    """
    granularity, group_size = _granularity(values, scale)
    return _dequantize(values, scale, zero_point, granularity, group_size, dtype)


def _granularity(values: Tensor, scale: Tensor) -> tuple[str, int]:
    """The granularity that has scales of this shape, and its group size."""
    *rows, C = values.shape
    if scale.dim() == 0:
        return "tensor", 0
    if scale.shape == (*rows, 1):
        return "token", 0
    if scale.shape == (C,):
        return "channel", 0
    if scale.shape[:-1] == tuple(rows) and scale.shape[-1] and C % scale.shape[-1] == 0:
        return "group", C // scale.shape[-1]
    raise ValueError(
        f"weft.dequantize_int8: scale has shape {list(scale.shape)}, expected [], "
        f"{[*rows, 1]}, {[C]} or {rows} and a divisor of {C}"
    )


def pack_int8_weight(weight: Tensor, *, bits: int = 8) -> Tensor:
    """A weight as the kernels read it: opaque, for this version of weft and this kind of device.

    Args:
        weight: int8 [N, K], any strides (a Conv1D's [K, N] transposed); of 4 bits, -8 to 7 each. K
            is at most 2^24.
        bits: 8, or 4: two to a byte. Values beyond 4 bits are refused, but on a GPU under
            torch.compile, where they become the nearest.

    Returns:
        uint8 [bytes], which :func:`weft.unpack_int8_weight` undoes.
    """
    if not weight.is_cuda or torch.compiler.is_compiling():
        return _pack(weight, bits)
    if bits == 4:
        _check_nibbles(weight)  # kernels on a GPU cannot refuse what they find
    packed = _pack(weight, bits)
    n, k = weight.shape
    _remember(packed, n, k, bits)
    return packed


def _check_nibbles(weight: Tensor) -> None:
    if weight.numel() and not -8 <= int(weight.amin()) <= int(weight.amax()) <= 7:
        raise RuntimeError(
            "weft.int8_pack: weight holds values that are not of 4 bits, expected -8 to 7"
        )


# What packed weights on GPUs hold, whose headers the host does not read: by id, while they live.
_held: dict[int, tuple[weakref.ref[Tensor], tuple[int, ...]]] = {}


def _remember(packed: Tensor, n: int, k: int, bits: int) -> None:
    def forget(gone: weakref.ref[Tensor], key: int = id(packed)) -> None:
        if key in _held and _held[key][0] is gone:
            del _held[key]

    _held[id(packed)] = weakref.ref(packed, forget), (n, k, bits)


def _check_held(
    op: torch._ops.OpOverload, x: Tensor, packed: Tensor, weight_scale: Tensor, bits: int
) -> None:
    """Weights of other shapes may be as long in packed form."""
    ref, held = _held.get(id(packed), (None, ()))
    expected = (*weight_scale.shape[:1], *x.shape[-1:], bits)
    if ref is not None and ref() is packed and held != expected:
        raise RuntimeError(
            f"weft.{op._opname}: packed holds a {list(held[:2])} weight of {held[2]} bits, "
            f"expected {list(expected[:-1])} of {bits}"
        )


def unpack_int8_weight(packed: Tensor) -> Tensor:
    """The int8 weight [N, K] that was packed."""
    header = packed[:64].clone().view(torch.int64)
    if packed.dtype == torch.uint8 and header.numel() == 8:
        first, n, k, bits = header[:4].tolist()
        if first & 0xFFFFFFFF == _MAGIC:
            return _unpack(packed, n, k, bits)
    raise ValueError("weft.unpack_int8_weight: packed is no packed weight")


def int8_linear(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    symmetric: bool = True,
    shift: Tensor | None = None,
    smooth: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: Tensor | None = None,
    out_zero_point: int = 0,
) -> Tensor:
    """W8A8: x and the weight in int8, their products summed exactly in int32.

    A float x is quantised within, by its rows' own scales or by `x_scale`, as
    :func:`weft.quantize_int8` does it; an int8 x is taken as it is. A row with NaN or infinity
    gives NaN (in int8, which has none, out_zero_point).

    Gradients, where they are asked for, are those of the linear layer without rounding: of x, bias
    and residual, without activation.

    Args:
        x: [..., K].
        packed: of an int8 weight [N, K].
        weight_scale: float32 [N] (one for all: ``scale.expand(N)``).
        bias: [N].
        x_scale: float32, one element; of an int8 x one, or one a row.
        x_zero_point: int32, as x_scale, -128 to 127. Default: 0.
        symmetric: of dynamic scales alone.
        shift, smooth: float32 [K]: (x - shift) / smooth is what is quantised.
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".
        residual: [..., N], added behind the activation.
        out_dtype: default x's, or float32 for an int8 x, or int8 with out_scale. torch.int32: the
            sums as they are.
        out_scale, out_zero_point: the result in int8, by this scale of one element.

    Returns:
        [..., N].
    """
    if out_dtype is None:
        if out_scale is not None:
            out_dtype = torch.int8
        else:
            out_dtype = torch.float32 if x.dtype == torch.int8 else autocast_dtype(x)
    args = (
        x,
        packed,
        weight_scale,
        x_scale,
        x_zero_point,
        shift,
        smooth,
        bias,
        residual,
        out_scale,
        out_zero_point,
        activation,
        symmetric,
        out_dtype,
    )
    return _run(_int8_linear, args)


def weight_only_linear(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    weight_zero_point: Tensor | None = None,
    bits: int = 8,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """W8A16 and W4A16: the weight in int8 or int4, x in floats.

    x is rounded to 16 bits (bfloat16) or 24 (others) below the largest |x| of its row, and its
    products with the weight are summed exactly. A row with NaN or infinity gives NaN.

    Gradients: as :func:`weft.int8_linear`.

    Args:
        x: [..., K].
        packed: of an int8 or int4 weight [N, K].
        weight_scale: float32 [N], or [N, K / group] for groups of a multiple of 8; read fastest
            where memory goes along N: ``scale.t().contiguous().t()``.
        bias: [N].
        weight_zero_point: float32, as weight_scale: w stands for (w - zero_point) * scale.
        bits: 8 or 4, as packed.
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".
        residual: [..., N], added behind the activation.

    Returns:
        [..., N] in x's dtype.
    """
    args = (x, packed, weight_scale, weight_zero_point, bias, residual, activation, bits)
    return _run(_weight_only_linear, args)


def llm_int8_linear(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    threshold: float = 6.0,
    activation: str = "none",
    residual: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """LLM.int8 (arXiv 2208.07339): :func:`weft.int8_linear` but for the columns with outliers.

    Columns of x that hold any |x| >= threshold take no part in the rows' scales and are multiplied
    in floats, with the weight's int8 values dequantised, before the result is stored. NaN and
    infinity are outliers: their rows become what floats make of them, NaN or infinity.

    Args:
        x: [..., K].
        packed: of an int8 weight [N, K].
        weight_scale: float32 [N].
        bias: [N].
        threshold: 0: no outliers.
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".
        residual: [..., N], added behind the activation.
        weight: [N, K] in floats, what `packed` was quantised from: takes the gradient dyᵀ x, and no
            part in the result.

    Returns:
        [..., N] in x's dtype.
    """
    args = (x, packed, weight_scale, bias, residual, weight, activation, threshold)
    return _run(_llm_int8_linear, args)


def _run(op: torch._ops.OpOverload, args: tuple) -> Tensor:
    if torch.compiler.is_compiling():
        return op(*args)
    if _held:
        x, packed, weight_scale = args[:3]
        _check_held(op, x, packed, weight_scale, args[-1] if op is _weight_only_linear else 8)
    tensors = [a for a in args if isinstance(a, Tensor)]
    if needs_grad(*tensors) or has_tangent(*tensors) or torch._C._are_functorch_transforms_active():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():  # half the cost of asking autograd once more
        return op(*args)
