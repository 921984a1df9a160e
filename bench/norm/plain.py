"""The recipes in plain PyTorch: what the eager and the compiled peer run, and in float64 the truth.

Each function takes the tensors of one set by name. ``out`` and its like are None where the results
are to be new tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.case import Inputs
from bench.norm.cases import EPS, NormCase

Normalise = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, EPS)


def rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


def _store(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None else out.copy_(result)


def norm(
    normalise: Normalise, x: Tensor, weight: Tensor, bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return _store(normalise(x, weight, bias), out)


def add(
    normalise: Normalise, x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None = None,
    out: Tensor | None = None, residual_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    total = torch.add(x, residual, out=residual_out)
    return _store(normalise(total, weight, bias), out), total


def add_inplace(
    normalise: Normalise, x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    residual.add_(x)
    return x.copy_(normalise(residual, weight, bias)), residual


def post(
    normalise: Normalise, x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None = None
) -> Tensor:
    return normalise(x + residual, weight, bias)


def int8(
    normalise: Normalise, x: Tensor, weight: Tensor, bias: Tensor | None = None,
    out: Tensor | None = None, scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y = normalise(x, weight, bias)
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    scale = y.abs().amax(-1, keepdim=True) / 127
    q = (y / scale).round_()
    values = q.to(torch.int8) if out is None else out.copy_(q)
    return values, _store(scale, scale_out)


def add_int8(
    normalise: Normalise, x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    total = x + residual
    return *int8(normalise, total, weight, bias), total


def backward(
    normalise: Normalise, x: Tensor, weight: Tensor, dy: Tensor, bias: Tensor | None = None
) -> Callable[[], tuple[Tensor, ...]]:
    """Computes y now; what it returns computes the gradients, again at every call."""
    y = normalise(x, weight, bias)
    wrt = [t for t in (x, weight, bias) if t is not None]
    return partial(torch.autograd.grad, y, wrt, dy, retain_graph=True)


def train(
    normalise: Normalise, x: Tensor, weight: Tensor, dy: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Forward, then the gradients of everything that has one."""
    y = normalise(x, weight, bias)
    return y.detach(), *torch.autograd.grad(y, [t for t in (x, weight, bias) if t is not None], dy)


def normaliser(case: NormCase) -> Normalise:
    return layer_norm if case.norm == "layer_norm" else rms_norm


def recipe(case: NormCase, normalise: Normalise | None = None) -> Callable[..., Any]:
    """The case's function; it takes the tensors of a set as keywords."""
    functions: dict[str, Callable[..., Any]] = {
        "norm": norm, "add": add, "post": post, "int8": int8, "add_int8": add_int8, "train": train,
        "backward": lambda *given, **tensors: backward(*given, **tensors)(),
    }  # fmt: skip
    function = add_inplace if case.output == "inplace" else functions[case.recipe]
    return partial(function, normalise or normaliser(case))


def bare(case: NormCase, tensors: Inputs) -> Callable[[], Tensor]:
    """The plain call of torch's own function, with no Python of ours around it: for calls of a few
    microseconds that would be felt."""
    x, weight = tensors["x"], tensors["weight"]
    if case.norm == "layer_norm":
        return partial(F.layer_norm, x, (case.channels,), weight, tensors["bias"], EPS)
    return partial(F.rms_norm, x, (case.channels,), weight, EPS)
