"""weight_only_linear: W8A16 and W4A16."""

from __future__ import annotations

import pytest
import torch

import weft
from backends import Backend
from weft import reference

from .cases import FLOATS, SHAPES, assert_linear, draw, integers, name, packed, scales

# What rounding x to 16 or 24 bits may take from each of its elements, of the row's largest.
ROUNDING = {torch.bfloat16: 2**-16, torch.float16: 2**-23, torch.float32: 2**-23}


@pytest.mark.parametrize("shape", SHAPES, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("bits", [8, 4])
def test_per_channel(backend: Backend, shape, dtype: torch.dtype, bits: int):
    M, N, K = shape
    x, bias = draw(M, K, dtype=dtype), draw(N, dtype=dtype)
    weight, scale = integers(N, K, bits=bits), scales(N)
    y = weft.weight_only_linear(x, packed(weight, bits), scale, bias, bits=bits)
    w = reference.int8.weight(weight, scale.double())
    assert_linear(y, x, w, bias, rounding=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [8, 32, 64, 128])
@pytest.mark.parametrize("M", [1, 2, 5, 18])
def test_groups(backend: Backend, dtype: torch.dtype, bits: int, group: int, M: int):
    """Scales and zero points of groups, in rows or columns of memory."""
    N, K = 70, 384
    x, weight = draw(M, K, dtype=dtype), integers(N, K, bits=bits)
    scale = scales(N, K // group)
    point = torch.randint(-8, 8, scale.shape).float() + 0.5
    ready = packed(weight, bits)
    y = weft.weight_only_linear(x, ready, scale, weight_zero_point=point, bits=bits)
    w = reference.int8.weight(weight, scale.double(), point.double())
    # The zero point comes off after the sum: the sum's terms count, not the differences.
    terms = weight.abs().amax() + point.abs().amax()
    slack = w.abs() + terms.double() * scale.double().repeat_interleave(group, 1)
    allowed = (x.double().abs() @ slack.t()) * 2e-6
    allowed += ROUNDING[dtype] * x.double().abs().amax(-1, keepdim=True) * slack.sum(-1)
    truth = x.double() @ w.t()
    allowed += 0.5 * torch.finfo(dtype).eps * truth.abs()
    assert ((y.double() - truth).abs() <= allowed).all()

    columns = [t.t().contiguous().t() for t in (scale, point)]
    again = weft.weight_only_linear(x, ready, columns[0], weight_zero_point=columns[1], bits=bits)
    assert torch.equal(y, again)


def test_ones_and_powers_are_exact(backend: Backend):
    """Rows whose elements are whole multiples of what rounding leaves come out exactly."""
    weight = integers(70, 50)
    x = torch.randint(-8000, 8000, (7, 50)).float()
    x[:, 0] = 8355707  # what the largest becomes
    y = weft.weight_only_linear(x, packed(weight), torch.ones(70))
    truth = reference.int8.products(x.long(), weight)
    assert ((y.double() - truth).abs() <= truth.abs() * 2**-22).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_endings(backend: Backend, dtype: torch.dtype):
    x, bias, residual = draw(9, 40, dtype=dtype), draw(70, dtype=dtype), draw(9, 70, dtype=dtype)
    weight, scale = integers(70, 40), scales(70)
    w = reference.int8.weight(weight, scale.double())
    for activation in ("relu", "gelu", "gelu_tanh", "silu"):
        y = weft.weight_only_linear(
            x, packed(weight), scale, bias, activation=activation, residual=residual
        )
        assert_linear(y, x, w, bias, activation, residual, rounding=1.2 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("M, K", [(5, 33), (5, 48), (40, 48)])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_rows_without_numbers(
    backend: Backend, dtype: torch.dtype, M: int, K: int, activation: str
):
    weight, scale, x = packed(integers(70, K)), scales(70), draw(M, K, dtype=dtype)
    clean = weft.weight_only_linear(x, weight, scale, activation=activation)
    x[1, 3], x[2, 4], x[3], x[4, 5] = torch.nan, torch.inf, 0, -torch.inf
    y = weft.weight_only_linear(x, weight, scale, activation=activation)
    assert y[[1, 2, 4]].isnan().all() and not y[3].any()
    assert torch.equal(y[0], clean[0]) and torch.equal(y[5:], clean[5:])


def test_tiny_and_huge_rows(backend: Backend):
    weight, scale = integers(70, 33), scales(70)
    x = draw(3, 33)
    x[0] *= 1e30
    x[1] *= 1e-28
    y = weft.weight_only_linear(x, packed(weight), scale)
    w = reference.int8.weight(weight, scale.double())
    assert_linear(y, x, w, rounding=2**-23)


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients(backend: Backend, bits: int):
    weight, scale = integers(70, 64, bits=bits), scales(70, 2)
    point = torch.randint(-8, 8, (70, 2)).float()
    x, bias = draw(2, 5, 64).requires_grad_(), draw(70).requires_grad_()
    y = weft.weight_only_linear(
        x, packed(weight, bits), scale, bias, weight_zero_point=point, bits=bits
    )
    dy = torch.randn_like(y)
    y.backward(dy)
    w = reference.int8.weight(weight, scale.double(), point.double())
    torch.testing.assert_close(x.grad, (dy.double() @ w).float())
    torch.testing.assert_close(bias.grad, dy.sum((0, 1)))
