"""weft.scaled_dot_product_attention beside torch's: shapes, masks, heads, dropout, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import weft
from backends import Backend
from tolerance import assert_no_worse_than_torch

from .cases import FLOATS, USUAL, draw, name, to_float64

usual_dtype = pytest.mark.parametrize("dtype", USUAL, ids=name)


def compare(call: dict[str, Any], luck: float = 1.0) -> Tensor:
    """Results and gradients, against torch's in float64 and in the same dtype."""
    names = ("query", "key", "value", "attn_mask")
    differentiable = [x for x in names if x in call and call[x].is_floating_point()]

    def run(function: Any, call: dict[str, Any]) -> list[Tensor]:
        leaves = {x: call[x].detach().requires_grad_() for x in differentiable}
        out = function(**(call | leaves))
        return [out, *torch.autograd.grad(out, list(leaves.values()), dout.to(out))]

    weights = torch.Generator().manual_seed(1)
    shape = F.scaled_dot_product_attention(**call).shape
    dout = torch.randn(shape, generator=weights)
    ours = run(weft.scaled_dot_product_attention, call)
    theirs = run(F.scaled_dot_product_attention, call)
    truth = run(F.scaled_dot_product_attention, {k: to_float64(v) for k, v in call.items()})
    luck = max(luck, 4) if ours[0].dtype == torch.float32 else luck
    for what, *results in zip(["out", *differentiable], ours, truth, theirs, strict=True):
        mine, true, torchs = results
        assert_no_worse_than_torch(mine, true, torchs, what, mine.dtype, luck=luck, unit=0.1)
    return ours[0]


def inputs(
    *lead: int, S: int = 9, T: int = 21, D: int = 24, dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    shapes = {"query": (S, D), "key": (T, D), "value": (T, D)}
    return {x: draw((*lead, *shape), dtype, device) for x, shape in shapes.items()}


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("lead", [(2, 3), (3,), (), (2, 1, 3), (2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_shapes(
    backend: Backend, dtype: torch.dtype, lead: tuple[int, ...], is_causal: bool
) -> None:
    call = inputs(*lead, dtype=dtype, device=backend.device)
    compare(call | {"is_causal": is_causal}, luck=2)
    call = inputs(*lead, S=21, T=9, dtype=dtype, device=backend.device)
    compare(call | {"is_causal": is_causal, "scale": 0.3}, luck=2)


MASKS = [(9, 21), (1, 21), (3, 9, 21), (2, 1, 1, 21), (2, 3, 9, 21)]


@usual_dtype
@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks(backend: Backend, dtype: torch.dtype, shape: tuple[int, ...], kind: str) -> None:
    call = inputs(2, 3, dtype=dtype, device=backend.device)
    mask = draw(shape, dtype, backend.device)
    if kind == "bool":
        mask = mask > -0.5
        mask[..., 0] = True  # rows of nothing are another test's
    compare(call | {"attn_mask": mask}, luck=2)


def test_masks_of_more_dimensions(backend: Backend) -> None:
    call = inputs(2, 2, 3, device=backend.device)
    for shape in ((2, 2, 3, 9, 21), (2, 1, 1, 1, 21), (9, 21)):
        mask = torch.randn(shape, device=backend.device) > -1
        ours = weft.scaled_dot_product_attention(**call, attn_mask=mask)
        torch.testing.assert_close(ours, F.scaled_dot_product_attention(**call, attn_mask=mask))


@usual_dtype
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_rows_of_nothing_are_zero_as_in_torch(
    backend: Backend, dtype: torch.dtype, kind: str
) -> None:
    call = inputs(2, 3, dtype=dtype, device=backend.device)
    mask = torch.rand(9, 21, device=backend.device) < 0.5
    mask[3:5] = False
    if kind == "float":
        mask = torch.zeros(9, 21, dtype=dtype, device=backend.device).masked_fill(~mask, -torch.inf)
    call["attn_mask"] = mask
    ours, theirs = (
        f(**call) for f in (weft.scaled_dot_product_attention, F.scaled_dot_product_attention)
    )
    assert ours[:, :, 3:5].count_nonzero() == theirs[:, :, 3:5].count_nonzero() == 0
    leaf = call["query"].requires_grad_()
    (grad,) = torch.autograd.grad(weft.scaled_dot_product_attention(**call).sum(), leaf)
    assert grad.isfinite().all() and grad[:, :, 3:5].count_nonzero() == 0


def test_causal_and_mask(backend: Backend) -> None:
    call = inputs(2, 3, device=backend.device)
    mask = torch.rand(9, 21, device=backend.device) < 0.7
    both = mask & torch.ones(9, 21, dtype=torch.bool, device=backend.device).tril()
    expected = weft.scaled_dot_product_attention(**call, attn_mask=both)
    ours = weft.scaled_dot_product_attention(**call, attn_mask=mask, is_causal=True)
    torch.testing.assert_close(ours, expected)


@usual_dtype
@pytest.mark.parametrize("H, K", [(6, 2), (4, 1), (3, 3)])
def test_grouped_heads(backend: Backend, dtype: torch.dtype, H: int, K: int) -> None:
    call = inputs(2, H, dtype=dtype, device=backend.device)
    call |= {x: call[x][:, :K] for x in ("key", "value")}
    compare(call | {"enable_gqa": True, "is_causal": True}, luck=2)


@pytest.mark.parametrize(
    "query, key", [((2, 3), (1, 3)), ((2, 3), (2, 1)), ((1, 3), (2, 1)), ((2, 3), (3,))], ids=str
)
def test_broadcast(backend: Backend, query: tuple[int, ...], key: tuple[int, ...]) -> None:
    call = {
        "query": draw((*query, 9, 24), device=backend.device),
        "key": draw((*key, 21, 24), device=backend.device),
        "value": draw((*key, 21, 24), device=backend.device),
    }
    ours, theirs = (
        f(**call) for f in (weft.scaled_dot_product_attention, F.scaled_dot_product_attention)
    )
    torch.testing.assert_close(ours, theirs)


def test_heads_that_do_not_match_are_refused() -> None:
    call = inputs(2, 4)
    call |= {x: call[x][:, :2] for x in ("key", "value")}
    with pytest.raises(RuntimeError):
        weft.scaled_dot_product_attention(**call)


def test_other_head_size_of_values(backend: Backend) -> None:
    call = inputs(2, 3, device=backend.device)
    call["value"] = draw((2, 3, 21, 40), device=backend.device)
    compare(call)


def test_memory_of_the_result() -> None:
    """Transposing it back, as models do, copies nothing."""
    out = weft.scaled_dot_product_attention(**inputs(2, 3))
    assert out.transpose(1, 2).is_contiguous()


def test_arguments_by_position() -> None:
    call = inputs(2, 4)
    tensors = call.values()
    mask = torch.rand(9, 21) < 0.8
    expected = F.scaled_dot_product_attention(*tensors, mask, 0.0, False, scale=0.5)
    ours = weft.scaled_dot_product_attention(*tensors, mask, 0.0, False, 0.5)
    torch.testing.assert_close(ours, expected)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="have 1, 1 and 1 dimensions, expected 2 or more"):
        weft.scaled_dot_product_attention(*(torch.ones(8) for _ in range(3)))


def test_dropout_keeps_the_mean(backend: Backend) -> None:
    query, key = torch.zeros(2, 4, 64, 16), torch.zeros(2, 4, 512, 16)
    call = [t.to(backend.device) for t in (query, key, torch.ones(2, 4, 512, 16))]
    out = weft.scaled_dot_product_attention(*call, dropout_p=0.25)
    assert (out != 1).any()
    assert abs(out.mean().item() - 1) < 0.01


def test_fx_sees_one_function() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return weft.scaled_dot_product_attention(q, k, v, is_causal=True)

    traced = torch.fx.symbolic_trace(f)
    assert weft.scaled_dot_product_attention in [node.target for node in traced.graph.nodes]
    call = inputs(2, 3).values()
    assert torch.equal(traced(*call), f(*call))
