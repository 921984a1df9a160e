"""Checkpoints, what is saved, which gradients exist, and gradients of gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weft
from weft.ops._norm_args import NormArgs

from .torch_cases import (
    CHANNELS,
    RNG,
    ROWS,
    channels,
    each_function,
    forward_samples,
    inputs,
    layer_norm,
    rand,
    rms_norm,
    rows,
)

OPS = torch.ops.weft


@pytest.mark.parametrize("use_reentrant", [False, True])
@each_function
def test_checkpoint(f, use_reentrant):
    """Dropout draws the same mask when the forward pass is computed again."""
    args = inputs()
    again = with_grads_backward(lambda *a: checkpoint(f, *a, use_reentrant=use_reentrant), *args)
    assert_close(again, with_grads_backward(f, *args))


def with_grads_backward(f: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
    """Through .backward(), which reentrant checkpoints demand."""
    for a in args:
        a.grad = None
    torch.manual_seed(1)
    y = f(*args)
    y.sin().sum().backward()
    return y, *(a.grad for a in args)


def test_seed_sets_the_mask():
    x = rows()

    def mask() -> Tensor:
        return weft.layer_norm_fn(x, None, None, dropout_p=0.5, return_dropout_mask=True)[1]

    torch.manual_seed(7)
    first, second = mask(), mask()
    torch.manual_seed(7)
    assert torch.equal(first, mask())
    assert not torch.equal(first, second)


def test_statistics_and_masks_are_not_differentiable():
    args = next(a for a in forward_samples(grad=True) if a.dropout_p > 0)
    y, y1, z, *others = OPS.norm_forward(*args)
    assert y.requires_grad and z.requires_grad
    assert not any(t.requires_grad for t in others)


def test_raw_op_says_what_a_gradient_needs():
    with pytest.raises(RuntimeError, match="a gradient needs save_stats=True"):
        OPS.norm_forward(*NormArgs(rows(grad=True), 1))


def saved_bytes(f: Callable[[], Tensor], *arguments: Tensor) -> int:
    """What autograd keeps, apart from the arguments themselves."""
    known = {t.untyped_storage().data_ptr() for t in arguments}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = f()
    del result
    return sum(kept.values())


def test_saves_what_backward_needs_and_no_more():
    x, w, b = inputs()
    r = rows(grad=True)
    statistic, z = 4 * 15, 4 * 15 * CHANNELS
    assert saved_bytes(lambda: layer_norm(x, w, b), x, w, b) == 2 * statistic
    assert saved_bytes(lambda: rms_norm(x, w, b), x, w, b) == statistic

    def fused(p: float) -> Tensor:
        return weft.rms_norm_fn(x, w, b, residual=r, dropout_p=p)

    assert saved_bytes(lambda: fused(0.0), x, w, b, r) == statistic + z
    assert saved_bytes(lambda: fused(0.5), x, w, b, r) == statistic + z + 16

    def efficient() -> Tensor:
        return weft.layer_norm(x, (CHANNELS,), w, b, memory_efficient=True)

    assert saved_bytes(efficient, x, w, b) == statistic + z


def test_equal_gradients_are_one_tensor():
    x, r, r2 = rows(grad=True), rows(grad=True), rows(grad=True)
    y = weft.layer_norm_fn(x, None, None, residual=r, residual2=r2)
    dx, dr, dr2 = torch.autograd.grad(y.sin().sum(), [x, r, r2])
    assert dx.data_ptr() == dr.data_ptr() == dr2.data_ptr()
    x16 = rows(dtype=torch.bfloat16, grad=True)
    y = weft.layer_norm_fn(x16, None, None, residual=r, residual2=r2, residual_alpha=0.5)
    dx, dr, dr2 = torch.autograd.grad(y.float().sin().sum(), [x16, r, r2])
    assert dx.dtype == torch.bfloat16
    assert_close(dr, 0.5 * dr2)


def test_frozen_parameters_get_no_gradient():
    x, w, b = inputs()
    w.requires_grad_(False)
    y = layer_norm(x, w, b)
    y.sum().backward()
    assert w.grad is None and x.grad is not None and b.grad is not None


def test_gradients_have_their_tensors_dtypes():
    x, w, b = (
        rows(dtype=torch.bfloat16, grad=True),
        channels(grad=True),
        channels(dtype=torch.float16, grad=True),
    )
    w1, b1 = channels(dtype=torch.bfloat16, grad=True), channels(dtype=torch.float64, grad=True)
    r = rows(grad=True)
    y, y1, z = weft.layer_norm_fn(x, w, b, r, weight1=w1, bias1=b1, prenorm=True)
    assert z.dtype == torch.float32
    leaves = [x, w, b, w1, b1, r]
    grads = torch.autograd.grad((y.float().sin() + y1.float() + z).sum(), leaves)
    assert [g.dtype for g in grads] == [t.dtype for t in leaves]


def test_only_the_residual_is_used():
    x, w, b = inputs()
    _, z = weft.layer_norm_fn(x, w, b, residual=x.detach(), prenorm=True)
    (dx,) = torch.autograd.grad(z.sin().sum(), [x])
    assert_close(dx, (2 * x).cos().detach())


@each_function
def test_second_derivatives(f):
    args = inputs(dtype=torch.float64)

    def seeded(*a: Tensor) -> Tensor:
        torch.manual_seed(3)
        return f(*a)

    torch.autograd.gradgradcheck(seeded, args)


def test_first_derivatives_with_create_graph_are_those_without():
    x, w, b = inputs(dtype=torch.float64)
    ls, xb = channels(dtype=torch.float64, grad=True), channels(dtype=torch.float64, grad=True)
    rs = rand(*ROWS, dtype=torch.float64)
    y = weft.layer_norm_fn(
        x, w, b, x.sin(), layerscale=ls, x_bias=xb, rowscale=rs, dropout_p=0.5, rng_state=RNG,
        residual_alpha=2.0
    )  # fmt: skip
    leaves = [x, w, b, ls, xb]
    once = torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True)
    assert_close(torch.autograd.grad(y.sin().sum(), leaves, create_graph=True), once)


def test_memory_efficient_refuses_second_derivatives():
    x = rows(grad=True)
    y = weft.layer_norm(x, (CHANNELS,), memory_efficient=True)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_gradients_that_do_not_exist_are_refused():
    x, w, _ = inputs()
    with pytest.raises(NotImplementedError, match="rowscale has no gradient"):
        weft.layer_norm_fn(x, w, None, rowscale=rand(*ROWS, grad=True))
    with pytest.raises(RuntimeError, match="out= has no gradient"):
        weft.layer_norm(x, (CHANNELS,), w, out=rows())
    with pytest.raises(RuntimeError, match="in-place norm has no gradient"):
        weft.fused_add_rms_norm(x, rows(), w)
    with pytest.raises(ValueError, match="bias1 needs weight1"):
        weft.layer_norm_fn(x, w, None, bias1=w)
    with pytest.raises(ValueError, match="rowscale cannot be combined with x1"):
        weft.layer_norm_fn(x, w, None, x1=x, rowscale=rand(*ROWS))
