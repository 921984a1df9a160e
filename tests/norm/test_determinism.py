"""The same input gives the same bits: again, and for every number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from backends import Backend

from . import cases
from .cases import DIFFERENTIABLE, NORMS, Norm, draw, fused_call, gradients

each_norm = pytest.mark.parametrize("norm", NORMS, ids=str)

# Few and many rows, narrow and wide: every way to split the work.
SHAPES = ((1, 7), (3, 64), (1000, 33), (257, 1000), (37, 4097), (1, 20001), (3, 65537), (2, 262144))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=cases.name)
usual_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)

EVERYTHING = (
    "weight bias weight1 bias1 x1 dropout x_bias layerscale residual residual2 alpha prenorm"
).split()


def assert_repeats(compute: Callable[[], Any], backend: Backend) -> None:
    """compute() gives the same bits over and over, on one thread and on several."""
    expected = compute()
    for threads in (1, 2, 3, 4, 2) if backend.device == "cpu" else (1, 1, 1):
        torch.set_num_threads(threads)
        for ours, first in zip(compute(), expected, strict=True):
            assert torch.equal(ours, first), f"other bits with {threads} threads"


@each_shape
@usual_dtype
@each_norm
def test_plain(
    backend: Backend, threads: None, norm: Norm, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    call = fused_call(shape, dtype, ("weight", "bias"), backend.device)
    call = {"x": call["x"], "shape": shape[-1:], "weight": call["weight"], "bias": call["bias"]}
    call["eps"] = 1e-5
    dy = draw(shape, dtype, backend.device)
    function = cases.by_name(norm.weft)
    assert_repeats(lambda: [function(**call)], backend)
    wrt = ("x", "weight", "bias")
    assert_repeats(lambda: gradients(function, call, [dy], wrt).values(), backend)


@each_shape
@usual_dtype
@each_norm
def test_fused(
    backend: Backend, threads: None, norm: Norm, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    call = fused_call(shape, dtype, EVERYTHING, backend.device)
    upstream = [draw(shape, dtype, backend.device) for _ in range(3)]
    assert_repeats(lambda: norm.fused(**call), backend)
    assert_repeats(lambda: gradients(norm.fused, call, upstream, DIFFERENTIABLE).values(), backend)


@each_shape
@pytest.mark.parametrize("symmetric", [True, False])
@each_norm
def test_int8(
    backend: Backend, threads: None, norm: Norm, symmetric: bool, shape: tuple[int, ...]
) -> None:
    x, residual = (draw(shape, torch.bfloat16, backend.device) for _ in range(2))
    options = {"residual": residual, "prenorm": True, "symmetric": symmetric}

    def compute() -> list[torch.Tensor]:
        return [t for t in norm.int8(x, **options) if isinstance(t, torch.Tensor)]

    assert_repeats(compute, backend)


@each_norm
def test_rows_do_not_depend_on_their_neighbours(backend: Backend, norm: Norm) -> None:
    """A row has the same bits alone as in any batch of rows of this width."""
    for width in (33, 1024, 4097):
        x = draw((64, width), torch.bfloat16, backend.device)
        together = norm.weft(x, (width,))
        for n in (0, 1, 31, 63):
            assert torch.equal(norm.weft(x[n : n + 1], (width,))[0], together[n])
