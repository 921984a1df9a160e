"""What torch.library.opcheck says of every op, and torch.compile."""

from __future__ import annotations

import torch
from torch.library import opcheck

import weft

from .cases import draw, integers, packed, scales

OPS = torch.ops.weft


def test_opcheck_quantize():
    x, scale, point = draw(3, 5, 24), torch.rand(24), torch.zeros(24, dtype=torch.int32)
    for granularity, group in (("tensor", 0), ("token", 0), ("channel", 0), ("group", 8)):
        for symmetric in (True, False):
            args = (x, None, None, None, None, "none", granularity, group, symmetric, False)
            opcheck(OPS.int8_quantize.default, args)
    smooth = torch.rand(12) + 0.5
    args = (x, None, None, draw(12), smooth, "silu_mul", "token", 0, True, True)
    opcheck(OPS.int8_quantize.default, args)
    args = (x, scale, point, None, None, "gelu", "channel", 0, True, False)
    opcheck(OPS.int8_quantize.default, args)
    args = (integers(3, 24), torch.rand(3, 1), None, "token", 0, torch.bfloat16)
    opcheck(OPS.int8_dequantize.default, args)


def test_opcheck_pack():
    for bits in (8, 4):
        weight = integers(70, 33, bits=bits)
        opcheck(OPS.int8_pack.default, (weight, bits))
        opcheck(OPS.int8_unpack.default, (packed(weight, bits), 70, 33, bits))


def test_opcheck_linear():
    ready, scale = packed(integers(70, 33)), scales(70)
    for grad in (False, True):
        x, bias = draw(2, 5, 33).requires_grad_(grad), draw(70).requires_grad_(grad)
        rest = (None, 0, "none", True, torch.bfloat16)
        args = (x, ready, scale, None, None, None, None, bias, None, *rest)
        opcheck(OPS.int8_linear.default, args)
        opcheck(OPS.weight_only_linear.default, (x, ready, scale, None, bias, None, "none", 8))
        opcheck(OPS.llm_int8_linear.default, (x, ready, scale, bias, None, None, "none", 1.0))
    args = (
        integers(5, 33), ready, scale, torch.rand(5), None, None, None, None, None,
        torch.tensor(0.1), 3, "silu", True, torch.int8,
    )  # fmt: skip
    opcheck(OPS.int8_linear.default, args)


def test_compile():
    ready, scale, x = packed(integers(70, 33)), scales(70), draw(5, 33)

    def run(x):
        y = weft.int8_linear(x, ready, scale, activation="silu")
        z = weft.weight_only_linear(x, ready, scale) + weft.llm_int8_linear(x, ready, scale)
        q = weft.quantize_int8(y)
        return z + weft.dequantize_int8(q.values, q.scale)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    for M in (5, 9):
        torch.testing.assert_close(compiled(x[:M]), run(x[:M]))
