"""layer_norm_int8 and rms_norm_int8: norms that end in int8, with a scale given or found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from backends import Backend
from tolerance import assert_int8_close, assert_no_worse_than_torch

from . import cases
from .cases import FLOATS, LAYER, LAYOUTS, NORMS, RMS, Norm, draw, exact, parameters

each_norm = pytest.mark.parametrize("norm", NORMS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=cases.name)

ENDS: dict[str, dict[str, Any]] = {
    "static": {"scale": torch.tensor([0.021])},
    "static_saturating": {"scale": torch.tensor([0.004])},
    "static_with_zero_point": {"scale": torch.tensor([0.017]), "zero_point": -37},
    "dynamic": {},
    "dynamic_asymmetric": {"symmetric": False},
}
DYNAMIC = ("dynamic", "dynamic_asymmetric")
each_end = pytest.mark.parametrize("end", ENDS)


def check(norm: Norm, x: Tensor, end: str, **call: Any) -> Any:
    """Runs weft and holds values, scales, zero points and the residual against the reference."""
    call = ENDS[end] | call
    on_device = {k: v.to(x.device) if isinstance(v, Tensor) else v for k, v in call.items()}
    ours = norm.int8(x, **on_device)
    of_memory = ("prenorm", "residual_in_fp32", "out")
    exactly = {k: v for k, v in call.items() if k not in of_memory}
    sums = ("residual", "x_bias", "residual2", "residual_alpha")
    truth = exact(norm.int8_truth, x, **exactly)
    sum_truth = truth.residual
    if "residual" in call or "x_bias" in call:  # what is normalised is the sum as it would be kept
        kept = norm.int8(x, **on_device | {"prenorm": True}).residual
        rest = {k: v for k, v in exactly.items() if k not in sums}
        truth = exact(norm.int8_truth, kept, **rest)
    assert_int8_close(ours.values, truth.values)
    if end in DYNAMIC:
        ndim = len(call.get("normalized_shape") or (1,))
        leading = (*x.shape[: x.dim() - ndim], *(1,) * ndim)
        assert ours.scale.dtype == torch.float32 and ours.scale.shape == leading
        scale = truth.scale.view(leading)
        torch.testing.assert_close(ours.scale.cpu().double(), scale, rtol=1e-6, atol=0)
    if end == "dynamic_asymmetric":
        assert ours.zero_point.dtype == torch.int32 and ours.zero_point.shape == leading
        assert torch.equal(ours.zero_point.cpu(), truth.zero_point.view(leading))
    if call.get("prenorm"):
        plain = cases.reference.norm.add(x, **{k: v for k, v in on_device.items() if k in sums})
        residual = call.get("residual")
        plain = plain.to(ours.residual.dtype if residual is None else residual.dtype)
        assert_no_worse_than_torch(ours.residual, sum_truth, plain, "residual")
    else:
        assert ours.residual is None
    return ours


@each_end
@each_dtype
@each_norm
def test_widths(backend: Backend, norm: Norm, dtype: torch.dtype, end: str) -> None:
    for width in (1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 127, 384, 1000, 1025, 4097):
        weight, bias = parameters((width,), dtype, backend.device)
        for rows in (1, 3, 20) if width < 1000 else (3,):
            check(norm, draw((rows, width), dtype, backend.device), end, weight=weight, bias=bias)


@each_end
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)
@each_norm
def test_wide_rows(backend: Backend, norm: Norm, dtype: torch.dtype, end: str) -> None:
    for shape in ((1, 20001), (3, 16384), (1, 262144)):
        weight, bias = parameters(shape[-1:], dtype, backend.device)
        check(norm, draw(shape, dtype, backend.device), end, weight=weight, bias=bias)


@each_end
@pytest.mark.parametrize(
    "given", ["", "weight", "bias", "shift", "smooth", "weight bias shift smooth"]
)
@pytest.mark.parametrize("zero_centered_weight", [False, True])
@each_norm
def test_per_channel(
    backend: Backend, norm: Norm, given: str, zero_centered_weight: bool, end: str
) -> None:
    """Shift and smooth come after the affine part; any of the four may be absent.

    16-bit numbers that nothing is multiplied with have quotients of few bits: many exact ties.
    """
    for dtype in (torch.float32, torch.bfloat16) if given else (torch.float32,):
        weight, bias = parameters((1000,), dtype, backend.device)
        shift, smooth = draw((1000,), dtype, backend.device), weight.abs() + 0.5
        call = {"weight": weight, "bias": bias, "shift": shift, "smooth": smooth}
        call = {k: v for k, v in call.items() if k in given.split()}
        x = draw((7, 1000), dtype, backend.device)
        check(norm, x, end, **call, zero_centered_weight=zero_centered_weight)


@each_end
@pytest.mark.parametrize("prenorm", [False, True])
@each_dtype
@each_norm
def test_residuals(
    backend: Backend, norm: Norm, dtype: torch.dtype, prenorm: bool, end: str
) -> None:
    shape = (2, 3, 500)
    residual, residual2 = (draw(shape, dtype, backend.device) for _ in range(2))
    weight, bias = parameters(shape[-1:], dtype, backend.device)
    base = {"weight": weight, "bias": bias, "prenorm": prenorm}
    for more in (
        {"residual": residual},
        {"residual": residual, "residual2": residual2, "residual_alpha": 0.75},
        {"residual": residual, "x_bias": bias},
        {},
    ):
        check(norm, draw(shape, dtype, backend.device), end, **base, **more)


@pytest.mark.parametrize("is_asked", [False, True])
def test_residual_in_fp32(backend: Backend, is_asked: bool) -> None:
    x = draw((3, 64), torch.bfloat16, backend.device)
    result = RMS.int8(x, prenorm=True, residual_in_fp32=is_asked)
    assert result.residual.dtype == (torch.float32 if is_asked else torch.bfloat16)
    kept = RMS.int8(x, residual=x.float(), prenorm=True, residual_in_fp32=is_asked)
    assert kept.residual.dtype == torch.float32


@each_end
@pytest.mark.parametrize("layout", LAYOUTS)
@each_norm
def test_layouts(backend: Backend, norm: Norm, layout: str, end: str) -> None:
    for shape in ((7, 65), (2, 3, 128), (2, 20001)):
        x = draw(shape, torch.bfloat16, backend.device, layout)
        options = {k: v for k, v in ENDS[end].items()}
        ours, expected = norm.int8(x, **options), norm.int8(x.contiguous(), **options)
        assert torch.equal(ours.values, expected.values)
        assert torch.equal(ours.scale, expected.scale)


@each_end
@each_norm
def test_several_normalized_dimensions(backend: Backend, norm: Norm, end: str) -> None:
    shape = (3, 2, 20, 30)
    for ndim in (1, 2, 3):
        weight, bias = parameters(shape[-ndim:], torch.float32, backend.device)
        call = {"weight": weight, "bias": bias, "normalized_shape": shape[-ndim:]}
        check(norm, draw(shape, torch.float32, backend.device), end, **call)


@pytest.mark.parametrize("end", DYNAMIC)
@pytest.mark.parametrize("width", [7, 64, 20001])
@each_norm
def test_rows_of_zeros(backend: Backend, norm: Norm, width: int, end: str) -> None:
    """Scale 1, and values that come back as exact zeros, beside rows that are not zero."""
    x = draw((4, width), torch.float32, backend.device)
    x[1] = x[3] = 0
    result = check(norm, x, end)
    assert torch.equal(result.scale[1::2].cpu(), torch.ones(2, 1))
    assert not ((result.values.int() - result.zero_point) * result.scale)[1::2].any()


@pytest.mark.parametrize("end", DYNAMIC)
@pytest.mark.parametrize("value", [-2.0, 1e-6, 3.0])
def test_constant_rows(backend: Backend, value: float, end: str) -> None:
    """A constant after the norm: zero is in the range, so that nothing degenerates."""
    x = torch.full((3, 100), 5.0, device=backend.device)
    constant = torch.full((100,), value, device=backend.device)
    result = check(LAYER, x, end, bias=constant)
    dequantised = (result.values.int() - result.zero_point) * result.scale
    torch.testing.assert_close(dequantised, constant.expand(3, 100), rtol=1e-5, atol=0)


@pytest.mark.parametrize("sign", [-1, 1])
def test_one_sided_rows(backend: Backend, sign: int) -> None:
    """All positive or all negative: the asymmetric range still holds zero, at an end of it."""
    x = (draw((5, 300), torch.float32, backend.device).abs() + 1) * sign
    result = check(RMS, x, "dynamic_asymmetric")
    assert (result.zero_point == (-128 if sign > 0 else 127)).all()
    assert result.values.min() >= -128 and result.values.max() <= 127


@each_norm
def test_extremes_are_used(backend: Backend, norm: Norm) -> None:
    """Symmetric rows reach 127 or -127, never -128; asymmetric ones fill all 256 values."""
    x = draw((50, 300), torch.bfloat16, backend.device)
    symmetric = norm.int8(x).values.int()
    assert (symmetric.abs().amax(-1) == 127).all()
    asymmetric = norm.int8(x, symmetric=False).values.int()
    assert (asymmetric.amax(-1) - asymmetric.amin(-1) >= 254).all()


def test_static_saturates(backend: Backend) -> None:
    x = torch.tensor([[1e3, -1e3] + [0.0] * 30], device=backend.device)
    result = LAYER.int8(x, scale=torch.tensor([1e-3], device=backend.device))
    assert result.values[0, :2].tolist() == [127, -128]


def test_static_rounds_half_to_even(backend: Backend) -> None:
    """On numbers that are exact: eps = 0, a row of mean square one."""
    x = torch.tensor([[1.0, -1.0] * 8], device=backend.device)
    bias = torch.arange(16, device=backend.device) * 0.5
    scale = torch.ones(1, device=backend.device)
    result = RMS.int8(x, bias=bias - x[0], eps=0.0, scale=scale, zero_point=3)
    assert result.values[0].tolist() == [3 + round(i / 2) for i in range(16)]


@each_end
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@each_norm
def test_nonfinite_rows_stay_alone(backend: Backend, norm: Norm, value: float, end: str) -> None:
    for width in (65, 20001):
        x = draw((3, width), torch.float32, backend.device)
        clean = norm.int8(x, **ENDS[end])
        x[1, 5] = value
        ours = norm.int8(x, **ENDS[end])
        assert torch.equal(ours.values[::2], clean.values[::2])
        if end in DYNAMIC:
            assert torch.equal(ours.scale[::2], clean.scale[::2])


@each_end
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)], ids=cases.name)
@each_norm
def test_empty(backend: Backend, norm: Norm, shape: tuple[int, ...], end: str) -> None:
    check(norm, torch.empty(shape, device=backend.device), end)


@each_end
@pytest.mark.parametrize("layout", ["contiguous", "padded_rows", "every_other_column"])
@each_norm
def test_out(backend: Backend, norm: Norm, layout: str, end: str) -> None:
    x = draw((2, 3, 130), torch.bfloat16, backend.device)
    out = torch.zeros(2, 3, 300, dtype=torch.int8, device=backend.device)
    out = {"contiguous": out[..., :130].contiguous(), "padded_rows": out[..., 7:137]}.get(
        layout, out[..., :260:2]
    )
    result = norm.int8(x, **ENDS[end], out=out)
    assert result.values is out
    assert torch.equal(out, norm.int8(x, **ENDS[end]).values)


@each_norm
def test_int8_is_the_norm_quantised(backend: Backend, norm: Norm) -> None:
    """Static quantisation of weft's own float32 result gives the same values, ties aside."""
    x = draw((20, 1000), torch.float32, backend.device)
    weight, bias = parameters((1000,), torch.float32, backend.device)
    y = norm.weft(x, (1000,), weight, bias, 1e-5)
    scale = torch.tensor([0.03], device=backend.device)
    result = norm.int8(x, weight, bias, 1e-5, scale=scale, zero_point=5)
    expected = ((y / scale).round() + 5).clamp(-128, 127).to(torch.int8)
    assert_int8_close(result.values, expected.cpu())


@pytest.mark.slow
@pytest.mark.parametrize("end", DYNAMIC)
def test_more_than_2_31_elements(backend: Backend, end: str) -> None:
    """Values on both sides of element 2^31; x is one row over and over, and takes no memory."""
    rows, width = 65537, 32769
    x = draw((1, width), torch.float32, backend.device)
    expected = check(LAYER, x, end)
    result = LAYER.int8(x.expand(rows, width), **ENDS[end])
    assert torch.equal(result.scale, expected.scale.expand(rows, 1))
    for first in (0, 2**31 // width - 5, rows - 10):
        values = result.values[first : first + 10]
        assert torch.equal(values, expected.values.expand_as(values))
