"""Linear layers over several tiles, whole and cut off.

Kernels have tiles of their own for few rows and for many, blocks that take one tile after the
other, and blocks that split the depth between them.
"""

from __future__ import annotations

import pytest
import torch

import weft
from backends import Backend
from weft import reference

from .cases import assert_linear, draw, integers, name, packed, scales

# M×N×K
SHAPES = (
    (5, 300, 208),  # few rows, several tiles of the weight, the last cut off
    (16, 128, 2064),  # … K split
    (33, 650, 304),  # … more tiles than blocks
    (64, 130, 1040),
    (70, 131, 304),  # a row more than those are for; results off 16 bytes
    (100, 140, 1104),  # … K split
    (260, 264, 304),  # tiles of two blocks, the second of which has few rows
    (300, 776, 160),  # … more than blocks
    (300, 263, 160),  # … results off 16 bytes
)
# What the CPU's rounding of x to 16 or 24 bits may take from each of its elements.
ROUNDING = {torch.bfloat16: 2**-16, torch.float16: 2**-23}
OUTPUTS = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


@pytest.mark.parametrize("shape", SHAPES, ids=name)
@pytest.mark.parametrize("zero_points", [False, True])
def test_sums(backend: Backend, shape: tuple[int, ...], zero_points: bool) -> None:
    M, N, K = shape
    weight, q = integers(N, K), integers(M, K)
    options = {}
    if zero_points:
        options["x_zero_point"] = torch.randint(-128, 128, (M, 1), dtype=torch.int32)
    found = weft.int8_linear(
        q, packed(weight), torch.ones(N), x_scale=torch.ones(M), out_dtype=torch.int32, **options
    )
    expected = reference.int8.products(q, weight, *options.values())
    assert torch.equal(found.long(), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=name)
@pytest.mark.parametrize("dtype", OUTPUTS, ids=name)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_endings(
    backend: Backend, shape: tuple[int, ...], dtype: torch.dtype, activation: str
) -> None:
    M, N, K = shape
    weight, scale, bias = integers(N, K), scales(N), draw(N)
    q, x_scale, residual = integers(M, K), scales(M), draw(M, N, dtype=torch.bfloat16)
    options = {"bias": bias, "activation": activation, "residual": residual, "x_scale": x_scale}
    x = reference.int8.dequantize(q.double(), x_scale.double()[:, None])
    w = reference.int8.weight(weight, scale.double())
    if dtype != torch.int8:
        y = weft.int8_linear(q, packed(weight), scale, out_dtype=dtype, **options)
        assert_linear(y, x, w, bias, activation, residual)
        return
    out = {"out_scale": torch.tensor(0.1), "out_zero_point": 5, "out_dtype": dtype}
    y = weft.int8_linear(q, packed(weight), scale, **options, **out)
    exact = reference.int8.linear(x, w, bias.double(), activation, residual.double())
    exact = (exact / torch.tensor(0.1).double() + 5).clamp(-128, 127)
    assert ((y - exact).abs() <= 0.5 + 1e-3).all()  # ties, and floats beside them, go either way


@pytest.mark.parametrize("shape", [(20, 300, 1104), (64, 260, 208), (70, 131, 600), (200, 300, 88)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
def test_weight_only(backend: Backend, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    M, N, K = shape
    x, weight, scale, bias = draw(M, K, dtype=dtype), integers(N, K), scales(N), draw(N)
    options = {"bias": bias, "activation": "gelu_tanh", "residual": draw(M, N, dtype=dtype)}
    y = weft.weight_only_linear(x, packed(weight), scale, **options)
    w = reference.int8.weight(weight, scale.double())
    assert_linear(y, x, w, bias, "gelu_tanh", options["residual"], rounding=ROUNDING[dtype])


@pytest.mark.parametrize("M", [5, 40, 100, 300])
def test_rows_are_alike(backend: Backend, M: int) -> None:
    """A row has the same bits among few rows and among many, whatever kernel takes it."""
    weight, scale, bias = integers(264, 304), scales(264), draw(264)
    x = draw(300, 304, dtype=torch.bfloat16)
    options = {"bias": bias, "activation": "silu"}
    whole = weft.int8_linear(x, packed(weight), scale, **options)
    assert torch.equal(weft.int8_linear(x[:M], packed(weight), scale, **options), whole[:M])
