"""The linear layers over several tiles, stages and shares of the depth.

Kernels have tiles of their own for few rows and for many, rings of stages that go round, and depths
that several blocks or warps share.
"""

from __future__ import annotations

import pytest
import torch

import weft
from backends import Backend
from weft import reference

from .cases import assert_linear, draw, integers, name, packed, scales

PRODUCTS = ((3, 140, 2100), (16, 70, 1300), (40, 150, 700), (200, 300, 600), (140, 260, 130))


@pytest.mark.parametrize("shape", PRODUCTS, ids=name)
def test_sums(backend: Backend, shape) -> None:
    M, N, K = shape
    weight, q = integers(N, K), integers(M, K)
    points = torch.randint(-128, 128, (M,), dtype=torch.int32)
    options = {"x_scale": torch.ones(M), "x_zero_point": points}
    found = weft.int8_linear(q, packed(weight), torch.ones(N), out_dtype=torch.int32, **options)
    assert torch.equal(found.long(), reference.int8.products(q, weight, points[:, None]))


@pytest.mark.parametrize("shape", PRODUCTS, ids=name)
def test_endings(backend: Backend, shape) -> None:
    M, N, K = shape
    x, weight, scale = draw(M, K, dtype=torch.bfloat16), integers(N, K), scales(N)
    bias, residual = draw(N), draw(M, N, dtype=torch.bfloat16)
    q = weft.quantize_int8(x, symmetric=False)
    y = weft.int8_linear(
        x, packed(weight), scale, bias, symmetric=False, activation="silu", residual=residual
    )
    x8 = reference.int8.dequantize(q.values.double(), q.scale.double(), q.zero_point)
    w = reference.int8.weight(weight, scale.double())
    assert_linear(y, x8, w, bias, "silu", residual)


@pytest.mark.parametrize("shape", PRODUCTS, ids=name)
def test_outliers(backend: Backend, shape) -> None:
    M, N, K = shape
    x, weight, scale = draw(M, K).clamp(-5, 5), integers(N, K), scales(N)
    x[:, 5], x[M // 2, K - 1] = 30, -8
    y = weft.llm_int8_linear(x, packed(weight), scale)
    outliers = (x.abs() >= 6).any(0)
    rest = weft.quantize_int8(torch.where(outliers, 0, x))
    x8 = reference.int8.dequantize(rest.values.double(), rest.scale.double())
    both = torch.where(outliers, x.double(), x8)
    assert_linear(y, both, reference.int8.weight(weight, scale.double()))


@pytest.mark.parametrize("group", [None, 32, 48, 320])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("M", [1, 11, 40])
def test_weight_only(backend: Backend, M: int, bits: int, group: int | None) -> None:
    """Groups that end within a warp's share of the depth, and depths off every block."""
    N, K = 300, 960 if group else 970
    x, weight = draw(M, K, dtype=torch.bfloat16), integers(N, K, bits=bits)
    scale = scales(N, K // group) if group else scales(N)
    point = torch.randint(-8, 8, scale.shape).float()
    y = weft.weight_only_linear(x, packed(weight, bits), scale, weight_zero_point=point, bits=bits)
    w = reference.int8.weight(weight, scale.double(), point.double())
    # The zero point comes off after the sum, whose terms are larger.
    terms = x.double().abs() @ (w.abs() + point.abs().amax() * scale.double().amax()).t()
    truth = x.double() @ w.t()
    allowed = 0.5 * torch.finfo(y.dtype).eps * truth.abs() + 3e-6 * terms
    allowed += 2**-16 * x.double().abs().amax(-1, keepdim=True) * w.abs().sum(-1)
    assert ((y.double() - truth).abs() <= allowed).all()
