"""quantize_int8, dequantize_int8, and the packed weights."""

from __future__ import annotations

import pytest
import torch

import weft
from backends import Backend
from tolerance import assert_int8_close
from weft import reference

from .cases import FLOATS, draw, integers, name

GRANULARITIES = [("tensor", 0), ("token", 0), ("channel", 0), ("group", 1), ("group", 7)]
SIZES = [(5, 3, 35), (1, 7), (35,), (70, 210)]


@pytest.mark.parametrize("sizes", SIZES, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize(("granularity", "group"), GRANULARITIES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_dynamic(backend: Backend, sizes, dtype, granularity: str, group: int, symmetric: bool):
    x = draw(*sizes, dtype=dtype) * 3 + 1
    q = weft.quantize_int8(x, granularity=granularity, group_size=group, symmetric=symmetric)
    scale, point = reference.int8.scales(x.double(), granularity, group, symmetric)
    back = weft.dequantize_int8(q.values, q.scale, q.zero_point)
    own = weft.dequantize_int8(torch.ones_like(q.values), q.scale)
    assert ((own - scale).abs() <= 1e-6 * scale).all()
    # Ties are common in 16 bits, and the zero point may be one: then all values move with it.
    steps = q.values.int() - reference.int8.quantize(x.double(), scale, point).int()
    assert steps.abs().max() <= (1 if symmetric else 2)
    assert ((back - x.double()).abs() <= (0.501 if symmetric else 1.001) * scale).all()
    assert (q.zero_point is None) == symmetric


@pytest.mark.parametrize(("granularity", "group"), GRANULARITIES)
def test_static(backend: Backend, granularity: str, group: int):
    x = draw(9, 35) * 5
    scale = weft.quantize_int8(x / 2, granularity=granularity, group_size=group).scale
    point = torch.randint(-100, 100, scale.shape, dtype=torch.int32)
    q = weft.quantize_int8(x, scale, point, granularity=granularity, group_size=group)
    assert q.scale is scale and q.zero_point is point
    ones = torch.ones(9, 35, dtype=torch.int8)
    s = weft.dequantize_int8(ones, scale).double()
    p = weft.dequantize_int8(ones * 0, torch.ones_like(scale), point).double().neg()
    assert_int8_close(q.values, reference.int8.quantize(x.double(), s, p))


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu", "silu_mul"])
def test_behind_an_activation(backend: Backend, dtype: torch.dtype, activation: str):
    x = draw(9, 70 if activation == "silu_mul" else 35, dtype=dtype) * 3
    shift, smooth = draw(35), torch.rand(35) + 0.5
    q = weft.quantize_int8(x, activation=activation, shift=shift, smooth=smooth)
    t = reference.int8.transform(x.double(), activation, shift.double(), smooth.double())
    scale, _ = reference.int8.scales(t)
    torch.testing.assert_close(q.scale.double(), scale[:, :1], rtol=2e-6, atol=0)
    assert_int8_close(q.values, reference.int8.quantize(t, scale))


@pytest.mark.parametrize("sizes", [*SIZES, (64, 64), (200, 132), (3, 65, 17)], ids=name)
@pytest.mark.parametrize(("granularity", "group"), GRANULARITIES)
def test_transposed(backend: Backend, sizes: tuple[int, ...], granularity: str, group: int):
    group = group if group == 0 or sizes[-1] % group == 0 else 1
    x = draw(*sizes)
    for static in (False, True):
        options = {"granularity": granularity, "group_size": group, "symmetric": static}
        scale = weft.quantize_int8(x / 2, **options).scale if static else None
        rows = weft.quantize_int8(x, scale, **options)
        turned = weft.quantize_int8(x, scale, **options, transposed=True)
        assert torch.equal(turned.values, rows.values.reshape(-1, sizes[-1]).t())
        assert turned.values.is_contiguous() and torch.equal(turned.scale, rows.scale)
        assert static or torch.equal(turned.zero_point, rows.zero_point)


def test_ties_go_to_even(backend: Backend):
    x = torch.arange(-6, 7) / 2
    q = weft.quantize_int8(x, torch.tensor(1.0), granularity="tensor")
    assert torch.equal(q.values, torch.round(x).to(torch.int8))


def test_rows_without_numbers(backend: Backend):
    x = draw(5, 33)
    x[1, 3], x[2, 4], x[3] = torch.nan, -torch.inf, 0
    for symmetric in (True, False):
        q = weft.quantize_int8(x, symmetric=symmetric)
        assert q.scale[1].isnan() and q.scale[2].isinf() and q.scale[3] == 1
        assert not q.values[1:3].any() and q.scale[::4].isfinite().all()
        assert (q.values[3] == (0 if symmetric else -128)).all()
    whole = weft.quantize_int8(x, granularity="tensor")
    assert whole.scale.isnan() and not whole.values.any()
    by_channel = weft.quantize_int8(x, granularity="channel").scale
    assert by_channel[3].isnan() and by_channel[4].isinf() and by_channel[5:].isfinite().all()
    q = weft.quantize_int8(x, torch.tensor(0.01), granularity="tensor").values
    assert q[1, 3] == 0 and q[2, 4] == -128 and not q[3].any()


def test_tiny_rows(backend: Backend):
    """No scale is below the smallest normal float."""
    x = torch.tensor([[1e-38, -1e-38, 0], [1e-44, 0, 0]])
    q = weft.quantize_int8(x)
    assert (q.scale >= torch.finfo(torch.float32).tiny).all() and q.values.abs().max() <= 1


def test_views(backend: Backend):
    x = draw(4, 9, 66)
    for view in (x[::2, 1::3, ::2], x[:, ::2, :33], x.transpose(0, 1)):
        for granularity in ("tensor", "token", "channel"):
            q = weft.quantize_int8(view, granularity=granularity)
            flat = weft.quantize_int8(view.contiguous(), granularity=granularity)
            assert torch.equal(q.values, flat.values) and torch.equal(q.scale, flat.scale)


def test_empty(backend: Backend):
    q = weft.quantize_int8(draw(0, 35))
    assert q.values.shape == (0, 35) and q.scale.shape == (0, 1)
    assert weft.quantize_int8(draw(0, 35), transposed=True).values.shape == (35, 0)
    q = weft.quantize_int8(draw(0, 35), granularity="channel", symmetric=False)
    assert torch.equal(q.scale, torch.ones(35)) and weft.dequantize_int8(*q).shape == (0, 35)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_threads_do_not_matter(backend: Backend, threads, granularity: str):
    x = draw(300, 500)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(weft.quantize_int8(x, granularity=granularity, symmetric=False))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("N", [1, 63, 64, 130])
@pytest.mark.parametrize("K", [1, 7, 8, 9, 65])
def test_pack_and_unpack(backend: Backend, bits: int, N: int, K: int):
    weight = integers(N, K, bits=bits)
    assert torch.equal(weft.unpack_int8_weight(weft.pack_int8_weight(weight, bits=bits)), weight)
    view = integers(K, 2 * N, bits=bits)[:, ::2].t()
    assert torch.equal(weft.unpack_int8_weight(weft.pack_int8_weight(view, bits=bits)), view)


def test_quantisers_refuse_gradients():
    x = draw(3, 5).requires_grad_()
    with pytest.raises(
        NotImplementedError, match=r"^weft\.quantize_int8: rounding has no gradient"
    ):
        weft.quantize_int8(x)
    with torch.no_grad():
        weft.quantize_int8(x)
