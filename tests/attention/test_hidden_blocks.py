"""Masks that hide long runs of keys: from all queries, from some, from some heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import weft
from backends import Backend

from .cases import Shape, check, check_backward, draw, name, problem

B, H, S, T = 2, 2, 80, 700


def between(begin: Tensor, end: Tensor) -> Tensor:
    """Keys begin … end - 1, with axes that broadcast in front."""
    keys = torch.arange(T)
    return (begin[..., None] <= keys) & (keys < end[..., None])


def documents() -> Tensor:
    """Queries and keys see each other where they belong to one document."""
    queries, keys = torch.arange(S) * 5 // S, torch.arange(T) * 5 // T
    return queries[:, None] == keys


MASKS: dict[str, Callable[[], Tensor]] = {
    "padding behind": lambda: between(torch.tensor([0, 0]), torch.tensor([65, 640]))[:, None, None],
    "padding before": lambda: between(torch.tensor([630, 7]), torch.tensor([T, T]))[:, None, None],
    "of heads": lambda: between(torch.arange(H) * 370, torch.arange(H) * 370 + 91)[:, None],
    "documents": documents,
    "a hole": lambda: ~between(torch.full((S,), 70), torch.full((S,), 599)),
    "one key a query": lambda: between(torch.arange(S) * 4, torch.arange(S) * 4 + 1),
    "one query sees": lambda: torch.ones(S, T).bool() & (torch.arange(S) == 77)[:, None],
    "nothing": lambda: torch.zeros(T).bool(),
    "columns apart": lambda: documents().mT.contiguous().mT,
    "the same for every key": lambda: (torch.arange(S) % 3 == 0)[:, None].expand(S, T),
}

each_mask = pytest.mark.parametrize("mask", MASKS)
usual_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name)


@each_mask
@usual_dtype
def test_out_and_lse(backend: Backend, dtype: torch.dtype, mask: str) -> None:
    call = problem((), dtype, Shape(B, S, T, H, 1, 24, 32), backend.device)
    check(call | {"mask": MASKS[mask]().to(backend.device)})


@each_mask
@usual_dtype
@pytest.mark.parametrize("splits", [1, 3])
def test_decoding(backend: Backend, dtype: torch.dtype, mask: str, splits: int) -> None:
    call = problem((), dtype, Shape(B, S, T, H, 1, 24, 32), backend.device)
    rows = torch.tensor([1, 77])
    hidden = MASKS[mask]().expand(B, H, S, T)[:, :, rows].to(backend.device)
    check(call | {"q": call["q"][:, rows], "mask": hidden, "num_splits": splits})


@each_mask
@usual_dtype
def test_gradients(backend: Backend, dtype: torch.dtype, mask: str) -> None:
    call = problem((), dtype, Shape(B, S, T, H, 1, 24, 32), backend.device)
    bias = draw((H, S, T), dtype, backend.device)
    check_backward(call | {"mask": MASKS[mask]().to(backend.device), "bias": bias})


def test_what_no_query_sees_is_not_looked_at(backend: Backend) -> None:
    """Whole blocks of it, as a cache longer than its sequence has them."""
    if not backend.name.startswith("cpu"):
        pytest.skip("kernels for GPUs read blocks that a mask alone hides")
    call = problem((), torch.float32, Shape(B, 1, T, H, 1, 32, 32))
    mask = (torch.arange(T) < 100)[None]
    expected = weft.attention(**call, mask=mask)
    for x in ("k", "v"):
        call[x][:, 256:] = torch.nan
    assert torch.equal(weft.attention(**call, mask=mask), expected)
