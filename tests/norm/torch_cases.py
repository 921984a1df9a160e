"""Inputs and functions for the tests of the norms inside PyTorch's subsystems."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import weft
from weft.ops._norm_args import NormArgs

ROWS, CHANNELS = (3, 5), 24
RNG = torch.tensor([123, 456])


def rand(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_(grad)


def rows(**kwargs) -> Tensor:
    return rand(*ROWS, CHANNELS, **kwargs)


def channels(**kwargs) -> Tensor:
    return rand(CHANNELS, **kwargs)


def forward_samples(grad: bool) -> Iterator[NormArgs]:
    """With and without gradients, which need statistics and z."""
    like = {"grad": grad}
    stats = {"save_stats": grad, "return_residual": grad}
    x, w, b = rows(**like), channels(**like), channels(**like)
    yield NormArgs(x, 1, save_stats=grad)
    yield NormArgs(x, 1, w, b, save_stats=grad, memory_efficient=True)
    yield NormArgs(x, 2, rand(5, CHANNELS, **like), is_rms_norm=True, **stats)
    yield NormArgs(
        rows(dtype=torch.bfloat16, **like),
        1,
        w,
        b,
        residual=rows(**like),
        residual2=rows(**like),
        x_bias=channels(**like),
        layerscale=channels(**like),
        rowscale=rand(*ROWS),
        rng_state=RNG,
        dropout_p=0.25,
        residual_alpha=1.5,
        return_dropout_mask=True,
        **stats,
    )
    yield NormArgs(
        x,
        1,
        w,
        b,
        channels(**like),
        channels(**like),
        x1=rows(**like),
        rng_state=RNG,
        dropout_p=0.5,
        zero_centered_weight=True,
        return_dropout_mask=True,
        residual_dtype=torch.float64,
        out_dtype=torch.bfloat16,
        **stats,
    )
    yield NormArgs(x, 1, w, residual=rows(**like), is_rms_norm=True, **stats)


def layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return weft.layer_norm(x, (CHANNELS,), w, b)


def rms_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return weft.rms_norm(x, (CHANNELS,), w, bias=b)


def residual_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y, z = weft.layer_norm_fn(x, w, b, residual=x.cos(), prenorm=True, residual_in_fp32=True)
    return y + z


def post_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return weft.rms_norm_fn(x.sin(), w, b, residual=x)


def second_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y, y1, z = weft.layer_norm_fn(x, w, b, x1=x.sin(), weight1=w + 1, bias1=b, prenorm=True)
    return y * y1 + z


def dropped(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y, mask, _ = weft.layer_norm_fn(x, w, b, residual=x, dropout_p=0.5, return_dropout_mask=True)
    return y * (1 + mask.to(y.dtype))


FUNCTIONS = [layer_norm, rms_norm, residual_norm, post_norm, second_norm, dropped]
each_function = pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)


def inputs(grad: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return (
        rows(dtype=dtype, grad=grad),
        channels(dtype=dtype, grad=grad),
        channels(dtype=dtype, grad=grad),
    )


def with_grads(f: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    y = f(*args)
    return y, *torch.autograd.grad(y.sin().sum(), [a for a in args if a.requires_grad])


# What PyTorch has itself: (ours, theirs).
PAIRS = [
    (weft.layer_norm, F.layer_norm),
    (weft.rms_norm, F.rms_norm),
]
each_pair = pytest.mark.parametrize("ours, theirs", PAIRS, ids=["layer_norm", "rms_norm"])
