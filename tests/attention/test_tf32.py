"""float32 on a GPU where torch's precision of matrix products allows tf32: "highest" takes the
products apart, "high" and "medium" round their operands. A CPU computes in float32 all the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import weft
from backends import Backend
from tolerance import assert_no_worse_than_torch

from .cases import Shape, draw, name, problem, to_float64

HEADS = [(40, 40), (128, 96), (200, 72), (300, 300)]


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision(before)


def rounded(x: Tensor) -> Tensor:
    """To ten bits of mantissa, ties away from zero."""
    bits = x.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


class Product(torch.autograd.Function):
    """a · b of rounded operands; its gradients are such products, too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return rounded(a) @ rounded(b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,), (a, b) = grads, ctx.saved_tensors
        return rounded(grad) @ rounded(b).mT, rounded(a).mT @ rounded(grad)


def attend(q: Tensor, k: Tensor, v: Tensor, product: Any) -> tuple[Tensor, Tensor]:
    """Causal attention, bottom-right: out and lse."""
    group, (S, T) = q.shape[2] // k.shape[2], (q.shape[1], k.shape[1])
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    hidden = torch.ones(S, T, dtype=torch.bool).triu(T - S + 1)
    s = (product(q, k.mT) * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf)
    return product(s.softmax(-1), v).transpose(1, 2), s.logsumexp(-1)


def run(call: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    out, lse = weft.attention(**call, causal=True, return_lse=True)
    return out, lse


def is_gpu(backend: Backend) -> bool:
    return backend.isa is None


@pytest.mark.parametrize("setting", ["high", "medium"])
@pytest.mark.parametrize("D, Dv", HEADS)
def test_forward(backend: Backend, D: int, Dv: int, setting: str) -> None:
    call = problem((), torch.float32, Shape(S=37, T=70, D=D, Dv=Dv), backend.device)
    highest = run(call)
    torch.set_float32_matmul_precision(setting)
    found = run(call)
    assert torch.equal(found[0], highest[0]) != is_gpu(backend)
    exact = [to_float64(call[x]) for x in "qkv"]
    truth, plain = attend(*exact, torch.matmul), attend(*exact, Product.apply)
    for what, ours, true, theirs in zip(("out", "lse"), found, truth, plain, strict=True):
        assert_no_worse_than_torch(ours, true, theirs.float(), what)


def gradients(call: dict[str, Tensor], between: str | None = None) -> list[Tensor]:
    leaves = {x: t.detach().requires_grad_() for x, t in call.items()}
    out, lse = run(leaves)
    if between:
        torch.set_float32_matmul_precision(between)
    upstream = draw(out.shape, device=str(out.device)), draw(lse.shape, device=str(lse.device))
    return list(torch.autograd.grad((out, lse), list(leaves.values()), upstream))


@pytest.mark.parametrize("D, Dv", HEADS[:2])
def test_backward(backend: Backend, D: int, Dv: int) -> None:
    """As forward, whatever is set when it runs."""
    call = problem((), torch.float32, Shape(S=37, T=70, D=D, Dv=Dv), backend.device)
    torch.manual_seed(1)
    highest = gradients(call)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(1)
    found = gradients(call, between="highest")
    assert torch.equal(found[0], highest[0]) != is_gpu(backend)

    def plain(product: Any) -> list[Tensor]:
        leaves = [to_float64(call[x]).requires_grad_() for x in "qkv"]
        out, lse = attend(*leaves, product)
        torch.manual_seed(1)
        return list(torch.autograd.grad((out, lse), leaves, (draw(out.shape), draw(lse.shape))))

    truth, theirs = plain(torch.matmul), plain(Product.apply)
    for x, ours, true, other in zip("qkv", found, truth, theirs, strict=True):
        assert_no_worse_than_torch(ours, true, other.float(), f"d{x}")


@pytest.mark.parametrize("options", [("softcap",), ("bias",), ("dropout",)], ids=name)
def test_options(backend: Backend, options: tuple[str, ...]) -> None:
    """What stands between the products is as exact as ever."""
    call = problem(options, torch.float32, Shape(), backend.device)
    highest = weft.attention(**call)
    torch.set_float32_matmul_precision("high")
    torch.testing.assert_close(weft.attention(**call), highest, rtol=0, atol=0.01)


def test_compiled(backend: Backend) -> None:
    """The setting is part of what was compiled: where it changes, that is compiled again. There are
    two ways to set it."""
    shape = Shape(B=1, S=3, T=5, H=2, K=1, D=8, Dv=8)
    call = problem((), torch.float32, shape, backend.device)
    torch._dynamo.reset()
    compiled = torch.compile(gradients, backend="aot_eager")

    def newer(setting: str) -> None:
        torch.backends.cuda.matmul.fp32_precision = setting

    older = torch.set_float32_matmul_precision
    for set_precision, setting in (
        (older, "highest"), (older, "high"), (older, "highest"),
        (newer, "tf32"), (newer, "ieee"),
    ):  # fmt: skip
        set_precision(setting)
        results = []
        for function in (gradients, compiled):
            torch.manual_seed(1)
            results.append(function(call))
        for ours, expected in zip(*results, strict=True):
            assert torch.equal(ours, expected)
