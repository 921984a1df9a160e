"""weft.attention, backward: sizes, groups, options alone, lse, and what autograd expects."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import weft
from backends import Backend

from .cases import (
    FLOATS,
    OPTIONS,
    RNG,
    USUAL,
    Problem,
    Shape,
    by_weft,
    check,
    check_backward,
    draw,
    gradients,
    integers,
    name,
    problem,
)

each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=name)
usual_dtype = pytest.mark.parametrize("dtype", USUAL, ids=name)

TRAINED = [option for option in OPTIONS if "split" not in option]

# ------------------------------------------------------------------------------------------- sizes


@each_dtype
@pytest.mark.parametrize("D", [1, 3, 17, 40, 64, 65, 128, 256, 512])
def test_head_sizes(backend: Backend, dtype: torch.dtype, D: int) -> None:
    shape = Shape(B=1, S=7, T=21, H=2, K=1, D=D, Dv=D)
    check_backward(problem(("causal",), dtype, shape, backend.device))


def test_every_head_size() -> None:
    """Forward and backward, with values of another size."""
    for D in range(1, 513):
        dtype = FLOATS[1 + D % 3]
        call = problem(("causal",), dtype, Shape(B=1, S=5, T=9, H=2, K=1, D=D, Dv=513 - D))
        check(call)
        check_backward(call)


@usual_dtype
@pytest.mark.parametrize("D, Dv", [(192, 128), (64, 65), (17, 512), (1, 3), (40, 1)])
def test_other_head_size_of_values(backend: Backend, dtype: torch.dtype, D: int, Dv: int) -> None:
    check_backward(problem((), dtype, Shape(B=1, S=9, T=33, D=D, Dv=Dv), backend.device))


@usual_dtype
@pytest.mark.parametrize("options", [(), ("causal",)], ids=name)
@pytest.mark.parametrize(
    "S, T", [(1, 1), (1, 70), (2, 1), (17, 17), (63, 65), (64, 64), (65, 130), (130, 63)]
)
def test_lengths(
    backend: Backend, dtype: torch.dtype, options: tuple[str, ...], S: int, T: int
) -> None:
    shape = Shape(B=1, S=S, T=T, H=2, K=1, D=24, Dv=24)
    check_backward(problem(options, dtype, shape, backend.device))


def test_tiles_and_blocks(backend: Backend) -> None:
    """Several blocks of queries and of keys, whole and cut off."""
    for dtype, S, T in ((torch.bfloat16, 190, 330), (torch.float32, 129, 260)):
        for options in ((), ("causal",), ("window", "top_left")):
            shape = Shape(B=1, S=S, T=T, H=1, K=1, D=32, Dv=32)
            check_backward(problem(options, dtype, shape, backend.device))


@each_dtype
@pytest.mark.parametrize("H, K", [(1, 1), (3, 3), (6, 2), (5, 1)])
def test_groups(backend: Backend, dtype: torch.dtype, H: int, K: int) -> None:
    check_backward(problem(("causal",), dtype, Shape(S=9, T=21, H=H, K=K), backend.device))


@pytest.mark.parametrize("lengths", [{"B": 0}, {"S": 0}, {"T": 0}, {"S": 0, "T": 0}], ids=str)
def test_empty(backend: Backend, lengths: dict[str, int]) -> None:
    call = problem(("causal", "sinks", "bias"), torch.float32, Shape(**lengths), backend.device)
    check_backward(call)


# ----------------------------------------------------------------------------------------- options


@usual_dtype
@pytest.mark.parametrize("option", TRAINED)
def test_options(backend: Backend, dtype: torch.dtype, option: str) -> None:
    check_backward(problem((option,), dtype, device=backend.device))


@usual_dtype
def test_without_lse(backend: Backend, dtype: torch.dtype) -> None:
    check_backward(problem(("causal",), dtype, device=backend.device), with_lse=False)


def test_lse_alone(backend: Backend) -> None:
    """Its gradient by the scores is the softmax."""
    call = problem(("softcap",), torch.float32, device=backend.device)
    dout = torch.zeros(2, 19, 4, 40, device=backend.device)
    dlse = draw((2, 4, 19), device=backend.device)
    ours = gradients(by_weft, call, dout, dlse)
    assert ours["v"].count_nonzero() == 0
    leaves = {x: call[x].detach().requires_grad_() for x in ("q", "k", "v")}
    weft.attention(**(call | leaves), return_lse=True)[1].backward(dlse)
    for x, leaf in leaves.items():
        assert torch.equal(leaf.grad, ours[x])


def test_rows_that_see_nothing(backend: Backend) -> None:
    shape = Shape(S=20, T=9)
    mask = torch.rand(2, 1, 20, 9, device=backend.device) < 0.5
    mask[:, :, 4:7] = False
    bias = torch.zeros(20, 9, device=backend.device).masked_fill(~mask[0, 0], -math.inf)
    for hidden in ({"mask": mask}, {"bias": bias}, {"causal": True}):
        for options in ((), ("sinks",)):
            call = problem(options, torch.float32, shape, backend.device) | hidden
            rows = slice(0, 11) if "causal" in hidden else slice(4, 7)
            assert check_backward(call)["q"][:, rows].count_nonzero() == 0


# ------------------------------------------------------------------------- what autograd expects


def test_only_what_is_asked_for(backend: Backend) -> None:
    call = problem(("bias", "sinks"), torch.float32, device=backend.device)
    dout = draw((2, 19, 4, 40), device=backend.device)
    expected = gradients(by_weft, call, dout, None)
    for wanted in expected:
        leaf = call[wanted].detach().requires_grad_()
        out = weft.attention(**(call | {wanted: leaf}))
        assert torch.equal(torch.autograd.grad(out, leaf, dout)[0], expected[wanted]), wanted


def test_upstream_of_any_strides(backend: Backend) -> None:
    call = problem((), torch.float32, device=backend.device)
    whole = draw((2, 19, 4, 40), device=backend.device)
    one = torch.ones((), device=backend.device)
    for dout in (whole.transpose(1, 2).contiguous().transpose(1, 2), one.expand(2, 19, 4, 40)):
        for ours, expected in zip(
            gradients(by_weft, call, dout, None).values(),
            gradients(by_weft, call, dout.contiguous(), None).values(),
            strict=True,
        ):
            assert torch.equal(ours, expected)


def test_gradients_through_views(backend: Backend) -> None:
    """Of q, k and v that are one tensor, and of a bias that is expanded."""
    qkv = draw((2, 9, 3, 4, 16), device=backend.device).requires_grad_()
    bias = draw((4, 1, 9), device=backend.device).requires_grad_()
    q, k, v = qkv.unbind(2)
    weft.attention(q, k, v, bias=bias).square().sum().backward()
    call: Problem = {"q": q, "k": k, "v": v, "bias": bias.expand(2, 4, 9, 9)}
    dout = 2 * weft.attention(**call).detach()
    expected = gradients(by_weft, call, dout, None)
    torch.testing.assert_close(qkv.grad, torch.stack([expected[x] for x in "qkv"], 2))
    torch.testing.assert_close(bias.grad, expected["bias"].sum((0, 2))[:, None])


def test_gradients_accumulate(backend: Backend) -> None:
    q = draw((1, 5, 2, 8), device=backend.device).requires_grad_()
    (weft.attention(q, q, q) + weft.attention(q, q, q)).sum().backward()
    (once,) = torch.autograd.grad(weft.attention(q, q, q).sum(), q)
    torch.testing.assert_close(q.grad, 2 * once)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("causal", "bias_of_heads"),
        ("window", "softcap", "alibi", "top_left"),
        ("mask", "dropout", "scale", "bias"),
    ],
    ids=name,
)
def test_gradcheck(backend: Backend, options: tuple[str, ...]) -> None:
    shape = Shape(B=2, S=4, T=5, H=2, K=1, D=3, Dv=2)
    call = problem(options, torch.float64, shape, backend.device)
    names = [x for x in ("q", "k", "v", "bias") if x in call]

    def outputs(*leaves: Tensor) -> tuple[Tensor, ...]:
        out, lse = weft.attention(**(call | dict(zip(names, leaves, strict=True))), return_lse=True)
        return out, lse.masked_fill(lse.isinf(), 0)

    leaves = [call[x].requires_grad_() for x in names]
    assert torch.autograd.gradcheck(outputs, leaves)


def test_gradcheck_packed(backend: Backend) -> None:
    cu_q, cu_k = integers([0, 2, 2, 5], backend.device), integers([0, 3, 4, 7], backend.device)
    q, k, v = (
        draw((n, heads, 3), torch.float64, backend.device).requires_grad_()
        for n, heads in ((5, 2), (7, 1), (7, 1))
    )

    def outputs(*leaves: Tensor) -> Tensor:
        return weft.attention(
            *leaves, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, causal=True, dropout_p=0.2, rng_state=RNG
        )

    assert torch.autograd.gradcheck(outputs, [q, k, v])


@pytest.mark.slow
def test_long_sequences(backend: Backend) -> None:
    for dtype in USUAL:
        shape = Shape(B=1, S=2049, T=4097, H=2, K=1, D=64, Dv=64)
        check_backward(problem(("causal",), dtype, shape, backend.device))
