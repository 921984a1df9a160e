"""The same input gives the same bits: again, and for every number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from backends import Backend

from .cases import (
    USUAL,
    Shape,
    by_weft,
    draw,
    gradients,
    name,
    pack_keys,
    pack_queries,
    page,
    problem,
    quantize_cache,
)

usual_dtype = pytest.mark.parametrize("dtype", USUAL, ids=name)

# Few and many tasks: decoding over long keys, one long sequence, many short ones.
SHAPES = (
    Shape(B=1, S=1, T=3000, H=4, K=1),
    Shape(B=1, S=300, T=300, H=2, K=1),
    Shape(B=5, S=33, T=65, H=6, K=3),
    Shape(B=1, S=2, T=700, H=1, K=1, D=17, Dv=65),
)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def assert_repeats(compute: Callable[[], list[Tensor]], backend: Backend) -> None:
    expected = compute()
    for threads in (1, 2, 3, 2) if backend.device == "cpu" else (1, 1):
        torch.set_num_threads(threads)
        for ours, first in zip(compute(), expected, strict=True):
            assert torch.equal(ours, first), f"other bits with {threads} threads"


@each_shape
@usual_dtype
def test_forward(backend: Backend, threads: None, dtype: torch.dtype, shape: Shape) -> None:
    for options in ((), ("causal", "sinks"), ("splits", "window_left")):
        call = problem(options, dtype, shape, backend.device)
        assert_repeats(lambda call=call: list(by_weft(call)), backend)


@each_shape
@usual_dtype
def test_backward(backend: Backend, threads: None, dtype: torch.dtype, shape: Shape) -> None:
    for options in (("causal",), ("bias_of_heads", "sinks", "dropout")):
        call = problem(options, dtype, shape, backend.device)
        out, lse = by_weft(call)
        dout, dlse = draw(out.shape, dtype, backend.device), torch.ones_like(lse)
        assert_repeats(
            lambda call=call, dout=dout, dlse=dlse: list(
                gradients(by_weft, call, dout, dlse).values()
            ),
            backend,
        )


@pytest.mark.parametrize("options", [("causal",), ("bias", "dropout")], ids=name)
def test_many_blocks_of_keys(backend: Backend, options: tuple[str, ...]) -> None:
    """dQ is a sum over blocks of keys, the same whichever of them comes first."""
    shape = Shape(B=1, S=100, T=520, H=1, K=1, D=128, Dv=128)
    call = problem(options, torch.bfloat16, shape, backend.device)
    out, lse = by_weft(call)
    dout, dlse = draw(out.shape, out.dtype, backend.device), torch.ones_like(lse)
    first: dict[str, Tensor] = {}
    for _ in backend.orders():
        ours = gradients(by_weft, call, dout, dlse)
        first = first or ours
        assert all(torch.equal(ours[x], first[x]) for x in first)


@usual_dtype
def test_packed_and_paged(backend: Backend, threads: None, dtype: torch.dtype) -> None:
    call = problem(("causal",), dtype, Shape(B=3, S=40, T=90), backend.device)
    queries = pack_queries(call, [40, 1, 7])
    for varied in (
        pack_keys(queries, [90, 3, 40]),
        page(queries, 16),
        page(quantize_cache(queries, by_row=True), 7),
    ):
        assert_repeats(lambda call=varied: list(by_weft(call)), backend)
