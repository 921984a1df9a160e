"""Dropout of the attention weights: which ones, how many, drawn from where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import weft
from backends import Backend
from weft import reference

from .cases import RNG, USUAL, Shape, check, check_backward, name, problem

SHAPE = Shape(B=2, S=33, T=70, H=4, K=2, D=16, Dv=70)


def weights(p: float, rng_state: Tensor | None = None, device: str = "cpu") -> Tensor:
    """[B, H, S, T]: all keys count the same, and each value is its own unit vector."""
    s = SHAPE
    q, k = torch.zeros(s.B, s.S, s.H, s.D), torch.zeros(s.B, s.T, s.K, s.D)
    v = torch.eye(s.T)[None, :, None].expand(s.B, -1, s.K, -1)
    tensors = (t.to(device) for t in (q, k, v))
    return weft.attention(*tensors, dropout_p=p, rng_state=rng_state).transpose(1, 2)


def test_which_weights_are_dropped(backend: Backend) -> None:
    found = weights(0.4, RNG, backend.device).cpu()
    kept = weft.dropout_mask(RNG, found.shape, 0.4)
    assert torch.equal(found != 0, kept)
    assert torch.equal(kept, reference.philox.dropout_mask(RNG, tuple(found.shape), 0.4))
    torch.testing.assert_close(found, kept / (0.6 * SHAPE.T))


@pytest.mark.parametrize("p", [0.01, 0.5, 0.99])
def test_how_many_weights_are_dropped(backend: Backend, p: float) -> None:
    dropped = weights(p, RNG, backend.device).eq(0).float()
    deviation = (p * (1 - p) / dropped.numel()) ** 0.5
    assert abs(dropped.mean().item() - p) < 5 * deviation


@pytest.mark.parametrize("dtype", USUAL, ids=name)
@pytest.mark.parametrize("S, T", [(1, 70), (65, 33)])
def test_forward_and_backward_draw_the_same(
    backend: Backend, dtype: torch.dtype, S: int, T: int
) -> None:
    call = problem(("dropout", "causal"), dtype, Shape(S=S, T=T), backend.device)
    check(call)
    check_backward(call)


@pytest.mark.parametrize("D", [64, 128])
def test_rows_of_whole_blocks_of_words(backend: Backend, D: int) -> None:
    """Which lanes of a GPU share: the others' rows begin within one."""
    shape = Shape(B=1, S=70, T=136, H=1, K=1, D=D, Dv=D)
    for dtype in USUAL:
        call = problem(("dropout",), dtype, shape, backend.device)
        check(call)
        check_backward(call)


def test_offsets_beyond_32_bits(backend: Backend) -> None:
    call = problem((), torch.float32, device=backend.device)
    for state in ([2**62 + 1, 2**33 + 5], [-1, -1], [0, 0]):
        check(call | {"dropout_p": 0.5, "rng_state": torch.tensor(state)})


def test_none_and_all_are_dropped(backend: Backend) -> None:
    call = problem((), torch.float32, device=backend.device)
    expected = weft.attention(**call)
    assert torch.equal(weft.attention(**call, dropout_p=0.0, rng_state=RNG), expected)
    out, lse = weft.attention(**call, dropout_p=1.0, return_lse=True)
    assert out.count_nonzero() == 0
    torch.testing.assert_close(lse, weft.attention(**call, return_lse=True)[1])


def test_the_generator_of_torch_is_the_seed() -> None:
    torch.manual_seed(3)
    first, second = weights(0.5), weights(0.5)
    torch.manual_seed(3)
    assert torch.equal(weights(0.5), first)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    weights(0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_heads_and_sequences_draw_their_own() -> None:
    found = weights(0.5, RNG).ne(0).flatten(0, 1).flatten(1)
    same = (found[:, None] == found[None]).float().mean(-1)
    same.fill_diagonal_(0.5)
    assert (same - 0.5).abs().max() < 0.06
