"""What torch.library.opcheck says of every op: schema, fake tensors, autograd, AOT dispatch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.library import opcheck

from .torch_cases import CHANNELS, RNG, ROWS, channels, forward_samples, rand, rows

OPS = torch.ops.weft


def plain_samples() -> Iterator[tuple]:
    w, b = channels(), channels()
    yield rows(), 1, None, None, 1e-5, False
    yield rows(), 1, w, b, 1e-5, False
    yield rows(dtype=torch.bfloat16), 1, w, None, 1e-5, True
    yield rows(), 2, rand(5, CHANNELS), rand(5, CHANNELS), 1e-5, False
    yield rows(), 1, rand(5, CHANNELS), None, 1e-5, False  # weights per head
    yield rand(CHANNELS, 7).T, 1, w, b, 1e-5, False  # channels apart
    yield rand(7, 2 * CHANNELS)[::2, :CHANNELS], 1, w, b, 1e-5, False  # rows apart
    yield rand(0, CHANNELS), 1, w, b, 1e-5, False
    yield rand(CHANNELS, dtype=torch.float64), 1, None, b, 1e-5, False


def backward_samples() -> Iterator[tuple]:
    x, stats = rows(), rand(*ROWS).abs()
    w = channels()
    none = torch.empty(0)
    f32 = torch.float32

    def sample(
        *, dy1=None, dz=None, mean=stats, weight=w, weight1=None, x_=None, x_bias=None,
        rowscale=None, layerscale=None, p=0.0, rms=False, x_dtype=f32, residual_dtype=None, needs=0,
    ):  # fmt: skip
        return (
            rows(), dy1, dz, x, mean, stats, 1, weight, None, weight1, x_, x_bias, rowscale,
            layerscale, RNG if p else None, p, 1.0, 1e-5, rms, False, False, x_dtype,
            residual_dtype, needs,
        )  # fmt: skip

    yield sample(needs=1 + 16 + 32)
    yield sample(weight=None, mean=none, rms=True, needs=1)
    yield sample(needs=1, x_dtype=torch.bfloat16)
    yield sample(
        dy1=rows(), dz=rows(), weight1=channels(), x_=rows(), x_bias=channels(),
        rowscale=rand(*ROWS), layerscale=channels(), p=0.5, residual_dtype=torch.float64,
        needs=1023,
    )  # fmt: skip


def int8_samples() -> Iterator[tuple]:
    x, w, b = rows(), channels(), channels()

    def sample(
        x=x, *, residual=None, shift=None, smooth=None, scale=None, zero_point=0, symmetric=True,
        ndim=1, return_residual=False, residual_dtype=None,
    ):  # fmt: skip
        weight, bias = (w, b) if ndim == 1 else (None, None)
        return (
            x, ndim, weight, bias, None, residual, None, shift, smooth, scale, zero_point,
            symmetric, 1.0, 1e-5, False, False, return_residual, residual_dtype,
        )  # fmt: skip

    yield sample()
    yield sample(ndim=2)
    yield sample(symmetric=False, shift=channels(), smooth=channels().abs() + 0.1)
    yield sample(scale=torch.tensor([0.05]), zero_point=3)
    yield sample(rows(dtype=torch.bfloat16), residual=rows(), return_residual=True)
    yield sample(return_residual=True, residual_dtype=torch.float64)


@pytest.mark.parametrize("op", [OPS.layer_norm, OPS.rms_norm], ids=str)
def test_opcheck_plain(op):
    for args in plain_samples():
        opcheck(op.default, args)
        opcheck(op.out, args, {"out": torch.empty(args[0].shape, dtype=args[0].dtype)})


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_norm_forward(grad):
    for args in forward_samples(grad):
        opcheck(OPS.norm_forward.default, tuple(args))


def test_opcheck_norm_forward_out():
    for args in forward_samples(grad=False):
        if args.weight1 is None:
            args = args._replace(return_dropout_mask=False)
            kwargs = {"out": torch.empty(ROWS + (CHANNELS,)), "residual_out": None}
            opcheck(OPS.norm_forward.out, tuple(args), kwargs)
            kwargs["residual_out"] = rows(dtype=torch.float64)
            opcheck(OPS.norm_forward.out, tuple(args), kwargs)


def test_opcheck_norm_backward():
    for args in backward_samples():
        opcheck(OPS.norm_backward.default, args)


def test_opcheck_norm_int8():
    for args in int8_samples():
        opcheck(OPS.norm_int8.default, args)
    outs = {
        "out": torch.empty(ROWS + (CHANNELS,), dtype=torch.int8),
        "scale_out": torch.empty(ROWS + (1,)),
        "zero_point_out": torch.empty(ROWS + (1,), dtype=torch.int32),
        "residual_out": rows(),
    }
    args = list(next(int8_samples()))
    args[11] = False  # asymmetric
    opcheck(OPS.norm_int8.out, tuple(args), outs)


def test_opcheck_add_norm():
    for residual in (rows(), rows(dtype=torch.float64)):
        for w, b in ((None, None), (channels(), channels())):
            opcheck(OPS.add_norm.default, (rows(), residual, w, b, 1e-5, b is None, False, True))
            opcheck(OPS.add_norm.default, (rows(), residual, w, b, 1e-5, False, True, False))


def test_opcheck_others():
    opcheck(OPS.fused_add_rms_norm_.default, (rows(), rows(), channels(), 1e-6, False))
    opcheck(OPS.fused_add_rms_norm_.default, (rows(), rows(), None, 1e-6, True))
    opcheck(OPS.dropout_mask.default, (RNG, 37, 0.5, 1))
