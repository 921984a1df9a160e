"""What is refused, and in which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import weft

from .cases import draw, integers, packed, scales

WEIGHT = integers(70, 33)
READY = packed(WEIGHT)
SCALE = scales(70)
X, Q = draw(5, 33), integers(5, 33)
ONE = torch.ones(1)

Call = Callable[[], Any]


def linear(x=X, ready=READY, scale=SCALE, bias=None, **options) -> Call:
    return lambda: weft.int8_linear(x, ready, scale, bias, **options)


def weight_only(x=X, ready=READY, scale=SCALE, **options) -> Call:
    return lambda: weft.weight_only_linear(x, ready, scale, **options)


def quantize(x=X, *rest, **options) -> Call:
    return lambda: weft.quantize_int8(x, *rest, **options)


def edited(position: int, value: int) -> torch.Tensor:
    """A packed weight with another byte in its header."""
    other = READY.clone()
    other[position] = value
    return other


REFUSED: list[tuple[Call, str]] = [
    (linear(X.double()), "weft.int8_linear: x has dtype float64, expected float32, bfloat16 or"),
    (linear(draw(5, 34)), "weft.int8_linear: packed holds a [70, 33] weight of 8 bits, expected"),
    (linear(draw(5, 37)), "weft.int8_linear: packed has shape [5184], expected [5696], contiguous"),
    (linear(scale=scales(71)), "weft.int8_linear: packed holds a [70, 33] weight of 8 bits, "),
    (linear(scale=scales(170)), "weft.int8_linear: packed has shape [5184], expected ["),
    (linear(scale=SCALE.double()), "weft.int8_linear: weight_scale has dtype float64, expected"),
    (linear(scale=scales(70, 1)), "weft.int8_linear: weight_scale has shape [70, 1], expected [N]"),
    (linear(ready=READY[:-1]), "weft.int8_linear: packed has shape [5183], expected [5184]"),
    (linear(ready=READY.char()), "weft.int8_linear: packed has dtype int8, expected uint8"),
    (linear(ready=edited(0, 1)), "weft.int8_linear: packed is no packed weight"),
    (linear(ready=edited(4, 9)), "weft.int8_linear: packed has version 9, expected 1: pack the"),
    (linear(bias=draw(71)), "weft.int8_linear: bias has shape [71], expected [70] (N)"),
    (
        linear(residual=draw(5, 71)),
        "weft.int8_linear: residual has shape [5, 71], expected [5, 70]",
    ),
    (linear(activation="tanh"), "weft.int8_linear: activation is tanh, expected none, relu, gelu"),
    (linear(activation="silu_mul"), "weft.int8_linear: activation is silu_mul, expected none,"),
    (linear(Q), "weft.int8_linear: x is int8, so x_scale is needed"),
    (linear(Q, x_scale=torch.ones(4)), "weft.int8_linear: x_scale has shape [4], expected 5 elem"),
    (linear(x_scale=torch.ones(5)), "weft.int8_linear: x_scale has shape [5], expected 1 element"),
    (linear(Q, x_scale=ONE, smooth=torch.ones(33)), "weft.int8_linear: x is int8, so shift and"),
    (linear(x_zero_point=ONE.int()), "weft.int8_linear: x_zero_point belongs to an x_scale"),
    (
        linear(x_scale=ONE, x_zero_point=torch.tensor([2_000_000], dtype=torch.int32)),
        "weft.int8_linear: x_zero_point holds 2000000, expected -128 to 127",
    ),
    (
        linear(Q, x_scale=torch.ones(5), x_zero_point=torch.tensor([0, 0, 0, 0, -129]).int()),
        "weft.int8_linear: x_zero_point holds -129, expected -128 to 127",
    ),
    (linear(shift=draw(32)), "weft.int8_linear: shift has shape [32], expected [33] (the last"),
    (linear(out_dtype=torch.int32), "weft.int8_linear: out_dtype is int32, the sums as they are"),
    (linear(out_dtype=torch.int8), "weft.int8_linear: out_dtype is int8, so out_scale is needed"),
    (linear(out_scale=ONE, out_zero_point=128), "weft.int8_linear: out_zero_point is 128, expect"),
    (linear(out_dtype=torch.int64), "weft.int8_linear: the result's dtype is int64, expected flo"),
    (linear(draw(5, 0)), "weft.int8_linear: x has shape [5, 0], expected a last dimension of at"),
    (weight_only(Q), "weft.weight_only_linear: x has dtype int8, expected float32, bfloat16 or"),
    (weight_only(bits=4), "weft.weight_only_linear: packed has shape [5184], expected ["),
    (weight_only(bits=5), "weft.weight_only_linear: bits is 5, expected 8 or 4"),
    (
        weight_only(scale=scales(70, 3)),
        "weft.weight_only_linear: weight_scale has shape [70, 3], which cuts K = 33 into groups of "
        "11, expected multiples of 8",
    ),
    (
        weight_only(weight_zero_point=draw(71)),
        "weft.weight_only_linear: weight_zero_point has shape [71], expected [70] (that of weight",
    ),
    (
        lambda: weft.llm_int8_linear(X, READY, SCALE, threshold=-1),
        "weft.llm_int8_linear: threshold is -1, expected at least 0",
    ),
    (
        lambda: weft.llm_int8_linear(X, READY, SCALE, weight=draw(70, 32)),
        "weft.llm_int8_linear: weight has shape [70, 32], expected [70, 33] (N, K)",
    ),
    (quantize(Q), "weft.int8_quantize: x has dtype int8, expected float32, bfloat16 or float16"),
    (quantize(granularity="row"), "weft.int8_quantize: granularity is row, expected tensor, token"),
    (
        quantize(granularity="group", group_size=10),
        "weft.int8_quantize: group_size is 10, expected a divisor of the last dimension, 33",
    ),
    (quantize(activation="silu_mul"), "weft.int8_quantize: x has shape [5, 33], expected an even"),
    (quantize(X, ONE), "weft.int8_quantize: scale has shape [1], expected [5, 1] (as the granul"),
    (
        quantize(X, torch.tensor(1.0), torch.tensor(128).int(), granularity="tensor"),
        "weft.int8_quantize: zero_point holds 128, expected -128 to 127",
    ),
    (quantize(X, None, ONE.int()), "weft.int8_quantize: zero_point belongs to a scale, expected"),
    (
        lambda: weft.pack_int8_weight(X),
        "weft.int8_pack: weight has dtype float32, expected int8",
    ),
    (
        lambda: weft.pack_int8_weight(integers(3, 0)),
        "weft.int8_pack: weight has shape [3, 0], expected [N, K] of at least one each",
    ),
    (
        lambda: weft.pack_int8_weight(Q[:1, :1].expand(1, 2**24 + 1)),
        "weft.int8_pack: weight has shape [1, 16777217], expected at most 16777216 columns",
    ),
    (
        lambda: weft.pack_int8_weight(torch.full((3, 9), 8, dtype=torch.int8), bits=4),
        "weft.int8_pack: weight holds values that are not of 4 bits, expected -8 to 7",
    ),
    (
        lambda: weft.pack_int8_weight(torch.full((70, 9), -9, dtype=torch.int8), bits=4),
        "weft.int8_pack: weight holds values that are not of 4 bits, expected -8 to 7",
    ),
    (
        lambda: weft.quantize_int8(X.to("meta"), granularity="row"),
        "weft.int8_quantize: granularity is row, expected tensor, token, channel or group",
    ),
    (
        lambda: torch.ops.weft.int8_unpack(READY, 70, 34, 8),
        "weft.int8_unpack: packed holds a [70, 33] weight of 8 bits, expected [70, 34] of 8",
    ),
    (
        lambda: torch.ops.weft.int8_unpack(READY, 0, 33, 8),
        "weft.int8_unpack: n and k are 0 and 33, expected at least 1",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[m[:60] for _, m in REFUSED])
def test_refused(call: Call, message: str):
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        call()


def test_values_only_python_sees():
    with pytest.raises(
        ValueError, match=r"^weft\.dequantize_int8: scale has shape \[4\], expected"
    ):
        weft.dequantize_int8(Q, torch.ones(4))
    with pytest.raises(ValueError, match=r"^weft\.unpack_int8_weight: packed is no packed weight"):
        weft.unpack_int8_weight(torch.zeros(8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^weft\.unpack_int8_weight: packed is no packed weight"):
        weft.unpack_int8_weight(torch.zeros_like(READY))


@pytest.mark.parametrize("argument", ["weight_scale", "shift"])
def test_no_gradient(argument: str):
    scale = SCALE.clone().requires_grad_(argument == "weight_scale")
    shift = draw(33).requires_grad_(argument == "shift")
    with pytest.raises(NotImplementedError, match=f"^weft.int8_linear: {argument} has no gradient"):
        torch.ops.weft.int8_linear(
            X, READY, scale, None, None, shift, None, None, None, None, 0, "none", True,
            torch.float32,
        )  # fmt: skip
    x = X.clone().requires_grad_()
    with pytest.raises(
        NotImplementedError, match=r"^weft\.int8_linear: no gradient with an activa"
    ):
        weft.int8_linear(x, READY, SCALE, activation="relu")
