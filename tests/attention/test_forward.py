"""weft.attention, forward: head sizes, lengths, groups, layouts, options alone, extreme values."""

from __future__ import annotations

import math

import pytest
import torch

import weft
from backends import Backend

from .cases import FLOATS, OPTIONS, USUAL, Shape, check, draw, name, problem

each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=name)
usual_dtype = pytest.mark.parametrize("dtype", USUAL, ids=name)

# ------------------------------------------------------------------------------------------- sizes

HEAD_SIZES = (1, 3, 17, 40, 63, 64, 65, 96, 128, 192, 256, 512)


@each_dtype
@pytest.mark.parametrize("D", HEAD_SIZES)
def test_head_sizes(backend: Backend, dtype: torch.dtype, D: int) -> None:
    shape = Shape(B=1, S=7, T=21, H=2, K=1, D=D, Dv=D)
    check(problem(("causal",), dtype, shape, backend.device))


@usual_dtype
@pytest.mark.parametrize("D, Dv", [(192, 128), (64, 65), (17, 512), (1, 3), (40, 1)])
def test_other_head_size_of_values(backend: Backend, dtype: torch.dtype, D: int, Dv: int) -> None:
    check(problem((), dtype, Shape(B=1, S=9, T=33, D=D, Dv=Dv), backend.device))


LENGTHS = ((1, 1), (1, 70), (2, 1), (3, 64), (17, 17), (63, 65), (64, 64), (65, 130), (130, 63))


@usual_dtype
@pytest.mark.parametrize("options", [(), ("causal",)], ids=name)
@pytest.mark.parametrize("S, T", LENGTHS)
def test_lengths(
    backend: Backend, dtype: torch.dtype, options: tuple[str, ...], S: int, T: int
) -> None:
    check(problem(options, dtype, Shape(B=1, S=S, T=T, H=2, K=1, D=24, Dv=24), backend.device))


def test_tiles_and_blocks(backend: Backend) -> None:
    """Several blocks of queries and of keys, whole and cut off."""
    for dtype, S, T in ((torch.bfloat16, 260, 520), (torch.float32, 129, 769)):
        for options in ((), ("causal",), ("window", "top_left")):
            shape = Shape(B=1, S=S, T=T, H=1, K=1, D=32, Dv=32)
            check(problem(options, dtype, shape, backend.device))


@each_dtype
@pytest.mark.parametrize("H, K", [(1, 1), (3, 3), (6, 2), (5, 1), (16, 2)])
@pytest.mark.parametrize("S", [1, 4])
def test_groups(backend: Backend, dtype: torch.dtype, H: int, K: int, S: int) -> None:
    """Multi-head, grouped and multi-query attention, decoding and not."""
    check(problem(("causal",), dtype, Shape(S=S, T=50, H=H, K=K), backend.device))


@pytest.mark.parametrize("lengths", [{"B": 0}, {"S": 0}, {"T": 0}, {"S": 0, "T": 0}], ids=str)
@pytest.mark.parametrize("options", [(), ("causal", "sinks")], ids=name)
def test_empty(backend: Backend, lengths: dict[str, int], options: tuple[str, ...]) -> None:
    """Without keys out is 0, and lse -inf or the sink."""
    call = problem(options, torch.float32, Shape(**lengths), backend.device)
    out = check(call)
    if lengths.get("T") == 0:
        assert out.count_nonzero() == 0


# ----------------------------------------------------------------------------------------- strides


@usual_dtype
def test_layouts_give_the_same_bits(backend: Backend, dtype: torch.dtype) -> None:
    shape = Shape()
    call = problem(("causal",), dtype, shape, backend.device)
    expected = weft.attention(**call)
    B, S, T, H, K, D = shape.B, shape.S, shape.T, shape.H, shape.K, shape.D

    def same(**others: torch.Tensor) -> None:
        for x, t in others.items():
            assert torch.equal(t, call[x]) and not t.is_contiguous(), x
        assert torch.equal(weft.attention(**(call | others)), expected)

    names = ("q", "k", "v")
    same(**{x: call[x].transpose(1, 2).contiguous().transpose(1, 2) for x in names})
    same(**{x: call[x].transpose(2, 3).contiguous().transpose(2, 3) for x in names})
    together = torch.cat([call["q"], call["q"].neg(), call["q"]], 2)
    same(q=together[:, :, 2 * H :])
    kv = torch.stack([call["k"], call["v"]], 2)
    same(k=kv[:, :, 0], v=kv[:, :, 1])
    wide = torch.cat([call["q"], draw((B, S, H, 3), dtype, backend.device)], -1)
    same(q=wide[..., :D])
    rows = draw((B, 2 * T, K, D), dtype, backend.device)
    rows[:, ::2] = call["k"]
    same(k=rows[:, ::2])


def test_expanded_inputs(backend: Backend) -> None:
    """One sequence of keys for the whole batch, one row for all queries."""
    call = problem((), torch.float32, device=backend.device)
    call["k"] = call["k"][:1].expand_as(call["k"])
    call["q"] = call["q"][:, :1].expand_as(call["q"])
    out = check(call)
    assert torch.equal(out[:, 0], out[:, -1])


# ----------------------------------------------------------------------------------------- options


@usual_dtype
@pytest.mark.parametrize("option", OPTIONS)
def test_options(backend: Backend, dtype: torch.dtype, option: str) -> None:
    check(problem((option,), dtype, device=backend.device))


@pytest.mark.parametrize("S, T", [(5, 30), (30, 5), (12, 12), (1, 9)])
@pytest.mark.parametrize("top_left", [False, True])
@pytest.mark.parametrize("left, right", [(-1, 0), (3, 0), (0, 0), (0, 4), (2, -1), (100, 100)])
def test_windows(backend: Backend, S: int, T: int, top_left: bool, left: int, right: int) -> None:
    call = problem((), torch.float32, Shape(B=1, S=S, T=T, H=1, K=1), backend.device)
    check(call | {"window_size": (left, right), "top_left": top_left})


def test_window_of_nothing_is_none() -> None:
    call = problem()
    for nothing in ((None, None), (-1, -1), (-7, None)):
        assert torch.equal(weft.attention(**call, window_size=nothing), weft.attention(**call))
    expected = weft.attention(**call, causal=True)
    assert torch.equal(weft.attention(**call, window_size=(None, 0)), expected)
    assert torch.equal(weft.attention(**call, window_size=(-1, 5), causal=True), expected)


def test_alibi_and_sinks_of_any_dtype() -> None:
    call = problem()
    slopes, sinks = torch.rand(4).bfloat16(), torch.randn(4).bfloat16()
    expected = weft.attention(**call, alibi_slopes=slopes.float(), sinks=sinks.float())
    assert torch.equal(weft.attention(**call, alibi_slopes=slopes, sinks=sinks), expected)


@pytest.mark.parametrize("shape", [(3,), (5, 1, 1), (2, 4, 19, 36), (1, 1, 1, 1, 37)], ids=str)
def test_what_does_not_broadcast_is_refused(shape: tuple[int, ...]) -> None:
    for x, t in (("bias", torch.zeros(shape)), ("mask", torch.ones(shape, dtype=torch.bool))):
        message = rf"{x} has shape .*, expected one that broadcasts to \[2, 4, 19, 37\]"
        with pytest.raises(ValueError, match=message):
            weft.attention(**problem(), **{x: t})


# ------------------------------------------------------------------------- nothing, NaN, inf, huge


@usual_dtype
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_that_see_nothing(backend: Backend, dtype: torch.dtype, sinks: bool) -> None:
    """By the mask, by a bias of -inf, by the causal diagonal: zeros, and lse -inf or the sink."""
    options = ("sinks",) if sinks else ()
    shape = Shape(S=20, T=9)
    mask = torch.rand(2, 1, 20, 9, device=backend.device) < 0.5
    mask[:, :, 4:7] = False
    bias = torch.zeros(20, 9, device=backend.device).masked_fill(~mask[0, 0], -math.inf)
    for hidden in ({"mask": mask}, {"bias": bias}, {"bias": bias.to(dtype)}, {"causal": True}):
        call = problem(options, dtype, shape, backend.device) | hidden
        out = check(call)
        rows = slice(0, 11) if "causal" in hidden else slice(4, 7)
        assert out[:, rows].count_nonzero() == 0
        lse = weft.attention(**call, return_lse=True)[1][:, :, rows]
        sink = call["sinks"][:, None] if sinks else torch.tensor(-math.inf)
        torch.testing.assert_close(lse, sink.to(lse).expand_as(lse))


@each_dtype
def test_nan_stays_where_it_is(backend: Backend, dtype: torch.dtype) -> None:
    call = problem((), dtype, Shape(B=1, S=40, T=40, H=2, K=2), backend.device)
    call["q"][0, 7, 1, 3] = math.nan
    out = check(call)
    assert out[0, 7, 1].isnan().all() and out.isnan().sum() == out.shape[-1]

    call = problem((), dtype, Shape(B=1, S=40, T=40, H=2, K=2), backend.device)
    call["v"][0, 7, 1, 3] = math.nan
    out = check(call)
    assert out[0, :, 1, 3].isnan().all() and out.isnan().sum() == out.shape[1]

    call["v"][0, 7, 1, 3] = 1
    call["k"][0, 7, 1, 3] = math.nan
    out = check(call)
    assert out[0, :, 1].isnan().all() and not out[0, :, 0].isnan().any()


@usual_dtype
def test_infinite_scores(backend: Backend, dtype: torch.dtype) -> None:
    """A key at +inf makes its row NaN, as a softmax in PyTorch does; at -inf it counts nothing."""
    call = problem((), dtype, Shape(B=1, S=5, T=40, H=1, K=1), backend.device)
    bias = torch.zeros(5, 40, device=backend.device)
    bias[2, 3] = -math.inf
    check(call | {"bias": bias})
    bias[1, 3] = math.inf
    out = weft.attention(**call, bias=bias)
    assert out[0, 1].isnan().all() and out.isnan().sum() == out.shape[-1]
    call["v"][0, 5, 0, 0] = math.inf
    assert check(call)[..., 0].isinf().all()


@each_dtype
def test_huge_scores(backend: Backend, dtype: torch.dtype) -> None:
    """Scores whose exponentials overflow any dtype."""
    call = problem((), dtype, device=backend.device)
    luck = 64 if dtype == torch.float64 else 1  # the truth errs as they do
    for factor in (30.0, -30.0):
        check(call | {"q": call["q"] * factor, "k": call["k"] * 10}, luck)
    check(call | {"softmax_scale": 0.0})
    if dtype in (torch.float32, torch.bfloat16):
        bias = torch.where(torch.rand(19, 37) < 0.5, -1e30, -1e30 * 1.01).to(backend.device)
        check(call | {"bias": bias})


@pytest.mark.parametrize("S", [1, pytest.param(65, marks=pytest.mark.slow)])
def test_64k_keys(backend: Backend, S: int) -> None:
    for options in (("causal",), ("causal", "splits"), ("window", "sinks")):
        shape = Shape(B=1, S=S, T=65537, H=2, K=1, D=64, Dv=64)
        check(problem(options, torch.bfloat16, shape, backend.device))
