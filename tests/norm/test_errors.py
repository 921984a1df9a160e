"""What is refused, and in which words. The raw ops refuse all that could touch foreign memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import weft
from backends import Backend

from . import cases
from .cases import RMS, draw

FLOATS = "expected float32, bfloat16, float16 or float64"
STATE = torch.tensor([1, 2])


class Make:
    """Arguments on the backend's device: a [4, 8] x and tensors that go with it."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=self.device)

    @property
    def x(self) -> Tensor:
        return self(4, 8)

    @property
    def meta(self) -> Tensor:
        return torch.ones(8, device="meta")


@pytest.fixture
def make(backend: Backend) -> Make:
    return Make(backend.device)


def refuses(message: str, error: type[Exception] = RuntimeError) -> Any:
    """The message, word for word, from its start."""
    return pytest.raises(error, match="^" + re.escape(message))


def defaults(op: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a raw op: `given`, and for the others what asks for nothing."""
    neutral = {"bool": False, "int": 1, "float": 0.0}
    specials = {"residual_alpha": 1.0, "eps": 1e-5, "zero_point": 0, "symmetric": True, "needs": 0}
    call = {}
    for argument in op._schema.arguments:
        optional = isinstance(argument.type, torch.OptionalType)
        otherwise = None if optional else neutral.get(str(argument.type))
        call[argument.name] = given.get(argument.name, specials.get(argument.name, otherwise))
    return call


def raw(name: str, **given: Any) -> Any:
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.weft, packet), overload or "default")
    return op(**defaults(op, given))


# --------------------------------------------------------- the functions: what only Python can see


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_normalized_shape(make: Make, op: str) -> None:
    function = getattr(weft, op)
    with refuses(f"weft.{op}: normalized_shape is 8, expected a tuple or list of ints", TypeError):
        function(make.x, 8)
    with refuses(f"weft.{op}: normalized_shape is (8.5,), expected ints", TypeError):
        function(make.x, (8.5,))
    for shape in ((7,), (4, 7), (8, 4), (1, 4, 8)):
        with refuses(
            f"weft.{op}: normalized_shape is {list(shape)}, expected the last dimensions of input, "
            "which has shape [4, 8]",
            ValueError,
        ):
            function(make.x, shape)


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_normalized_shape_of_no_dimensions(make: Make, op: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=f"weft.{op}: normalized"):
        getattr(weft, op)(make.x, ())


def test_out_with_gradients(make: Make) -> None:
    x = make.x.requires_grad_()
    words = " has no gradient, but one of the arguments requires grad"
    with refuses("weft.layer_norm: out=" + words):
        weft.layer_norm(x, (8,), out=make.x)
    with refuses("weft.layer_norm_fn: out=" + words):
        weft.layer_norm_fn(x, None, None, out=make.x)
    with refuses("weft.fused_add_rms_norm: an in-place norm" + words):
        weft.fused_add_rms_norm(x, make.x, None)


def test_combinations(make: Make) -> None:
    with refuses("weft.layer_norm_fn: rowscale cannot be combined with x1", ValueError):
        weft.layer_norm_fn(make.x, None, None, x1=make.x, rowscale=make(4))
    with refuses("weft.layer_norm_fn: out= and residual_out= take no weight1", NotImplementedError):
        weft.layer_norm_fn(make.x, None, None, weight1=make(8), out=make.x)
    with refuses("weft: rowscale has no gradient; detach it", NotImplementedError):
        weft.layer_norm_fn(make.x, None, None, rowscale=make(4).requires_grad_())
    with refuses("weft.rms_norm_int8: zero_point belongs to a static scale", ValueError):
        weft.rms_norm_int8(make.x, zero_point=3)


# ------------------------------------------------------------------ shapes, dtypes, devices, by op

# op, then how the arguments differ from good ones, then the message after "weft.<op>: ".
REFUSED: list[tuple[str, Callable[[Make], dict[str, Any]], str]] = [
    # shapes of weights
    ("rms_norm", lambda m: {"weight": m(7)},
     "weight has shape [7], expected [8] (the last dimension of x)"),
    ("layer_norm", lambda m: {"bias": m(1)},
     "bias has shape [1], expected [8] (the last dimension of x)"),
    ("layer_norm", lambda m: {"weight": m()},
     "weight has shape [], expected [8] (the last dimension of x)"),
    ("layer_norm", lambda m: {"weight": m(5, 8)},
     "weight has shape [5, 8], expected [8] (the last dimension of x)"),
    ("layer_norm", lambda m: {"weight": m(8), "normalized_ndim": 2},
     "weight has shape [8], expected [4, 8] (the last dimensions of x)"),
    ("layer_norm", lambda m: {"weight": m(4, 8), "bias": m(8)},
     "bias has shape [8], expected that of the other weights"),
    ("norm_forward", lambda m: {"weight1": m(9)},
     "weight1 has shape [9], expected [8] (the last dimension of x)"),
    ("norm_forward", lambda m: {"bias1": m(9), "weight1": m(8)},
     "bias1 has shape [9], expected [8] (the last dimension of x)"),
    ("norm_forward", lambda m: {"x_bias": m(4, 8)},
     "x_bias has shape [4, 8], expected [8] (the last dimension of x)"),
    ("norm_forward", lambda m: {"layerscale": m(4)},
     "layerscale has shape [4], expected [8] (the last dimension of x)"),
    ("norm_int8", lambda m: {"shift": m(4)},
     "shift has shape [4], expected [8] (the last dimension of x)"),
    ("norm_int8", lambda m: {"smooth": m(4, 8)},
     "smooth has shape [4, 8], expected [8] (the last dimension of x)"),
    # shapes of rows
    ("norm_forward", lambda m: {"residual": m(4, 9)},
     "residual has shape [4, 9], expected [4, 8] (that of x)"),
    ("norm_forward", lambda m: {"residual": m(8)},
     "residual has shape [8], expected [4, 8] (that of x)"),
    ("norm_forward", lambda m: {"residual2": m(1, 4, 8)},
     "residual2 has shape [1, 4, 8], expected [4, 8] (that of x)"),
    ("norm_forward", lambda m: {"x1": m(3, 8)},
     "x1 has shape [3, 8], expected [4, 8] (that of x)"),
    ("norm_int8", lambda m: {"residual": m(4, 1)},
     "residual has shape [4, 1], expected [4, 8] (that of x)"),
    ("fused_add_rms_norm_", lambda m: {"residual": m(5, 8)},
     "residual has shape [5, 8], expected [4, 8] (that of x)"),
    ("norm_forward", lambda m: {"rowscale": m(8)},
     "rowscale has shape [8], expected [4] (the leading dimensions of x)"),
    ("norm_forward", lambda m: {"rowscale": m(4, 1)},
     "rowscale has shape [4, 1], expected [4] (the leading dimensions of x)"),
    # dtypes
    ("layer_norm", lambda m: {"x": m(4, 8, dtype=torch.int32)}, f"x has dtype int32, {FLOATS}"),
    ("rms_norm", lambda m: {"x": m(4, 8, dtype=torch.bool)}, f"x has dtype bool, {FLOATS}"),
    ("rms_norm", lambda m: {"x": m(4, 8, dtype=torch.complex64)},
     f"x has dtype another dtype, {FLOATS}"),
    ("layer_norm", lambda m: {"x": m(4, 8, dtype=torch.float8_e4m3fn)},
     f"x has dtype another dtype, {FLOATS}"),
    ("layer_norm", lambda m: {"weight": m(8, dtype=torch.int64)},
     f"weight has dtype int64, {FLOATS}"),
    ("layer_norm", lambda m: {"bias": m(8, dtype=torch.complex128)},
     f"bias has dtype another dtype, {FLOATS}"),
    ("norm_forward", lambda m: {"residual": m(4, 8, dtype=torch.int8)},
     f"residual has dtype int8, {FLOATS}"),
    ("norm_forward", lambda m: {"x1": m(4, 8, dtype=torch.bfloat16)},
     "x1 has dtype bfloat16, expected float32"),
    ("norm_forward", lambda m: {"rowscale": m(4, dtype=torch.int32)},
     f"rowscale has dtype int32, {FLOATS}"),
    ("norm_forward", lambda m: {"out_dtype": torch.int8}, f"out_dtype is int8, {FLOATS}"),
    ("norm_forward", lambda m: {"residual_dtype": torch.bool, "return_residual": True},
     f"residual_dtype is bool, {FLOATS}"),
    ("fused_add_rms_norm_", lambda m: {"residual": m(4, 8, dtype=torch.uint8)},
     f"residual has dtype uint8, {FLOATS}"),
    # normalized_ndim
    ("layer_norm", lambda m: {"normalized_ndim": 0},
     "normalized_ndim is 0, expected 1 to 2 (the dimensions of x)"),
    ("rms_norm", lambda m: {"normalized_ndim": 3},
     "normalized_ndim is 3, expected 1 to 2 (the dimensions of x)"),
    ("norm_forward", lambda m: {"normalized_ndim": -1},
     "normalized_ndim is -1, expected 1 to 2 (the dimensions of x)"),
    ("norm_int8", lambda m: {"normalized_ndim": 2**40},
     "normalized_ndim is 1099511627776, expected 1 to 2 (the dimensions of x)"),
    # dropout
    ("norm_forward", lambda m: {"dropout_p": 0.5}, "dropout needs rng_state"),
    ("norm_forward", lambda m: {"dropout_p": 1.5, "rng_state": STATE},
     "dropout_p is 1.5, expected a probability from 0 to 1"),
    ("norm_forward", lambda m: {"dropout_p": -0.1, "rng_state": STATE},
     "dropout_p is -0.1, expected a probability from 0 to 1"),
    ("norm_forward", lambda m: {"dropout_p": float("nan"), "rng_state": STATE},
     "dropout_p is nan, expected a probability from 0 to 1"),
    ("norm_forward", lambda m: {"dropout_p": 0.5, "rng_state": torch.tensor([1, 2, 3])},
     "rng_state is int64 [3], expected contiguous int64 [2] (seed, offset)"),
    ("norm_forward", lambda m: {"dropout_p": 0.5, "rng_state": torch.tensor([1, 2]).int()},
     "rng_state is int32 [2], expected contiguous int64 [2] (seed, offset)"),
    ("norm_forward", lambda m: {"dropout_p": 0.5, "rng_state": torch.tensor([1, 0, 2])[::2]},
     "rng_state is int64 [2], expected contiguous int64 [2] (seed, offset)"),
    # destinations
    ("layer_norm.out", lambda m: {"out": m(4, 7)},
     "out has shape [4, 7], expected [4, 8] (that of x)"),
    ("rms_norm.out", lambda m: {"out": m(4, 8, dtype=torch.int8)}, f"out has dtype int8, {FLOATS}"),
    ("rms_norm.out", lambda m: {"out": m(1, 8).expand(4, 8)},
     "out repeats elements in memory, so it cannot be written"),
    ("norm_forward.out", lambda m: {"out": m(8)},
     "out has shape [8], expected [4, 8] (that of x)"),
    ("norm_forward.out", lambda m: {"out": m.x, "residual_out": m(4, 9)},
     "residual_out has shape [4, 9], expected [4, 8] (that of x)"),
    ("norm_forward.out", lambda m: {"out": m.x, "weight1": m(8)},
     "out takes one result, but weight1 or bias1 ask for a second"),
    ("fused_add_rms_norm_", lambda m: {"x": m(1, 8).expand(4, 8), "residual": m.x},
     "x repeats elements in memory, so it cannot be written"),
    ("fused_add_rms_norm_", lambda m: {"residual": m(4, 1).expand(4, 8)},
     "residual repeats elements in memory, so it cannot be written"),
    # int8
    ("norm_int8", lambda m: {"scale": m(2)},
     "scale is float32 [2], expected one float32 on the device of x"),
    ("norm_int8", lambda m: {"scale": m(0)},
     "scale is float32 [0], expected one float32 on the device of x"),
    ("norm_int8", lambda m: {"scale": m(1, dtype=torch.float64)},
     "scale is float64 [1], expected one float32 on the device of x"),
    ("norm_int8", lambda m: {"scale": m(1), "zero_point": 128},
     "zero_point is 128, expected -128 to 127"),
    ("norm_int8", lambda m: {"scale": m(1), "zero_point": -(2**40)},
     "zero_point is -1099511627776, expected -128 to 127"),
    ("norm_int8.out", lambda m: {"out": m.x}, "out has dtype float32, expected int8"),
    ("norm_int8.out", lambda m: {"out": m(4, 8, dtype=torch.int8)},
     "a dynamic scale needs scale_out"),
    ("norm_int8.out", lambda m: {"out": m(4, 8, dtype=torch.int8), "scale_out": m(3, 1)},
     "scale_out is float32 [3, 1], expected contiguous float32 [4, 1]"),
    ("norm_int8.out",
     lambda m: {"out": m(4, 8, dtype=torch.int8), "scale_out": m(4, 1), "symmetric": False},
     "asymmetric dynamic scales need zero_point_out"),
    ("norm_int8.out",
     lambda m: {"out": m(4, 8, dtype=torch.int8), "scale_out": m(4, 1), "symmetric": False,
                "zero_point_out": m(4, 1, dtype=torch.int8)},
     "zero_point_out is int8 [4, 1], expected contiguous int32 [4, 1]"),
    # backward, called by hand
    ("norm_backward", lambda m: {"dy": m(4, 9)},
     "dy has shape [4, 9], expected [4, 8] (that of saved)"),
    ("norm_backward", lambda m: {"dy1": m(3, 8)},
     "dy1 has shape [3, 8], expected [4, 8] (that of saved)"),
    ("norm_backward", lambda m: {"dresidual_out": m(4, 8, dtype=torch.int32)},
     f"dresidual_out has dtype int32, {FLOATS}"),
    ("norm_backward", lambda m: {"rstd": m(3)},
     "rstd is float32 [3], expected contiguous float32 [4]"),
    ("norm_backward", lambda m: {"mean": m(0)},
     "mean is float32 [0], expected contiguous float32 [4]"),
    ("norm_backward", lambda m: {"rstd": m(4, dtype=torch.float64)},
     "rstd is float64 [4], expected contiguous float32 [4]"),
    ("norm_backward", lambda m: {"weight": m(9)},
     "weight has shape [9], expected [8] (the last dimension of saved)"),
    ("norm_backward", lambda m: {"x_dtype": torch.int64}, f"x_dtype is int64, {FLOATS}"),
    ("norm_backward", lambda m: {"needs": 512},
     "the gradient of layerscale needs x and layerscale"),
    ("norm_backward", lambda m: {"dropout_p": 0.5}, "dropout needs rng_state"),
    ("norm_backward", lambda m: {"normalized_ndim": 3},
     "normalized_ndim is 3, expected 1 to 2 (the dimensions of saved)"),
]  # fmt: skip


def good_arguments(op: str, make: Make) -> dict[str, Any]:
    if op == "norm_backward":
        statistics = {"mean": make(4), "rstd": make(4)}
        return {"dy": make.x, "saved": make.x, "x_dtype": torch.float32, **statistics}
    return {"x": make.x} | ({"residual": make.x} if "fused_add" in op else {})


@pytest.mark.parametrize(
    "op, change, message", REFUSED, ids=[f"{op}: {message}" for op, _, message in REFUSED]
)
def test_refused(
    make: Make, op: str, change: Callable[[Make], dict[str, Any]], message: str
) -> None:
    arguments = good_arguments(op, make) | change(make)
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, Tensor)}
    with refuses(f"weft.{op.partition('.')[0].rstrip('_')}: {message}"):
        raw(op, **arguments)
    for k, v in before.items():
        if not v.is_complex() and v.dtype != torch.float8_e4m3fn:
            assert torch.equal(arguments[k], v), f"{k} was written before the call was refused"


@pytest.mark.parametrize("numel, p, stream, message", [
    (-1, 0.5, 0, "numel is -1, expected at least 0"),
    (4, 0.5, 2, "stream is 2, expected 0 (x) or 1 (x1)"),
    (4, 1.01, 0, "dropout_p is 1.01, expected a probability from 0 to 1"),
])  # fmt: skip
def test_dropout_mask(backend: Backend, numel: int, p: float, stream: int, message: str) -> None:
    with refuses(f"weft.dropout_mask: {message}"):
        torch.ops.weft.dropout_mask(STATE, numel, p, stream)


def test_dropout_mask_state(backend: Backend) -> None:
    with refuses("weft.dropout_mask: rng_state is int64 [1], expected contiguous int64 [2]"):
        weft.dropout_mask(torch.tensor([1]), (4,), 0.5)
    with refuses("weft.dropout_mask: rng_state is float32 [2], expected contiguous int64 [2]"):
        weft.dropout_mask(torch.rand(2), (4,), 0.5)


@pytest.mark.parametrize("argument", ["weight", "bias", "x_bias", "residual", "x1", "rowscale"])
def test_other_devices(make: Make, argument: str) -> None:
    """A tensor without data beside real ones is refused, not passed over for its shape."""
    shape = {"residual": (4, 8), "x1": (4, 8), "rowscale": (4,)}.get(argument, (8,))
    other = torch.ones(shape, device="meta")
    with pytest.raises(RuntimeError, match=f"weft.norm_forward: {argument} is .*device"):
        raw("norm_forward", x=make.x, **{argument: other})


def test_weight_on_another_device(make: Make) -> None:
    for op in (weft.layer_norm, weft.rms_norm):
        with pytest.raises(RuntimeError, match="weight is .*device"):
            op(make.x, (8,), make.meta)
        with pytest.raises(RuntimeError, match="out is .*device"):
            op(make.x, (8,), out=make.x.to("meta"))


def test_sparse_input_is_refused(backend: Backend) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        weft.layer_norm(torch.eye(8, device=backend.device).to_sparse(), (8,))


# ------------------------------------------------------------------------- hostile but well-formed


def test_views_with_the_negative_bit(backend: Backend) -> None:
    """The imaginary part of a conjugate is stored with the other sign."""
    z = torch.randn(4, 8, dtype=torch.complex64, device=backend.device)
    x = z.conj().imag
    assert x.is_neg()
    expected = weft.layer_norm(x.resolve_neg(), (8,))
    torch.testing.assert_close(weft.layer_norm(x, (8,)), expected, rtol=0, atol=0)


def test_x_without_any_dimension(make: Make) -> None:
    with refuses("weft.layer_norm: normalized_ndim is 1, expected 1 to 0 (the dimensions of x)"):
        raw("layer_norm", x=make())


def test_sizes_whose_product_overflows(make: Make) -> None:
    """2^80 elements that share one: too many to write, whatever they take."""
    with pytest.raises(RuntimeError):
        raw("layer_norm", x=make(1, 1).expand(2**40, 2**40))


def test_every_gradient_at_once_without_its_argument(make: Make) -> None:
    """All that is asked for of absent arguments has the shape that its argument would have."""
    arguments = good_arguments("norm_backward", make)
    grads = raw("norm_backward", **arguments, needs=1023 - 512)
    shapes = [(4, 8)] * 4 + [(8,)] * 5 + [(0,)]
    assert [tuple(g.shape) for g in grads] == shapes
    for i in (6, 7):  # dy1 is absent
        assert not grads[i].any()


def test_no_gradient_at_all(make: Make) -> None:
    for given in ({"dy": None}, {"needs": 0}, {"needs": 1 << 40}):
        grads = raw("norm_backward", **(good_arguments("norm_backward", make) | given))
        assert all(g.shape == (0,) for g in grads)


def test_backward_of_nothing_is_zero(make: Make) -> None:
    arguments = good_arguments("norm_backward", make) | {"dy": None, "needs": 63}
    for grad in raw("norm_backward", **arguments):
        assert not grad.any()


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name)
def test_memory_efficient_with_zero_weights(backend: Backend, dtype: torch.dtype) -> None:
    """x cannot be had back where the weight is zero: finite numbers all the same."""
    x = draw((4, 33), dtype, backend.device).requires_grad_()
    weight = torch.zeros(33, dtype=dtype, device=backend.device, requires_grad=True)
    RMS.weft(x, (33,), weight, eps=1e-5, memory_efficient=True).sum().backward()
    assert x.grad.isfinite().all() and weight.grad.isfinite().all()


def test_same_tensor_in_every_place(make: Make) -> None:
    """Aliases among inputs are nothing special."""
    x = draw((4, 8), torch.float32, make.device)
    y = weft.layer_norm_fn(x, x[0], x[0], x, x1=x, residual2=x, x_bias=x[0], layerscale=x[0])
    copies = [x.clone() for _ in range(3)]
    rows = [x[0].clone() for _ in range(4)]
    expected = weft.layer_norm_fn(
        x, rows[0], rows[1], copies[0], x1=copies[1], residual2=copies[2], x_bias=rows[2],
        layerscale=rows[3],
    )  # fmt: skip
    assert torch.equal(y, expected)


SHARED = "overlap in memory, expected the same elements or none"


def test_results_that_overlap_inputs(make: Make) -> None:
    """A kernel may have written what it has yet to read."""
    whole = draw((9, 16), torch.float32, make.device)
    for x, out in [
        (whole[:4, :8], whole[:4, 4:12]),  # rows begin in one another
        (whole[:8].view(16, 8)[1:], whole[:8].view(16, 8)[:15]),  # one row further
        (whole[0, :8], whole[0, 1:9]),
        (whole[:4, :8], whole[:2].view(4, 8)),  # of another pitch
    ]:
        with refuses(f"weft.layer_norm: out and x {SHARED}"):
            weft.layer_norm(x, (8,), out=out)
    x = whole[:4, :8]
    with refuses(f"weft.norm_forward: out and residual {SHARED}"):
        weft.layer_norm_fn(x, None, None, whole[5:9, :8], out=whole[4:8, :8])
    with refuses("weft.norm_forward: out and residual_out overlap in memory"):
        weft.layer_norm_fn(x, None, None, x, out=whole[5:9, :8], residual_out=whole[5:9, :8])
    with refuses(f"weft.norm_int8: out and x {SHARED}"):
        raw("norm_int8.out", x=x, out=whole.view(torch.int8)[:4, :8], scale_out=make(4))
    with refuses("weft.fused_add_rms_norm: x and residual overlap in memory"):
        weft.fused_add_rms_norm(x, x, make(8))
    with refuses("weft.layer_norm: out repeats elements in memory"):
        weft.layer_norm(x, (8,), out=torch.empty(32, device=make.device).as_strided((4, 8), (4, 1)))


def test_results_in_place_of_inputs(make: Make) -> None:
    """An input's own elements, or others between its rows, may take the result."""
    x, residual = (draw((4, 8), torch.float32, make.device) for _ in range(2))
    y = weft.layer_norm(x, (8,))
    for taken in (x.clone(), torch.cat([x, x], 1)[:, :8], torch.cat([x, x], 1)[:, 8:]):
        assert torch.equal(weft.layer_norm(taken, (8,), out=taken), y)
    both = torch.cat([x, x], 1)
    assert torch.equal(weft.layer_norm(both[:, 8:], (8,), out=both[:, :8]), y)
    assert torch.equal(both[:, 8:], x)

    y, z = weft.layer_norm_fn(x, None, None, residual, prenorm=True)
    places = x.clone(), residual.clone()
    weft.layer_norm_fn(
        places[0], None, None, places[1], prenorm=True, out=places[0], residual_out=places[1]
    )
    assert torch.equal(places[0], y) and torch.equal(places[1], z)
