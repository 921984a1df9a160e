"""layer_norm_fn, rms_norm_fn, fused_add_rms_norm: norms with their neighbours, both ways."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

import weft
from backends import Backend
from tolerance import assert_no_worse_than_torch, assert_rounded_once
from weft import reference

from . import cases
from .cases import (
    DIFFERENTIABLE,
    FLOATS,
    HALVES,
    LAYER,
    LAYOUTS,
    NORMS,
    RMS,
    WRITABLE,
    Norm,
    as_tuple,
    draw,
    exact,
    exact_gradients,
    fused_call,
    gradients,
    parameters,
)

each_norm = pytest.mark.parametrize("norm", NORMS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=cases.name)
usual_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)

AFFINE = "weight bias"
OPTIONS = (
    "",
    "weight",
    "bias",
    AFFINE,
    f"{AFFINE} zero_centered",
    f"{AFFINE} prenorm",
    f"{AFFINE} prenorm fp32_residual",
    f"{AFFINE} residual",
    f"{AFFINE} residual prenorm",
    f"{AFFINE} residual alpha prenorm",
    f"{AFFINE} residual residual2 alpha prenorm",
    f"{AFFINE} residual2 prenorm",
    f"{AFFINE} x_bias",
    f"{AFFINE} x_bias prenorm",
    f"{AFFINE} rowscale prenorm",
    f"{AFFINE} layerscale prenorm",
    f"{AFFINE} x_bias rowscale layerscale residual prenorm",
    f"{AFFINE} dropout prenorm",
    f"{AFFINE} dropout residual prenorm",
    f"{AFFINE} dropout x_bias rowscale layerscale residual residual2 alpha prenorm zero_centered",
    f"{AFFINE} x1",
    f"{AFFINE} x1 prenorm residual",
    f"{AFFINE} x1 dropout residual prenorm",
    f"{AFFINE} weight1 bias1",
    "weight weight1",
    f"{AFFINE} weight1 bias1 x1 dropout x_bias layerscale residual residual2 alpha prenorm",
)
EVERYTHING = OPTIONS[-1].split()  # but rowscale, which flash-attn's signature keeps apart from x1
as_id = {"ids": lambda options: options.replace(" ", "+") or "bare"}


def check_forward(norm: Norm, call: dict[str, Any], luck: float = 1.0) -> tuple[Tensor, ...]:
    ours = as_tuple(norm.fused(**call))
    truth = as_tuple(exact(norm.fused_truth, **_float64(call)))
    theirs = norm.fused_plain(**call)
    assert len(ours) == len(truth) == len(theirs)
    for i, (our, true, their) in enumerate(zip(ours, truth, theirs, strict=True)):
        name, arithmetic = f"result {i} of {norm}_fn", compute_dtype(call)
        assert_no_worse_than_torch(our, true, their, name, arithmetic, luck)
    return ours


def check_backward(norm: Norm, call: dict[str, Any], luck: float = 1.0) -> None:
    wrt = [k for k in DIFFERENTIABLE if call.get(k) is not None]
    upstream = [torch.randn_like(y) for y in as_tuple(norm.fused(**call))]
    ours = gradients(norm.fused, call, upstream, wrt)
    truth = exact_gradients(norm.fused_truth, _float64(call), upstream, wrt)
    theirs = gradients(norm.fused_plain, call, upstream, wrt)
    for k in wrt:
        name, arithmetic = f"d{k} of {norm}_fn", compute_dtype(call)
        assert_no_worse_than_torch(ours[k], truth[k], theirs[k], name, arithmetic, luck, unit=1)


def compute_dtype(call: dict[str, Any]) -> torch.dtype:
    """The narrowest that values pass through: float32 (float64 for a float64 x), or the residual's,
    which z is rounded to."""
    arithmetic = torch.promote_types(call["x"].dtype, torch.float32)
    residual = call.get("residual")
    if residual is None or torch.finfo(residual.dtype).eps < torch.finfo(arithmetic).eps:
        return arithmetic
    return residual.dtype


def _float64(call: dict[str, Any]) -> dict[str, Any]:
    """The options that name dtypes would round the truth."""
    return {k: v for k, v in call.items() if k not in ("out_dtype", "residual_in_fp32")}


# ----------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("options", OPTIONS, **as_id)
@usual_dtype
@each_norm
def test_options(backend: Backend, norm: Norm, dtype: torch.dtype, options: str) -> None:
    for shape in ((5, 131), (2, 3, 64)):
        call = fused_call(shape, dtype, options.split(), backend.device)
        check_forward(norm, call)
        check_backward(norm, call)


@pytest.mark.parametrize("options", OPTIONS[-4:], **as_id)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=cases.name)
@each_norm
def test_other_dtypes(backend: Backend, norm: Norm, dtype: torch.dtype, options: str) -> None:
    call = fused_call((5, 131), dtype, options.split(), backend.device)
    check_forward(norm, call)
    check_backward(norm, call)


@pytest.mark.parametrize("options", [*OPTIONS[-5:-3], OPTIONS[-1]], **as_id)
@usual_dtype
@each_norm
def test_wide_rows(backend: Backend, norm: Norm, dtype: torch.dtype, options: str) -> None:
    """Where a row is split over threads."""
    call = fused_call((2, 20001), dtype, options.split(), backend.device)
    check_forward(norm, call)
    check_backward(norm, call)


@pytest.mark.parametrize("width", [1, 2, 3, 15, 16, 17, 31, 33, 63, 255, 1000, 4097])
@each_norm
def test_widths(backend: Backend, norm: Norm, width: int) -> None:
    """A large eps, as rows of few numbers can be nearly constant."""
    for rows in (1, 50) if width > 3 else (50,):
        call = fused_call((rows, width), torch.bfloat16, EVERYTHING, backend.device)
        call["eps"] = 0.5
        check_forward(norm, call)
        check_backward(norm, call, luck=1 if width > 3 else 4)


@each_norm
def test_many_rows(backend: Backend, norm: Norm) -> None:
    call = fused_call((5003, 19), torch.float32, EVERYTHING, backend.device)
    check_forward(norm, call)
    check_backward(norm, call)


@pytest.mark.parametrize("layout", LAYOUTS)
@each_norm
def test_layouts(backend: Backend, norm: Norm, layout: str) -> None:
    """Of x, x1 and both residuals; any strides give the same bits."""
    for shape in ((6, 65), (2, 3, 128), (1, 20001)):
        call = fused_call(shape, torch.float32, EVERYTHING, backend.device, layout)
        copied = call | {k: call[k].contiguous() for k in cases.PER_ELEMENT}
        for ours, expected in zip(norm.fused(**call), norm.fused(**copied), strict=True):
            assert torch.equal(ours, expected)
    check_backward(norm, fused_call((2, 3, 65), torch.float32, EVERYTHING, backend.device, layout))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (3, 0), (0,)], ids=cases.name)
@each_norm
def test_empty(backend: Backend, norm: Norm, shape: tuple[int, ...]) -> None:
    call = fused_call(shape, torch.float32, EVERYTHING, backend.device)
    check_forward(norm, call)
    check_backward(norm, call)


def test_one_row_without_leading_dimensions(backend: Backend) -> None:
    check_forward(
        LAYER, fused_call((40,), torch.float32, "weight residual prenorm".split(), backend.device)
    )


# ------------------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("residual_dtype", FLOATS, ids=cases.name)
@each_dtype
@each_norm
def test_residual_dtypes(
    backend: Backend, norm: Norm, dtype: torch.dtype, residual_dtype: torch.dtype
) -> None:
    """The residual comes out in the dtype in which it went in, and so does its gradient."""
    options = f"{AFFINE} residual prenorm".split()
    call = fused_call((5, 131), dtype, options, backend.device, residual_dtype=residual_dtype)
    y, residual = check_forward(norm, call)
    assert y.dtype == dtype and residual.dtype == residual_dtype
    check_backward(norm, call)


@pytest.mark.parametrize("out_dtype", FLOATS, ids=cases.name)
@each_dtype
@each_norm
def test_out_dtypes(
    backend: Backend, norm: Norm, dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    call = fused_call((5, 131), dtype, f"{AFFINE} residual".split(), backend.device)
    call["out_dtype"] = out_dtype
    (y,) = check_forward(norm, call)
    assert y.dtype == out_dtype
    check_backward(norm, call)


@pytest.mark.parametrize("weight_dtype", FLOATS, ids=cases.name)
@each_dtype
def test_parameter_dtypes(backend: Backend, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """Of weights, biases and layerscale, which often are float32 beside 16-bit activations."""
    options = f"{AFFINE} weight1 bias1 x_bias layerscale residual prenorm".split()
    call = fused_call((5, 131), dtype, options, backend.device, weight_dtype=weight_dtype)
    check_forward(LAYER, call)
    check_backward(LAYER, call)


@pytest.mark.parametrize("dtype", HALVES, ids=cases.name)
@each_norm
def test_half_precision_is_float32_rounded_once(
    backend: Backend, norm: Norm, dtype: torch.dtype
) -> None:
    """The residual is the exact sum, rounded once; y and y1 are its exact norm, rounded once."""
    for shape in ((20, 131), (2, 20001)):
        call = fused_call(shape, dtype, EVERYTHING, backend.device)
        y, y1, residual = norm.fused(**call)
        assert_rounded_once(residual, exact(norm.fused_truth, **call)[2], "residual")
        for result, i in ((y, ""), (y1, "1")):
            parameters = (call["weight" + i], call["bias" + i], 1e-6)
            truth = exact(norm.truth, residual, shape[-1:], *parameters)
            assert_rounded_once(result, truth, "y" + i)


@usual_dtype
@each_norm
def test_y_does_not_depend_on_what_else_is_asked_for(
    backend: Backend, norm: Norm, dtype: torch.dtype
) -> None:
    """The residual, masks, gradients or a place to write to: y has the same bits."""
    for shape in ((20, 131), (2, 20001)):
        call = fused_call(shape, dtype, "weight bias dropout x1".split(), backend.device)
        y = norm.fused(**call)
        assert torch.equal(norm.fused(**call, prenorm=True)[0], y)
        assert torch.equal(norm.fused(**call, return_dropout_mask=True)[0], y)
        assert torch.equal(norm.fused(**call, out=torch.empty_like(y)), y)
        call["weight"].requires_grad_()
        assert torch.equal(norm.fused(**call), y)


# ---------------------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("options", OPTIONS[-10::2], **as_id)
@each_norm
def test_gradcheck(backend: Backend, norm: Norm, options: str) -> None:
    """Numerical derivatives in float64. Dropout is a fixed mask, drawn again in backward."""
    call = fused_call((3, 5), torch.float64, options.split(), backend.device)
    wrt = [k for k in DIFFERENTIABLE if k in call and call[k] is not None]

    def function(*leaves: Tensor) -> Any:
        return norm.fused(**(call | dict(zip(wrt, leaves, strict=True))))

    torch.autograd.gradcheck(function, [call[k].requires_grad_() for k in wrt])


@each_norm
def test_only_what_is_asked_for(backend: Backend, norm: Norm) -> None:
    """Single arguments and pairs get the same bits as all together."""
    call = fused_call((5, 131), torch.float32, EVERYTHING, backend.device)
    upstream = [torch.randn_like(y) for y in norm.fused(**call)]
    every = gradients(norm.fused, call, upstream, DIFFERENTIABLE)
    for asked in [(k,) for k in DIFFERENTIABLE] + list(combinations(DIFFERENTIABLE, 2))[::3]:
        grads = gradients(norm.fused, call, upstream, asked)
        assert all(torch.equal(grads[k], every[k]) for k in asked), asked


@each_norm
def test_gradients_are_tensors_of_their_own(backend: Backend, norm: Norm) -> None:
    """What has the same gradient, as all addends have, may be clipped or zeroed independently."""
    call = fused_call(
        (5, 33), torch.float32, "residual residual2 x1 prenorm".split(), backend.device
    )
    upstream = [torch.randn_like(y) for y in norm.fused(**call)]
    grads = gradients(norm.fused, call, upstream, cases.PER_ELEMENT)
    assert len({g.data_ptr() for g in grads.values()}) == len(cases.PER_ELEMENT)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2), (1, 2)])
@each_norm
def test_unused_results(backend: Backend, norm: Norm, used: tuple[int, ...]) -> None:
    """Backward through some of y, y1 and the residual only."""
    call = fused_call((5, 131), torch.float32, EVERYTHING, backend.device)
    upstream = [draw((5, 131), torch.float32, backend.device) for _ in used]
    wrt = [k for k in DIFFERENTIABLE if not (k.endswith("1") and k != "x1" and 1 not in used)]
    wrt = [k for k in wrt if not (k in AFFINE.split() and 0 not in used)]

    def some(function):  # type: ignore[no-untyped-def]
        return lambda **call: tuple(function(**call)[i] for i in used)

    ours, theirs = (gradients(some(f), call, upstream, wrt) for f in (norm.fused, norm.fused_plain))
    truth = exact_gradients(some(norm.fused_truth), call, upstream, wrt)
    for k in wrt:
        assert_no_worse_than_torch(ours[k], truth[k], theirs[k], f"d{k}")


@each_norm
def test_stacked_blocks(backend: Backend, norm: Norm) -> None:
    """Pre-norm blocks pass the residual along: its gradient meets that of y in each."""
    xs = [draw((4, 33), torch.float32, backend.device) for _ in range(3)]
    weight, _ = parameters((33,), torch.float32, backend.device)

    def blocks(function):  # type: ignore[no-untyped-def]
        def call(x0: Tensor, x1: Tensor, x2: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            y, residual = function(x=x0, weight=weight, bias=None, prenorm=True)
            for x in (x1, x2):
                call = {"x": x * y, "residual": residual, "weight": weight, "bias": None}
                y, residual = function(**call, prenorm=True)
            return y, residual

        return call

    call = dict(zip(("x0", "x1", "x2", "weight"), (*xs, weight), strict=True))
    upstream = [draw((4, 33), torch.float32, backend.device) for _ in range(2)]
    ours = gradients(blocks(norm.fused), call, upstream, call)
    theirs = gradients(blocks(norm.fused_plain), call, upstream, call)
    truth = exact_gradients(blocks(norm.fused_truth), call, upstream, call)
    for k in call:
        assert_no_worse_than_torch(ours[k], truth[k], theirs[k], f"d{k}")


# ----------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("return_dropout_mask", [False, True])
@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_results_are_flash_attns(
    backend: Backend, second: bool, prenorm: bool, return_dropout_mask: bool
) -> None:
    """y, then y1, the residual and the two masks as asked for; a lone y comes without a tuple."""
    x = draw((4, 33), torch.float32, backend.device)
    weight, bias = parameters((33,), torch.float32, backend.device)
    more = {"weight1": weight, "bias1": bias, "x1": x} if second else {}
    more |= {"prenorm": prenorm, "return_dropout_mask": return_dropout_mask}
    results = weft.layer_norm_fn(x, weight, bias, dropout_p=0.5, **more)
    assert isinstance(results, Tensor if not (second or prenorm or return_dropout_mask) else tuple)
    results = list(as_tuple(results))
    assert len(results) == 1 + second + prenorm + 2 * return_dropout_mask
    for _ in range(1 + second + prenorm):
        assert results.pop(0).shape == x.shape
    if return_dropout_mask:
        mask, mask1 = results
        assert mask.dtype == torch.bool and mask.shape == x.shape
        assert mask1.shape == x.shape if second else mask1 is None


@each_dtype
def test_residual_in_fp32(backend: Backend, dtype: torch.dtype) -> None:
    """Without a residual to take the dtype from, the stream starts in float32."""
    for is_asked in (False, True):
        call = {"prenorm": True, "residual_in_fp32": is_asked}
        x = draw((3, 8), dtype, backend.device)
        _, residual = weft.rms_norm_fn(x, None, None, **call)
        expected = torch.promote_types(dtype, torch.float32) if is_asked else dtype
        assert residual.dtype == expected


@pytest.mark.parametrize("layout", WRITABLE)
@each_norm
def test_out_and_residual_out(backend: Backend, norm: Norm, layout: str) -> None:
    call = fused_call((6, 65), torch.bfloat16, OPTIONS[9].split(), backend.device)
    y, residual = norm.fused(**call)
    out, residual_out = (draw((6, 65), torch.bfloat16, backend.device, layout) for _ in range(2))
    results = norm.fused(**call, out=out, residual_out=residual_out)
    assert results[0] is out and results[1] is residual_out
    assert torch.equal(out, y) and torch.equal(residual_out, residual)


@each_norm
def test_results_in_place_of_arguments(backend: Backend, norm: Norm) -> None:
    """out may be x and residual_out the residual: inference that allocates nothing."""
    for shape in ((6, 65), (2, 20001)):
        call = fused_call(shape, torch.bfloat16, OPTIONS[9].split(), backend.device)
        y, residual = norm.fused(**call)
        norm.fused(**call, out=call["x"], residual_out=call["residual"])
        assert torch.equal(call["x"], y) and torch.equal(call["residual"], residual)


# ----------------------------------------------------------------------------------------- dropout

RNG_STATES = ((0, 0), (1, 2), (0x1234_5678_9ABC_DEF, 2**40 + 3), (-1, -1), (-(2**63), 2**63 - 1))


@pytest.mark.parametrize("rng_state", RNG_STATES, ids=str)
def test_mask_is_philox(backend: Backend, rng_state: tuple[int, int]) -> None:
    """Bit for bit the reference's, in every place a mask can be seen."""
    state = torch.tensor(rng_state)
    for shape in ((1,), (3, 5), (2, 3, 31), (1, 4099)):
        for p in (0.1, 0.5, 0.999):
            x = torch.ones(shape, device=backend.device)
            expected = [reference.philox.dropout_mask(state, shape, p, s) for s in (0, 1)]
            _, mask, mask1 = weft.layer_norm_fn(
                x, None, None, x1=x, dropout_p=p, rng_state=state, return_dropout_mask=True
            )
            for stream, seen in enumerate((mask, mask1)):
                assert torch.equal(seen.cpu(), expected[stream])
                drawn = weft.dropout_mask(state, shape, p, stream)
                assert torch.equal(drawn.cpu(), expected[stream])


def test_mask_threshold_is_exact(backend: Backend) -> None:
    """An element is kept where its word is at least p * 2^32: to the last of the 32 bits."""
    state = torch.tensor([7, 8])
    words = reference.philox.words(torch.arange(64), state)
    for e in range(0, 64, 5):
        for above in (-1, -0.5, 0, 0.5, 1):
            mask = weft.dropout_mask(state, (64,), (words[e].item() + above) / 2**32)
            assert mask[e].item() == (above <= 0), f"p * 2^32 is {above} above the word"


@each_norm
def test_dropout_is_the_mask(backend: Backend, norm: Norm) -> None:
    """Dropped elements are zeros, kept ones are scaled, before the residual is added."""
    shape, p = (3, 4, 50), 0.3
    x, residual = (draw(shape, torch.float32, backend.device) for _ in range(2))
    _, z, mask, _ = norm.fused(
        x, None, None, residual, dropout_p=p, prenorm=True, return_dropout_mask=True
    )
    assert torch.equal(z[~mask], residual[~mask])
    torch.testing.assert_close(z[mask], (x / (1 - p) + residual)[mask])


def test_dropout_without_state_draws_from_torch(backend: Backend) -> None:
    """torch.manual_seed makes it repeat; the next call differs."""
    x = draw((4, 100), torch.float32, backend.device)

    def draws() -> Tensor:
        torch.manual_seed(42)
        calls = [
            weft.rms_norm_fn(x, None, None, dropout_p=0.5, return_dropout_mask=True)[1]
            for _ in range(3)
        ]
        return torch.stack(calls)

    first, second = draws(), draws()
    assert torch.equal(first, second)
    assert len({tuple(mask.flatten().tolist()) for mask in first}) == 3


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
def test_mask_statistics(backend: Backend, p: float) -> None:
    """Kept as often as said, within five standard deviations: overall, by row, by neighbours."""
    n = 2**20
    mask = weft.dropout_mask(torch.tensor([11, 22]), (1024, 1024), p).double()

    def within(kept: Tensor, trials: int, q: float) -> None:
        deviation = (trials * q * (1 - q)) ** 0.5
        assert (kept - trials * q).abs().max() < 5 * deviation

    within(mask.sum(), n, 1 - p)
    within(mask.sum(0), 1024, 1 - p)
    within(mask.sum(1), 1024, 1 - p)
    pairs = mask.flatten()[::2] * mask.flatten()[1::2]
    within(pairs.sum(), n // 2, (1 - p) ** 2)
    other = weft.dropout_mask(torch.tensor([11, 22]), (1024, 1024), p, stream=1).double()
    within((mask * other).sum(), n, (1 - p) ** 2)


@each_norm
def test_no_dropout_at_zero(backend: Backend, norm: Norm) -> None:
    """p = 0 is no dropout, with or without a state."""
    call = fused_call((5, 131), torch.float32, f"{AFFINE} residual".split(), backend.device)
    expected = norm.fused(**call)
    assert torch.equal(norm.fused(**call, dropout_p=0.0), expected)
    assert torch.equal(norm.fused(**call, dropout_p=0.0, rng_state=torch.tensor([1, 2])), expected)
    assert weft.dropout_mask(torch.tensor([1, 2]), (1000,), 0.0).all()


@each_norm
def test_nearly_all_dropped(backend: Backend, norm: Norm) -> None:
    """The few that are left are scaled up, and rows without any normalise zeros."""
    call = fused_call((50, 33), torch.float32, f"{AFFINE} dropout prenorm".split(), backend.device)
    call["dropout_p"] = 1 - 1e-3
    _, z = check_forward(norm, call)
    assert (z == 0).all(-1).any() and (z != 0).any()
    check_backward(norm, call)


# ----------------------------------------------------------------------------------- ill condition


@each_norm
def test_constant_sums_have_small_gradients(backend: Backend, norm: Norm) -> None:
    """Rows whose only variance is the rounding of the residual that is kept: no gradient explodes.

    The sum, 100.3, is no bfloat16. Backward must not take its rounding error for variance.
    """
    shape = (4, 512)
    x, residual = (torch.full(shape, v).to(backend.device, torch.bfloat16) for v in (0.3, 100.0))
    call = {"x": x, "residual": residual, "weight": None, "bias": None}
    dy = draw(shape, torch.bfloat16, backend.device)
    ours = gradients(norm.fused, call, [dy], ["x"])["x"]
    truth = exact_gradients(norm.fused_truth, call, [dy], ["x"])["x"]
    assert ours.abs().max() <= 2 * truth.abs().max()


# ------------------------------------------------------------------------------ fused_add_rms_norm


@pytest.mark.parametrize("zero_centered_weight", [False, True])
@pytest.mark.parametrize("width", [1, 17, 64, 1000, 20001])
@each_dtype
def test_fused_add_rms_norm(
    backend: Backend, dtype: torch.dtype, width: int, zero_centered_weight: bool
) -> None:
    """In place: the residual becomes the sum, x its norm."""
    weight, _ = parameters((width,), dtype, backend.device)
    for shape in ((2, 3, width), (1, width)):
        x, residual = (draw(shape, dtype, backend.device) for _ in range(2))
        options = {"zero_centered_weight": zero_centered_weight}
        y_true, z_true = exact(reference.norm.fused_add_rms_norm, x, residual, weight, **options)
        z_plain = x + residual
        y_plain = RMS.plain(z_plain, (width,), weight, None, 1e-6, **options)
        assert weft.fused_add_rms_norm(x, residual, weight, **options) is None
        assert_no_worse_than_torch(residual, z_true, z_plain, "residual")
        assert_no_worse_than_torch(x, y_true, y_plain, "x")


@pytest.mark.parametrize("layout", WRITABLE)
def test_fused_add_rms_norm_strides(backend: Backend, layout: str) -> None:
    for shape in ((6, 65), (2, 3, 128), (2, 20001)):
        x, residual = (draw(shape, torch.bfloat16, backend.device, layout) for _ in range(2))
        weight, _ = parameters(shape[-1:], torch.bfloat16, backend.device)
        expected = [x.contiguous().clone(), residual.contiguous().clone()]
        weft.fused_add_rms_norm(*expected, weight, 1e-5)
        weft.fused_add_rms_norm(x, residual, weight, 1e-5)
        assert torch.equal(x, expected[0]) and torch.equal(residual, expected[1])


def test_fused_add_rms_norm_bumps_versions(backend: Backend) -> None:
    """Autograd and functionalisation see that both arguments changed."""
    x, residual = (draw((3, 8), torch.float32, backend.device) for _ in range(2))
    versions = x._version, residual._version
    weft.fused_add_rms_norm(x, residual, torch.ones(8, device=backend.device))
    assert x._version > versions[0] and residual._version > versions[1]


def test_fused_is_plain_when_nothing_is_fused(backend: Backend) -> None:
    """Bit for bit: the same kernel, reached by two names."""
    for norm in NORMS:
        for shape in ((5, 131), (1, 20001)):
            call = fused_call(shape, torch.bfloat16, AFFINE.split(), backend.device)
            y = norm.weft(call["x"], shape[-1:], call["weight"], call["bias"], 1e-6)
            assert torch.equal(norm.fused(**call), y)


@pytest.mark.slow
def test_masks_beyond_2_31_elements(backend: Backend) -> None:
    state, n = torch.tensor([5, 6]), 2**32 + 40
    mask = weft.dropout_mask(state, (n,), 0.5)
    for start in (0, 2**31 - 20, 2**32 - 20, n - 20):
        elements = torch.arange(start, start + 20)
        expected = reference.philox.words(elements, state) >= 2**31
        assert torch.equal(mask[start : start + 20].cpu(), expected)
