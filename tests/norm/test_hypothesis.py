"""Shapes, strides, dtypes and options as hypothesis finds them, forward and backward."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backends import Backend

from .cases import FLOATS, LAYOUTS, NORMS, Norm, draw, fused_call
from .test_backward import check as check_backward
from .test_forward import check as check_forward
from .test_fused import check_backward as check_fused_backward
from .test_fused import check_forward as check_fused_forward

# The fixture `backend` holds only the instruction set level: it may stay the same for all examples.
# Rows of few numbers are often nearly constant and amplify rounding: a large eps bounds how much.
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

norms = st.sampled_from(NORMS)
dtypes = st.sampled_from(FLOATS)
layouts = st.sampled_from(sorted(LAYOUTS))
seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).flatmap(
    lambda leading: st.integers(1, 300).map(lambda width: (*leading, width))
)
OPTIONS = (
    "weight", "bias", "x_bias", "rowscale", "layerscale", "residual", "residual2", "x1", "weight1",
    "bias1", "alpha", "prenorm", "fp32_residual", "zero_centered", "dropout",
)  # fmt: skip


@quick
@given(norms, shapes, st.data(), dtypes, layouts, seeds)
def test_norms(
    backend: Backend,
    norm: Norm,
    shape: tuple[int, ...],
    data: st.DataObject,
    dtype: torch.dtype,
    layout: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    ndim = data.draw(st.integers(1, len(shape) - 1))
    x = draw(shape, dtype, backend.device, layout)
    check_forward(norm, x, shape[-ndim:], eps=0.1, luck=4)
    check_backward(norm, x, ndim, eps=0.1, luck=4)


@quick
@given(norms, shapes, dtypes, dtypes, dtypes, layouts, st.sets(st.sampled_from(OPTIONS)), seeds)
@example(NORMS[0], (1, 1, 1), *[torch.bfloat16] * 3, "contiguous", set(OPTIONS), 0)
def test_fused(
    backend: Backend,
    norm: Norm,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    residual_dtype: torch.dtype,
    layout: str,
    options: set[str],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    options = options - ({"rowscale"} if "x1" in options else set())
    options = options - (set() if "weight1" in options else {"bias1"})
    call = fused_call(shape, dtype, options, backend.device, layout, weight_dtype, residual_dtype)
    call["eps"] = 0.1
    check_fused_forward(norm, call, luck=4)
    check_fused_backward(norm, call, luck=4)
