"""int8_linear: sums bit for bit, what is made of them rounded once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import weft
from backends import Backend
from weft import reference

from .cases import FLOATS, SHAPES, assert_linear, draw, integers, name, packed, scales


def sums(q: Tensor, weight: Tensor, **points: Tensor) -> Tensor:
    ones = torch.ones(weight.shape[0])
    return weft.int8_linear(
        q, packed(weight), ones, x_scale=torch.ones(1), out_dtype=torch.int32, **points
    )


def test_sums_of_every_m(backend: Backend):
    weight = integers(70, 45)
    q = integers(130, 45)
    whole = reference.int8.products(q, weight)
    ready = packed(weight)
    for M in range(131):
        found = weft.int8_linear(
            q[:M], ready, torch.ones(70), x_scale=torch.ones(1), out_dtype=torch.int32
        )
        assert torch.equal(found.long(), whole[:M]), f"M = {M}"


@pytest.mark.parametrize("N", [1, 2, 63, 64, 65, 127, 128, 191])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 63, 64, 65, 255, 256])
def test_sums_off_every_tile(backend: Backend, N: int, K: int):
    weight, q = integers(N, K), integers(5, K)
    assert torch.equal(sums(q, weight).long(), reference.int8.products(q, weight))


@pytest.mark.parametrize("a", [-128, -127, 127])
@pytest.mark.parametrize("w", [-128, 127])
def test_sums_do_not_overflow(backend: Backend, a: int, w: int):
    """Every product at its largest: 16 bits would saturate, and 32 just hold 65536 of them."""
    weight, q = torch.full((3, 65536), w), torch.full((7, 65536), a)
    found = sums(q.to(torch.int8), weight.to(torch.int8))
    assert torch.equal(found.long(), torch.full((7, 3), a * w * 65536))


def test_zero_points_do_not_overflow(backend: Backend):
    weight, q = torch.full((3, 65536), -128), torch.full((2, 65536), 127)
    point = torch.tensor([-128], dtype=torch.int32)
    found = sums(q.to(torch.int8), weight.to(torch.int8), x_zero_point=point)
    assert torch.equal(found.long(), torch.full((2, 3), 255 * -128 * 65536))


def test_zero_points_of_rows(backend: Backend):
    weight, q = integers(70, 33), integers(9, 33)
    points = torch.randint(-128, 128, (9, 1), dtype=torch.int32)
    found = weft.int8_linear(
        q,
        packed(weight),
        torch.ones(70),
        x_scale=torch.ones(9),
        x_zero_point=points,
        out_dtype=torch.int32,
    )
    assert torch.equal(found.long(), reference.int8.products(q, weight, points))


@pytest.mark.parametrize("shape", SHAPES, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("symmetric", [True, False])
def test_dynamic(backend: Backend, shape, dtype: torch.dtype, symmetric: bool):
    M, N, K = shape
    x, weight, scale = draw(M, K, dtype=dtype), integers(N, K), scales(N)
    q = weft.quantize_int8(x, symmetric=symmetric)
    y = weft.int8_linear(x, packed(weight), scale, symmetric=symmetric)
    given = weft.int8_linear(
        q.values, packed(weight), scale, x_scale=q.scale, x_zero_point=q.zero_point, out_dtype=dtype
    )
    assert torch.equal(y, given)
    point = 0 if q.zero_point is None else q.zero_point
    x8 = reference.int8.dequantize(q.values.double(), q.scale.double(), point)
    assert_linear(y, x8, reference.int8.weight(weight, scale.double()))


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu"])
def test_endings(backend: Backend, dtype: torch.dtype, activation: str):
    weight, scale = integers(129, 40), scales(129)
    x, bias, residual = (
        draw(11, 40, dtype=dtype),
        draw(129, dtype=dtype),
        draw(11, 129, dtype=dtype),
    )
    q = weft.quantize_int8(x)
    x8 = reference.int8.dequantize(q.values.double(), q.scale.double())
    w = reference.int8.weight(weight, scale.double())
    ready = packed(weight)
    y = weft.int8_linear(x, ready, scale, bias, activation=activation, residual=residual)
    assert_linear(y, x8, w, bias, activation, residual)
    wide = weft.int8_linear(x, ready, scale, bias, activation=activation, out_dtype=torch.float32)
    assert_linear(wide, x8, w, bias, activation)


def test_static_shift_and_smooth(backend: Backend):
    x, weight, scale = draw(9, 50), integers(70, 50), scales(70)
    shift, smooth = draw(50), torch.rand(50) + 0.5
    x_scale, point = torch.tensor([0.03]), torch.tensor([-7], dtype=torch.int32)
    y = weft.int8_linear(
        x,
        packed(weight),
        scale,
        x_scale=x_scale,
        x_zero_point=point,
        shift=shift,
        smooth=smooth,
    )
    q = weft.quantize_int8(
        x, x_scale[0], point[0], granularity="tensor", shift=shift, smooth=smooth
    )
    x8 = reference.int8.dequantize(q.values.double(), x_scale.double(), point)
    assert_linear(y, x8, reference.int8.weight(weight, scale.double()))


def test_int8_result(backend: Backend):
    x, weight, scale = draw(9, 50), integers(70, 50), scales(70)
    out_scale = torch.tensor(0.1)
    y = weft.int8_linear(x, packed(weight), scale)
    q = weft.int8_linear(x, packed(weight), scale, out_scale=out_scale, out_zero_point=5)
    assert q.dtype == torch.int8
    exact = (y.double() / out_scale.double() + 5).clamp(-128, 127)
    assert ((q - exact).abs() <= 0.5 + 1e-5).all()  # ties may go either way
    assert q.unique().numel() > 20


def test_options_that_exclude_each_other(backend: Backend):
    x, ready, scale = draw(9, 50), packed(integers(70, 50)), scales(70)
    with pytest.raises(RuntimeError, match=r"out_scale is given, expected an out_dtype of int8"):
        weft.int8_linear(x, ready, scale, out_scale=torch.ones(1), out_dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"out_zero_point belongs to an out_scale, expected"):
        weft.int8_linear(x, ready, scale, out_zero_point=3)
    with pytest.raises(RuntimeError, match=r"symmetric is false, .* and x_scale is given"):
        weft.int8_linear(x, ready, scale, x_scale=torch.ones(1), symmetric=False)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("point", [None, -7])
def test_rows_without_numbers_by_a_static_scale(backend: Backend, dtype: torch.dtype, point):
    weight, scale, x = integers(70, 33), scales(70), draw(5, 33, dtype=dtype)
    options = {"x_scale": torch.tensor([0.03])}
    if point is not None:
        options["x_zero_point"] = torch.tensor([point], dtype=torch.int32)
    clean = weft.int8_linear(x, packed(weight), scale, **options)
    x[1, 3], x[2, 4], x[3, 32] = torch.nan, -torch.inf, torch.inf
    y = weft.int8_linear(x, packed(weight), scale, **options)
    assert y[1:4].isnan().all() and torch.equal(y[::4], clean[::4])
    out = {"out_scale": torch.tensor(0.1), "out_zero_point": 9}
    assert weft.int8_linear(x, packed(weight), scale, **options, **out)[1:4].eq(9).all()


def test_strided_batches(backend: Backend):
    weight, scale = integers(70, 33), scales(70)
    x = draw(4, 9, 66)[::2, 1::3, ::2]
    wide = draw(3, 7, 80)[:, ::2, :33]
    ready = packed(weight)
    for rows in (x, wide, draw(33)):
        residual = draw(70, *rows.shape[:-1]).movedim(0, -1)
        y = weft.int8_linear(rows, ready, scale, residual=residual)
        flat = weft.int8_linear(
            rows.contiguous().reshape(-1, 33), ready, scale, residual=residual.reshape(-1, 70)
        )
        assert y.shape == (*rows.shape[:-1], 70) and torch.equal(y.reshape(-1, 70), flat)


def test_many_rows_and_long_sums(backend: Backend):
    """More rows than a block of A has, and sums of more than 65536."""
    weight, scale = integers(3, 70001), scales(3)
    x = draw(150, 70001)
    for symmetric in (True, False):
        q = weft.quantize_int8(x, symmetric=symmetric)
        y = weft.int8_linear(x, packed(weight), scale, symmetric=symmetric)
        point = 0 if q.zero_point is None else q.zero_point
        x8 = reference.int8.dequantize(q.values.double(), q.scale.double(), point)
        assert_linear(y, x8, reference.int8.weight(weight, scale.double()))


@pytest.mark.parametrize("N, K", [(3, 65664), (300, 131200)])
def test_long_sums_are_exact(backend: Backend, N: int, K: int):
    """What zero points take away is a thousand times the rest; more than a round of splits."""
    weight = torch.randint(100, 128, (N, K), dtype=torch.int8)
    q = torch.full((2, K), -128, dtype=torch.int8)
    q[:, ::1000] = integers(2, len(range(0, K, 1000)))
    points = torch.full((2, 1), -128, dtype=torch.int32)
    y = weft.int8_linear(
        q, packed(weight), torch.ones(N), x_scale=torch.ones(2), x_zero_point=points
    )
    exact = reference.int8.products(q, weight, points)
    assert exact.abs().max() < 2**24 and torch.equal(y.long(), exact)


def test_rows_without_numbers(backend: Backend):
    """NaN and infinity spoil their rows and no other; zeros give the bias."""
    weight, scale, bias = integers(70, 33), scales(70), draw(70)
    x = draw(5, 33)
    clean = weft.int8_linear(x, packed(weight), scale, bias)
    x[1, 3], x[2, 4], x[3] = torch.nan, -torch.inf, 0
    for symmetric in (True, False):
        y = weft.int8_linear(x, packed(weight), scale, bias, symmetric=symmetric)
        assert y[1:3].isnan().all() and torch.equal(y[3], bias)
        if symmetric:
            assert torch.equal(y[::4], clean[::4])


@pytest.mark.parametrize("M", [1, 3, 16, 77])
def test_threads_do_not_matter(backend: Backend, threads, M: int):
    weight, scale, x = integers(300, 500), scales(300), draw(M, 500, dtype=torch.bfloat16)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(weft.int8_linear(x, packed(weight), scale))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_gradients(backend: Backend):
    """Those of the linear layer without rounding."""
    weight, scale = integers(70, 33), scales(70)
    smooth = torch.rand(33) + 0.5
    x, bias, residual = (draw(*s).requires_grad_() for s in ((2, 5, 33), (70,), (2, 5, 70)))
    y = weft.int8_linear(x, packed(weight), scale, bias, smooth=smooth, residual=residual)
    dy = torch.randn_like(y)
    y.backward(dy)
    w = reference.int8.weight(weight, scale.double())
    torch.testing.assert_close(x.grad, (dy.double() @ w / smooth).float())
    torch.testing.assert_close(bias.grad, dy.sum((0, 1)))
    assert torch.equal(residual.grad, dy)


def test_gradients_of_one_row(backend: Backend):
    ready, scale = packed(integers(70, 33)), scales(70)
    for op in (weft.int8_linear, weft.weight_only_linear, weft.llm_int8_linear):
        options = {}
        if op is weft.llm_int8_linear:
            options["weight"] = draw(70, 33).requires_grad_()
        x, bias = draw(33).requires_grad_(), draw(70).requires_grad_()
        y = op(x, ready, scale, bias, **options)
        dy = torch.randn_like(y)
        y.backward(dy)
        assert x.grad.shape == x.shape
        torch.testing.assert_close(bias.grad, dy)
        for weight in options.values():
            torch.testing.assert_close(weight.grad, torch.outer(dy, x.detach()))


def test_forward_mode_is_refused(backend: Backend):
    ready, scale, x = packed(integers(70, 33)), scales(70), draw(5, 33)
    for op in (weft.int8_linear, weft.weight_only_linear, weft.llm_int8_linear):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            for again in (dual, dual.clone().requires_grad_()):
                with pytest.raises(NotImplementedError, match="forward-mode AD"):
                    op(again, ready, scale)
        with pytest.raises(NotImplementedError, match="forward-mode AD"):
            torch.func.jvp(lambda x, op=op: op(x, ready, scale), (x,), (x,))
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="rounding has no gradient"),
    ):
        weft.quantize_int8(forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
def test_autocast(backend: Backend, dtype: torch.dtype):
    ready, scale, x, bias = packed(integers(70, 33)), scales(70), draw(5, 33), draw(70)
    for op in (weft.int8_linear, weft.weight_only_linear, weft.llm_int8_linear):
        expected = op(x.to(dtype), ready, scale, bias)
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        with torch.autocast(backend.device, dtype):
            assert torch.equal(op(x, ready, scale, bias), expected)
            assert torch.equal(compiled(x, ready, scale, bias), expected)
            leaf = x.clone().requires_grad_()
            op(leaf, ready, scale, bias).sum().backward()
        assert expected.dtype == dtype and leaf.grad.dtype == torch.float32
    with torch.autocast(backend.device, dtype):
        wide = weft.int8_linear(x, ready, scale, out_dtype=torch.float32)
        q = weft.quantize_int8(x)
        assert wide.dtype == torch.float32 and weft.nn.Int8Linear(33, 70)(x).dtype == dtype
        given = weft.int8_linear(q.values, ready, scale, x_scale=q.scale)
        assert given.dtype == torch.float32
        with pytest.raises(RuntimeError, match="x has dtype float64"):
            weft.int8_linear(x.double(), ready, scale)


def test_repeats(backend: Backend):
    weight, scale, x = integers(300, 500), scales(300), draw(40, 500)
    first = weft.int8_linear(x, packed(weight), scale)
    assert torch.equal(first, weft.int8_linear(x, packed(weight), scale))


def test_a_packed_weight_that_begins_anywhere(backend: Backend):
    """On a CPU it may; where kernels read it by 16 bytes it is refused."""
    x, weight, scale = draw(5, 48), packed(integers(70, 48)), scales(70)
    moved = weight.new_empty(len(weight) + 1)[1:].copy_(weight)
    if backend.name.startswith("cpu"):
        assert torch.equal(weft.int8_linear(x, moved, scale), weft.int8_linear(x, weight, scale))
        return
    with pytest.raises(RuntimeError, match="packed is a view that begins between multiples of 16"):
        weft.int8_linear(x, moved, scale)
