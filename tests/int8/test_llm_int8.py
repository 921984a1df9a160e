"""llm_int8_linear: outlier columns in floats, the rest in int8."""

from __future__ import annotations

import pytest
import torch

import weft
from backends import Backend
from weft import reference

from .cases import FLOATS, SHAPES, assert_linear, draw, integers, name, packed, scales


def with_outliers(M: int, K: int, dtype: torch.dtype) -> torch.Tensor:
    """Some columns that reach 6 in one row each."""
    x = draw(M, K).clamp(-5, 5)
    x[torch.arange(0, K, 7) % M, torch.arange(0, K, 7)] = 40
    return x.to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_against_the_reference(backend: Backend, shape, dtype: torch.dtype):
    M, N, K = shape
    x, weight, scale, bias = with_outliers(M, K, dtype), integers(N, K), scales(N), draw(N)
    y = weft.llm_int8_linear(x, packed(weight), scale, bias)
    outliers = (x >= 6).any(0)
    rest = weft.quantize_int8(torch.where(outliers, 0, x))
    x8 = reference.int8.dequantize(rest.values.double(), rest.scale.double())
    both = torch.where(outliers, x.double(), x8)
    assert_linear(y, both, reference.int8.weight(weight, scale.double()), bias)
    whole = reference.int8.llm_int8_linear(x.double(), weight, scale.double(), bias.double())
    step = rest.scale.double() * 128 * scale.double() * K**0.5  # ties may go either way
    assert ((y.double() - whole).abs() <= step + torch.finfo(dtype).eps * whole.abs()).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_all_or_no_columns(backend: Backend, dtype: torch.dtype):
    x, weight, scale = draw(9, 50, dtype=dtype), integers(70, 50), scales(70)
    ready = packed(weight)
    plain = weft.int8_linear(x, ready, scale)
    assert torch.equal(weft.llm_int8_linear(x, ready, scale, threshold=1e9), plain)
    assert torch.equal(weft.llm_int8_linear(x, ready, scale, threshold=0), plain)
    exact = weft.llm_int8_linear(x, ready, scale, threshold=1e-9)
    truth = x.double() @ reference.int8.weight(weight, scale.double()).t()
    torch.testing.assert_close(exact, truth.to(dtype), rtol=torch.finfo(dtype).eps, atol=2e-5)


def test_repairs_what_int8_loses(backend: Backend):
    x, weight, scale = with_outliers(40, 200, torch.float32), integers(70, 200), scales(70)
    truth = x.double() @ reference.int8.weight(weight, scale.double()).t()
    plain = (weft.int8_linear(x, packed(weight), scale) - truth).square().mean()
    split = (weft.llm_int8_linear(x, packed(weight), scale) - truth).square().mean()
    assert split < plain / 20


def test_outliers_beside_long_sums(backend: Backend):
    """More columns than int32 holds sums of, and more outliers than a block takes at once."""
    M, N, K = 2, 600, 65664
    x, weight, scale, bias = draw(M, K).clamp(-5, 5), integers(N, K), scales(N), draw(N)
    x[0, ::700] = 40
    y = weft.llm_int8_linear(x, packed(weight), scale, bias, activation="relu")
    outliers = (x.abs() >= 6).any(0)
    rest = weft.quantize_int8(torch.where(outliers, 0, x))
    x8 = reference.int8.dequantize(rest.values.double(), rest.scale.double())
    both = torch.where(outliers, x.double(), x8)
    assert_linear(y, both, reference.int8.weight(weight, scale.double()), bias, "relu")


def test_threshold_is_met_not_passed(backend: Backend):
    """|x| = threshold is an outlier, as the paper has it; so are NaN and infinity, in their row."""
    weight, scale = integers(70, 33), scales(70)
    x = draw(5, 33).clamp(-5, 5)
    ready = packed(weight)
    low = weft.llm_int8_linear(x, ready, scale)
    x[1, 3] = 6.0
    truth = x.double() @ reference.int8.weight(weight, scale.double()).t()
    at = weft.llm_int8_linear(x, ready, scale) - truth
    assert at[1].abs().max() < 4 * (low[0] - truth[0]).abs().max()
    x[2, 4] = torch.nan
    y = weft.llm_int8_linear(x, ready, scale)
    assert y[2].isnan().all() and not y[[0, 1, 3, 4]].isnan().any()
    x[2, 4] = torch.inf
    y = weft.llm_int8_linear(x, ready, scale)
    of_floats = torch.inf * weight[:, 4]  # NaN by a weight of 0
    assert torch.equal(y[2].nan_to_num(), of_floats.nan_to_num())
    assert y[[0, 1, 3, 4]].isfinite().all()


def test_gradients(backend: Backend):
    """dy · W, and dyᵀ · x for the weight that was quantised."""
    full = draw(70, 33).requires_grad_()
    q = weft.quantize_int8(full.detach())
    x, bias = draw(2, 5, 33).requires_grad_(), draw(70).requires_grad_()
    scale = q.scale.flatten()
    y = weft.llm_int8_linear(x, packed(q.values), scale, bias, threshold=2.0, weight=full)
    dy = torch.randn_like(y)
    y.backward(dy)
    w = reference.int8.weight(q.values, scale.double())
    torch.testing.assert_close(x.grad, (dy.double() @ w).float())
    torch.testing.assert_close(full.grad, dy.reshape(-1, 70).t() @ x.detach().reshape(-1, 33))
    torch.testing.assert_close(bias.grad, dy.sum((0, 1)))
