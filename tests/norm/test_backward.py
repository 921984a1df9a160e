"""layer_norm and rms_norm, backward: all gradients, and what autograd expects."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from backends import Backend
from tolerance import assert_no_worse_than_torch, assert_rounded_once

from . import cases
from .cases import (
    FLOATS,
    LAYER,
    LAYOUTS,
    NORMS,
    Norm,
    draw,
    exact_gradients,
    gradients,
    parameters,
)

each_norm = pytest.mark.parametrize("norm", NORMS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=cases.name)
EPS = 1e-5
ALL = ("x", "weight", "bias")


def check(
    norm: Norm,
    x: Tensor,
    ndim: int = 1,
    wrt: Iterable[str] = ALL,
    dy: Tensor | None = None,
    weight_shape: tuple[int, ...] | None = None,
    weight_dtype: torch.dtype | None = None,
    memory_efficient: bool = False,
    zero_centered_weight: bool = False,
    eps: float = EPS,
    luck: float = 1.0,
) -> dict[str, Tensor | None]:
    """Runs weft's backward and holds each gradient against the truth and torch's."""
    shape = tuple(x.shape[x.dim() - ndim :])
    weight, bias = parameters(weight_shape or shape, weight_dtype or x.dtype, str(x.device))
    call: dict[str, Any] = {"x": x, "shape": shape, "eps": eps}
    call["zero_centered_weight"] = zero_centered_weight
    call |= {"weight": weight - int(zero_centered_weight)} if "weight" in wrt else {"weight": None}
    call |= {"bias": bias} if "bias" in wrt else {"bias": None}
    dy = draw(x.shape, x.dtype, str(x.device)) if dy is None else dy
    by_weft = partial(norm.weft, memory_efficient=True) if memory_efficient else norm.weft
    ours = gradients(cases.by_name(by_weft), call, [dy], wrt)
    truth = exact_gradients(cases.by_name(norm.truth), call, [dy], wrt)
    theirs = gradients(cases.by_name(norm.plain), call, [dy], wrt)
    arithmetic = torch.promote_types(x.dtype, torch.float32)
    for k in wrt:
        what = f"d{k} of {norm}"
        assert_no_worse_than_torch(ours[k], truth[k], theirs[k], what, arithmetic, luck, unit=1)
    return ours


# ------------------------------------------------------------------------------- sizes and strides


@each_dtype
@each_norm
@pytest.mark.parametrize("width", cases.NARROW)
def test_narrow_rows(backend: Backend, norm: Norm, dtype: torch.dtype, width: int) -> None:
    """With a large eps where rows have few numbers, whose gradient would be all cancellation."""
    eps = 0.5 if width <= 3 else EPS
    for rows in (1, 2, 3, 100):
        check(norm, draw((rows, width), dtype, backend.device), eps=eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)
@each_norm
@pytest.mark.parametrize("width", cases.MIDDLE)
def test_middle_rows(backend: Backend, norm: Norm, dtype: torch.dtype, width: int) -> None:
    for rows in (1, 37):
        check(norm, draw((rows, width), dtype, backend.device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)
@each_norm
@pytest.mark.parametrize("width", cases.WIDE)
def test_wide_rows(backend: Backend, norm: Norm, dtype: torch.dtype, width: int) -> None:
    for rows in (1, 3):
        check(norm, draw((rows, width), dtype, backend.device, mean=0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)
@each_norm
def test_many_rows(backend: Backend, norm: Norm, dtype: torch.dtype) -> None:
    """Parameter gradients are long sums: of tens of thousands of rows, in float32 or better."""
    check(norm, draw((20011, 17), dtype, backend.device))


@pytest.mark.parametrize("layout", LAYOUTS)
@each_norm
def test_layouts(backend: Backend, norm: Norm, layout: str) -> None:
    """Of x and of dy."""
    for shape in ((7, 65), (2, 3, 128), (3, 2, 4, 33), (2, 20001)):
        x = draw(shape, torch.float32, backend.device, layout)
        luck = 4 if layout == "expanded_columns" else 1  # all elements are one number
        check(norm, x, luck=luck)
        check(
            norm, x.contiguous(), dy=draw(shape, torch.float32, backend.device, layout), luck=luck
        )


@each_norm
def test_gradient_of_a_sum(backend: Backend, norm: Norm) -> None:
    """Its dy is one number expanded over all dimensions."""
    one = torch.ones((), device=backend.device)
    check(norm, draw((5, 70), torch.float32, backend.device), dy=one.expand(5, 70))


@pytest.mark.parametrize("shape, ndim", [((4, 3, 5), 2), ((4, 3, 5), 3), ((9,), 1)], ids=cases.name)
@each_norm
def test_several_normalized_dimensions(
    backend: Backend, norm: Norm, shape: tuple[int, ...], ndim: int
) -> None:
    check(norm, draw(shape, torch.float32, backend.device), ndim)
    if len(shape) > 2:
        check(norm, draw(shape, torch.float32, backend.device, "transposed_rows"), ndim)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (3, 0), (0,)], ids=cases.name)
@each_norm
def test_empty(backend: Backend, norm: Norm, shape: tuple[int, ...]) -> None:
    """No rows give zero parameter gradients."""
    grads = check(norm, torch.empty(shape, device=backend.device))
    assert not grads["weight"].any() and not grads["bias"].any()


# ------------------------------------------------------------------------------ dtypes and options


@pytest.mark.parametrize("weight_dtype", FLOATS, ids=cases.name)
@each_dtype
@each_norm
def test_dtype_pairs(
    backend: Backend, norm: Norm, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    """Gradients have the dtype of what they are gradients of."""
    check(norm, draw((5, 131), dtype, backend.device), weight_dtype=weight_dtype)


@pytest.mark.parametrize("zero_centered_weight", [False, True])
@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize("wrt", ["x", "x weight", "x bias", "x weight bias"])
@each_norm
def test_parameters(
    backend: Backend, norm: Norm, wrt: str, memory_efficient: bool, zero_centered_weight: bool
) -> None:
    options = {"memory_efficient": memory_efficient, "zero_centered_weight": zero_centered_weight}
    for shape in ((5, 131), (2, 20001)):
        check(norm, draw(shape, torch.float32, backend.device), wrt=wrt.split(), **options)


@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize("heads, width", [(3, 64), (5, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)
@each_norm
def test_weights_per_head(
    backend: Backend, norm: Norm, dtype: torch.dtype, heads: int, width: int, memory_efficient: bool
) -> None:
    for layout in ("contiguous", "transposed_rows"):
        x = draw((2, 41, heads, width), dtype, backend.device, layout)
        check(norm, x, weight_shape=(heads, width), memory_efficient=memory_efficient)


@each_dtype
@each_norm
def test_memory_efficient_dtypes(backend: Backend, norm: Norm, dtype: torch.dtype) -> None:
    check(norm, draw((40, 131), dtype, backend.device), memory_efficient=True)


@each_norm
def test_memory_efficient_keeps_y_and_not_x(backend: Backend, norm: Norm) -> None:
    """What autograd saves: x, or y in its place, and statistics of a few bytes a row."""
    x = draw((8, 512), torch.float32, backend.device).requires_grad_()
    weight, bias = (p.requires_grad_() for p in parameters((512,), torch.float32, backend.device))

    def saved(**options: bool) -> tuple[Tensor, set[int], int]:
        kept: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            kept[t.data_ptr()] = t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = norm.weft(x, (512,), weight, bias, EPS, **options)
        return y, set(kept), sum(kept.values())

    allowed = x.nbytes + weight.nbytes + bias.nbytes + 8 * 2 * 4
    y, kept, nbytes = saved()
    assert x.data_ptr() in kept and y.data_ptr() not in kept and nbytes <= allowed
    y, kept, nbytes = saved(memory_efficient=True)
    assert y.data_ptr() in kept and x.data_ptr() not in kept and nbytes <= allowed


@each_norm
def test_large_mean(backend: Backend, norm: Norm) -> None:
    check(norm, draw((9, 1000), torch.float32, backend.device, mean=1e3))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@each_norm
def test_nonfinite_rows_stay_alone(backend: Backend, norm: Norm, value: float) -> None:
    """dx of other rows keeps its bits; the parameters' gradients have nowhere to hide."""
    for width in (65, 20001):
        x, dy = (draw((4, width), torch.float32, backend.device) for _ in range(2))
        weight, bias = parameters((width,), torch.float32, backend.device)
        call = {"x": x, "shape": (width,), "weight": weight, "bias": bias, "eps": EPS}
        clean = gradients(cases.by_name(norm.weft), call, [dy], ALL)
        call["x"] = x.clone()
        call["x"][1, 3] = value
        ours = gradients(cases.by_name(norm.weft), call, [dy], ALL)
        theirs = gradients(cases.by_name(norm.plain), call, [dy], ALL)
        others = [0, 2, 3]
        assert torch.equal(ours["x"][others], clean["x"][others])
        assert ours["x"][1].isnan().any()
        for k in ("weight", "bias"):
            assert torch.equal(ours[k].isfinite(), theirs[k].isfinite()), k


# --------------------------------------------------------------------------- what autograd expects


@each_norm
def test_gradcheck(backend: Backend, norm: Norm) -> None:
    """Numerical derivatives, in float64."""
    for shape, ndim, of_weights in (
        ((3, 7), 1, (7,)),
        ((2, 3, 4), 2, (3, 4)),
        ((2, 3, 5), 1, (3, 5)),
    ):
        x = draw(shape, torch.float64, backend.device).requires_grad_()
        weight, bias = (
            p.requires_grad_() for p in parameters(of_weights, torch.float64, backend.device)
        )
        for memory_efficient, zero_centered_weight in product((False, True), repeat=2):

            def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                options = {"memory_efficient": memory_efficient}  # noqa: B023
                options["zero_centered_weight"] = zero_centered_weight  # noqa: B023
                return norm.weft(x, shape[-ndim:], weight, bias, EPS, **options)  # noqa: B023

            torch.autograd.gradcheck(function, (x, weight, bias))


@pytest.mark.parametrize("memory_efficient", [False, True])
@each_norm
def test_only_what_is_asked_for(backend: Backend, norm: Norm, memory_efficient: bool) -> None:
    """Frozen tensors get no gradient, and the others the same bits as when all are asked for."""
    x, dy = (draw((5, 131), torch.float32, backend.device) for _ in range(2))
    weight, bias = parameters((131,), torch.float32, backend.device)
    call = {"x": x, "weight": weight, "bias": bias, "shape": (131,), "eps": EPS}
    function = partial(cases.by_name(norm.weft), memory_efficient=memory_efficient)
    every = gradients(function, call, [dy], ALL)
    for asked in (["x"], ["weight"], ["bias"], ["x", "bias"], ["weight", "bias"], ["x", "weight"]):
        grads = gradients(function, call, [dy], asked)
        assert all(torch.equal(grads[k], every[k]) for k in asked), asked
    y = function(**(call | {"weight": weight.clone().requires_grad_()}))
    y.backward(dy)
    assert x.grad is None and bias.grad is None


@each_norm
def test_no_gradient_no_graph(backend: Backend, norm: Norm) -> None:
    x = draw((3, 8), torch.float32, backend.device)
    assert not norm.weft(x, (8,)).requires_grad
    x.requires_grad_()
    assert norm.weft(x, (8,)).requires_grad
    with torch.no_grad():
        assert not norm.weft(x, (8,)).requires_grad
    with torch.inference_mode():
        assert norm.weft(x, (8,)).is_inference()


@each_norm
def test_gradients_accumulate(backend: Backend, norm: Norm) -> None:
    """Two backward passes add up, also through the same graph."""
    x = draw((5, 33), torch.float32, backend.device).requires_grad_()
    weight, bias = (p.requires_grad_() for p in parameters((33,), torch.float32, backend.device))
    y = norm.weft(x, (33,), weight, bias, EPS)
    y.sum().backward(retain_graph=True)
    once = [t.grad.clone() for t in (x, weight, bias)]
    y.sum().backward()
    for t, first in zip((x, weight, bias), once, strict=True):
        assert torch.equal(t.grad, 2 * first)


@each_norm
def test_shared_weight(backend: Backend, norm: Norm) -> None:
    """One weight in two layers gets both layers' gradients."""
    x, dy = (draw((5, 33), torch.float32, backend.device) for _ in range(2))
    weight, bias = parameters((33,), torch.float32, backend.device)

    def twice(function):  # type: ignore[no-untyped-def]
        def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            inner = function(x, (33,), weight, bias, EPS)
            return function(inner * 2 + 1, (33,), weight, bias, EPS)

        return call

    call = {"x": x, "weight": weight, "bias": bias}
    ours, theirs = (gradients(twice(f), call, [dy], ALL) for f in (norm.weft, norm.plain))
    truth = exact_gradients(twice(norm.truth), call, [dy], ALL)
    for k in ALL:
        assert_no_worse_than_torch(ours[k], truth[k], theirs[k], f"d{k}")


@each_norm
def test_x_changed_after_forward_is_noticed(backend: Backend, norm: Norm) -> None:
    """Autograd's version counter guards what was saved."""
    x = draw((3, 8), torch.float32, backend.device).requires_grad_()
    kept = x * 1
    y = norm.weft(kept, (8,))
    kept.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_out_has_no_gradient(backend: Backend) -> None:
    """As in torch, out= and autograd exclude each other."""
    x = draw((3, 8), torch.float32, backend.device).requires_grad_()
    with pytest.raises(RuntimeError, match="out"):
        LAYER.weft(x, (8,), out=torch.empty(3, 8, device=backend.device))


# ------------------------------------------------------------------------------- 64-bit addressing


@pytest.mark.slow
@each_norm
def test_more_than_2_31_elements(backend: Backend, norm: Norm) -> None:
    """dx on both sides of element 2^31, 13 GB in all: x has seven kinds of rows, dy one."""
    rows, width = 65537, 32769
    pattern, dy = (draw((width,), torch.bfloat16, backend.device) for _ in range(2))
    x = torch.empty(rows, width, dtype=torch.bfloat16, device=backend.device)
    for shift in range(7):
        x[shift::7] = pattern.roll(shift)
    weight, bias = parameters((width,), torch.bfloat16, backend.device)
    weight.requires_grad_()
    norm.weft(x.requires_grad_(), (width,), weight, bias, EPS).backward(dy.expand(rows, width))
    for n in (0, 1, rows // 2, 2**31 // width - 1, 2**31 // width, rows - 1):
        call = {"x": pattern.roll(n % 7), "shape": (width,), "weight": weight, "bias": bias}
        call["eps"] = EPS
        truth = exact_gradients(cases.by_name(norm.truth), call, [dy], ["x"])["x"]
        assert_rounded_once(x.grad[n], truth, f"row {n} of dx")

    # dweight is the sum over the seven patterns, each as often as it occurs.
    counts = torch.tensor([len(range(shift, rows, 7)) for shift in range(7)]).view(7, 1)
    patterns = torch.stack([pattern.roll(shift) for shift in range(7)])
    call |= {"x": patterns, "weight": weight.detach()}
    upstream = cases.to_float64(dy) * counts
    truth = exact_gradients(cases.by_name(norm.truth), call, [upstream], ["weight"])["weight"]
    error = (weight.grad.cpu().double() - truth).abs().max()
    assert error <= torch.finfo(torch.bfloat16).eps * truth.abs().max()
