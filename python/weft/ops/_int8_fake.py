"""What the INT8 ops return, without computing it: for meta tensors, torch.compile, export.

Outputs that were not asked for have shape [0].
"""

from __future__ import annotations

import math

import torch

from ._fake import register


def scale_shape(sizes: torch.Size, granularity: str, group_size: int) -> tuple[int, ...]:
    """The shape of the scales of a tensor of these sizes."""
    *rows, C = sizes
    if granularity == "group" and (group_size < 1 or C % group_size):
        raise RuntimeError(
            f"weft.int8_quantize: group_size is {group_size}, expected a divisor of the last "
            f"dimension, {C}"
        )
    shapes = {"tensor": (), "channel": (C,), "token": (*rows, 1)}
    if granularity not in (*shapes, "group"):
        raise RuntimeError(
            f"weft.int8_quantize: granularity is {granularity}, expected tensor, token, channel or "
            "group"
        )
    return shapes[granularity] if granularity != "group" else (*rows, C // group_size)


def _quantize(
    x, scale, zero_point, shift, smooth, activation, granularity, group_size, symmetric, transposed
):
    *rows, C = x.shape
    sizes = torch.Size((*rows, C // 2 if activation == "silu_mul" else C))
    grid = (0,) if scale is not None else scale_shape(sizes, granularity, group_size)
    points = (0,) if symmetric else grid
    absent = torch.float32 if points == (0,) else torch.int32
    return (
        x.new_empty((sizes[-1], math.prod(rows)) if transposed else sizes, dtype=torch.int8),
        x.new_empty(grid, dtype=torch.float32),
        x.new_empty(points, dtype=absent),
    )


def _dequantize(values, scale, zero_point, granularity, group_size, dtype):
    return values.new_empty(values.shape, dtype=dtype)


def packed_bytes(n: int, k: int, bits: int, device: torch.device) -> int:
    """The size of a packed weight: csrc/int8/cpu/packed.h, csrc/int8/cuda/packed.h."""
    if device.type == "cuda":
        row = (k + 15) // 16 * 16 if bits == 8 else (k + 127) // 128 * 64
        return 128 + (n + 63) // 64 * 64 * (4 + row)
    return 64 + (n + 63) // 64 * (256 + (k * bits + 31) // 32 * 256)


def _pack(weight, bits):
    n, k = weight.shape
    return weight.new_empty((packed_bytes(n, k, bits, weight.device),), dtype=torch.uint8)


def _unpack(packed, n, k, bits):
    return packed.new_empty((n, k), dtype=torch.int8)


def _out(x, weight_scale, dtype):
    return x.new_empty((*x.shape[:-1], weight_scale.shape[0]), dtype=dtype)


def _linear(x, packed, weight_scale, *options):
    return _out(x, weight_scale, options[-1])


def _like_x(x, packed, weight_scale, *options):
    return _out(x, weight_scale, x.dtype)


register("int8_quantize", _quantize)
register("int8_dequantize", _dequantize)
register("int8_pack", _pack)
register("int8_unpack", _unpack)
register("int8_linear", _linear)
register("weight_only_linear", _like_x)
register("llm_int8_linear", _like_x)
