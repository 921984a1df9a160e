"""layer_norm and rms_norm, forward: sizes, layouts, dtypes, parameters, outputs, extreme values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import weft
from backends import Backend
from tolerance import assert_no_worse_than_torch, assert_rounded_once

from . import cases
from .cases import FLOATS, HALVES, LAYER, LAYOUTS, NORMS, WRITABLE, Norm, draw, exact, parameters

each_norm = pytest.mark.parametrize("norm", NORMS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=cases.name)
EPS = 1e-5


def check(
    norm: Norm,
    x: Tensor,
    shape: Sequence[int] | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = EPS,
    luck: float = 1.0,
    independent: bool = True,
    **options: Any,
) -> Tensor:
    """Runs weft and holds it against the truth and torch."""
    call = (x, x.shape[-1:] if shape is None else shape, weight, bias, eps)
    y = norm.weft(*call, **options)
    assert y.device == x.device
    truth, plain = exact(norm.truth, *call, **options), norm.plain(*call, **options)
    assert_no_worse_than_torch(y, truth, plain, str(norm), luck=luck, independent=independent)
    return y


# ------------------------------------------------------------------------------- sizes and strides


@each_dtype
@each_norm
@pytest.mark.parametrize("width", cases.NARROW)
def test_narrow_rows(backend: Backend, norm: Norm, dtype: torch.dtype, width: int) -> None:
    weight, bias = parameters((width,), dtype, backend.device)
    for rows in (1, 2, 3, 100):
        check(norm, draw((rows, width), dtype, backend.device), None, weight, bias)


@each_dtype
@each_norm
@pytest.mark.parametrize("width", cases.MIDDLE)
def test_middle_rows(backend: Backend, norm: Norm, dtype: torch.dtype, width: int) -> None:
    weight, bias = parameters((width,), dtype, backend.device)
    for rows in (1, 5):
        check(norm, draw((rows, width), dtype, backend.device), None, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)
@each_norm
@pytest.mark.parametrize("width", cases.WIDE)
def test_wide_rows(backend: Backend, norm: Norm, dtype: torch.dtype, width: int) -> None:
    """Wide enough for one row to be split over threads, and for float32 sums to show their care."""
    weight, bias = parameters((width,), dtype, backend.device)
    for rows in (1, 3):
        check(norm, draw((rows, width), dtype, backend.device, mean=0.5), None, weight, bias)


@each_norm
def test_many_rows(backend: Backend, norm: Norm) -> None:
    """More rows than any split over threads has tasks."""
    check(norm, draw((20011, 17), torch.float32, backend.device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)
@each_norm
def test_layouts(backend: Backend, norm: Norm, dtype: torch.dtype, layout: str) -> None:
    """Any strides give the same bits as the contiguous copy."""
    for shape in ((7, 65), (2, 3, 128), (3, 2, 4, 33), (1, 1, 40), (2, 20001)):
        x = draw(shape, dtype, backend.device, layout)
        weight, bias = parameters(shape[-1:], dtype, backend.device)
        call = (shape[-1:], weight, bias, EPS)
        assert torch.equal(norm.weft(x, *call), norm.weft(x.contiguous(), *call)), shape
    check(norm, draw((2, 5, 77), dtype, backend.device, layout))


@pytest.mark.parametrize("layout", ["contiguous", "padded_rows", "transposed_rows"])
@pytest.mark.parametrize(
    "shape, ndim", [((4, 3, 5), 2), ((4, 3, 5), 3), ((2, 3, 4, 5), 2), ((9,), 1)], ids=cases.name
)
@each_norm
def test_several_normalized_dimensions(
    backend: Backend, norm: Norm, shape: tuple[int, ...], ndim: int, layout: str
) -> None:
    """Also where they cannot be merged without a copy."""
    if len(shape) < 3 and layout != "contiguous":
        layout = "unaligned"
    x = draw(shape, torch.float32, backend.device, layout)
    weight, bias = parameters(shape[-ndim:], torch.float32, backend.device)
    check(norm, x, shape[-ndim:], weight, bias)
    check(norm, x, shape[-ndim:])


def test_many_leading_dimensions(backend: Backend) -> None:
    """Eight, none of which merges with its neighbour."""
    x = draw((2, 3, 2, 3, 2, 3, 2, 3, 9), torch.float32, backend.device)
    check(LAYER, x.permute(7, 5, 3, 1, 0, 2, 4, 6, 8))


@pytest.mark.parametrize(
    "shape, ndim",
    [((0, 5), 1), ((2, 0, 5), 1), ((3, 0), 1), ((2, 0, 5), 2), ((0,), 1), ((0, 0), 1)],
    ids=cases.name,
)
@each_norm
def test_empty(backend: Backend, norm: Norm, shape: tuple[int, ...], ndim: int) -> None:
    x = torch.empty(shape, device=backend.device)
    weight, bias = parameters(shape[-ndim:], torch.float32, backend.device)
    assert check(norm, x, shape[-ndim:], weight, bias).shape == shape
    assert check(norm, x, shape[-ndim:]).shape == shape


# --------------------------------------------------------------------------- dtypes and parameters


@pytest.mark.parametrize("weight_dtype", FLOATS, ids=cases.name)
@each_dtype
@each_norm
def test_dtype_pairs(
    backend: Backend, norm: Norm, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    """Every x with every weight; y has the dtype of x."""
    x = draw((5, 131), dtype, backend.device)
    weight, bias = parameters((131,), weight_dtype, backend.device)
    assert check(norm, x, None, weight, bias).dtype == dtype


def test_weight_and_bias_of_different_dtypes(backend: Backend) -> None:
    weight, bias = parameters((131,), torch.float32, backend.device)
    check(LAYER, draw((5, 131), torch.bfloat16, backend.device), None, weight, bias.bfloat16())


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("given", ["", "weight", "bias", "weight bias"])
@each_dtype
@each_norm
def test_parameters(
    backend: Backend, norm: Norm, dtype: torch.dtype, given: str, zero_centered: bool
) -> None:
    x = draw((5, 131), dtype, backend.device)
    weight, bias = parameters((131,), dtype, backend.device)
    weight = weight - 1 if zero_centered else weight
    call = {k: v for k, v in {"weight": weight, "bias": bias}.items() if k in given.split()}
    check(norm, x, **call, zero_centered_weight=zero_centered)


@pytest.mark.parametrize("heads, width", [(1, 64), (3, 64), (5, 33), (8, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)
@each_norm
def test_weights_per_head(
    backend: Backend, norm: Norm, dtype: torch.dtype, heads: int, width: int
) -> None:
    """Weights [H, C] for x [..., H, C], as normalised queries and keys have them."""
    weight, bias = parameters((heads, width), torch.float32, backend.device)
    for layout in ("contiguous", "transposed_rows"):
        x = draw((2, 7, heads, width), dtype, backend.device, layout)
        check(norm, x, (width,), weight, bias)
        check(norm, x, (width,), weight)
    check(norm, draw((heads, width), dtype, backend.device), (width,), weight, bias)


@pytest.mark.parametrize("layout", ["unaligned", "every_other_column", "expanded_columns"])
def test_strided_parameters(backend: Backend, layout: str) -> None:
    weight, bias = (draw((1, 97), torch.float32, backend.device, layout)[0] for _ in range(2))
    check(LAYER, draw((4, 97), torch.float32, backend.device), None, weight, bias)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3, 10.0])
@each_dtype
@each_norm
def test_eps(backend: Backend, norm: Norm, dtype: torch.dtype, eps: float) -> None:
    check(norm, draw((5, 131), dtype, backend.device, scale=0.01), eps=eps)


@each_dtype
def test_default_eps_is_torchs(backend: Backend, dtype: torch.dtype) -> None:
    x = draw((4, 64), dtype, backend.device, scale=2e-4)  # small enough for eps to matter
    for ours, torchs in ((weft.rms_norm, F.rms_norm), (weft.layer_norm, F.layer_norm)):
        tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-6}
        torch.testing.assert_close(ours(x, (64,)), torchs(x, (64,)), **tolerance)


@pytest.mark.parametrize("normalized_shape", [[33], (33,), torch.Size([33])], ids=str)
def test_normalized_shape_as_torch_takes_it(backend: Backend, normalized_shape: Any) -> None:
    x = draw((3, 33), torch.float32, backend.device)
    assert torch.equal(weft.layer_norm(x, normalized_shape), weft.layer_norm(x, (33,)))
    assert torch.equal(weft.rms_norm(x, normalized_shape), weft.rms_norm(x, (33,)))


@pytest.mark.parametrize("dtype", HALVES, ids=cases.name)
@each_norm
def test_half_precision_is_float32_rounded_once(
    backend: Backend, norm: Norm, dtype: torch.dtype
) -> None:
    for shape in ((50, 33), (20, 1024), (2, 20001)):
        x = draw(shape, dtype, backend.device)
        weight, bias = parameters(shape[-1:], dtype, backend.device)
        call = (x, shape[-1:], weight, bias, EPS)
        assert_rounded_once(norm.weft(*call), exact(norm.truth, *call))


# ------------------------------------------------------------------------------------ destinations


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name)
@each_norm
def test_out(backend: Backend, norm: Norm, dtype: torch.dtype, layout: str) -> None:
    """Written where told, whatever the strides, and nowhere else."""
    for shape in ((6, 65), (2, 3, 128), (2, 20001)):
        x = draw(shape, dtype, backend.device)
        weight, bias = parameters(shape[-1:], dtype, backend.device)
        call = (x, shape[-1:], weight, bias, EPS)
        out = draw(shape, dtype, backend.device, layout)
        storage = out.as_strided((out.untyped_storage().nbytes() // out.itemsize,), (1,), 0)
        outside = torch.ones_like(storage, dtype=torch.bool)
        outside.as_strided(out.shape, out.stride(), out.storage_offset()).fill_(False)
        before = storage[outside]
        version = out._version
        assert norm.weft(*call, out=out) is out
        assert out._version > version, "autograd would not notice that out changed"
        assert torch.equal(out, norm.weft(*call))
        assert torch.equal(storage[outside], before), "wrote outside of out"


@pytest.mark.parametrize("layout", WRITABLE)
@each_norm
def test_in_place(backend: Backend, norm: Norm, layout: str) -> None:
    """out may be x itself."""
    for shape in ((6, 65), (2, 3, 4100), (2, 20001)):
        x = draw(shape, torch.bfloat16, backend.device, layout)
        weight, bias = parameters(shape[-1:], torch.bfloat16, backend.device)
        call = (shape[-1:], weight, bias, EPS)
        expected = norm.weft(x.clone(), *call)
        norm.weft(x, *call, out=x)
        assert torch.equal(x, expected)


@each_norm
def test_empty_out(backend: Backend, norm: Norm) -> None:
    out = torch.empty(0, 8, device=backend.device)
    assert norm.weft(torch.empty(0, 8, device=backend.device), (8,), out=out) is out


# ---------------------------------------------------------------------------------- extreme values


@pytest.mark.parametrize("width", [33, 1024, 20001])
@pytest.mark.parametrize("mean", [1e2, 1e4, -1e6])
@each_norm
def test_large_mean_small_variance(backend: Backend, norm: Norm, mean: float, width: int) -> None:
    """E[x^2] - E[x]^2 would lose everything here."""
    check(norm, draw((3, width), torch.float32, backend.device, mean=mean))


@pytest.mark.parametrize("where", [0, 1, 17, -1])
@pytest.mark.parametrize("outlier", [30.0, -1e3, 1e4, 1e6])
@each_norm
def test_outliers(backend: Backend, norm: Norm, outlier: float, where: int) -> None:
    """One large number, be it the one that a shifted sum would start from."""
    for width in (33, 1000, 20001):
        x = draw((3, width), torch.float32, backend.device)
        x[:, where] = outlier
        check(norm, x)


@pytest.mark.parametrize("dtype", HALVES, ids=cases.name)
@each_norm
def test_large_mean_in_half_precision(backend: Backend, norm: Norm, dtype: torch.dtype) -> None:
    check(norm, draw((3, 1000), dtype, backend.device, mean=1e3, scale=30))


@each_norm
def test_largest_half_values(backend: Backend, norm: Norm) -> None:
    """float16 up to 65504, whose squares need a float, and bfloat16 beyond any float16."""
    x = torch.tensor([65504.0, -65504, 60000, 1, 0, -1, 30000], device=backend.device).repeat(2, 30)
    assert check(norm, x.half()).isfinite().all()
    assert check(norm, (x * 1e10).bfloat16()).isfinite().all()


@pytest.mark.parametrize("value", [1e30, 3e38, 1e-30, 1e-40, 1e-45])
@each_norm
def test_squares_beyond_float32(backend: Backend, norm: Norm, value: float) -> None:
    """Where float32 over- or underflows, weft is no worse than torch. The truth is finite."""
    x = draw((3, 40), torch.float32, backend.device) * value
    call = (x, x.shape[-1:], None, None, EPS)
    y, truth, plain = norm.weft(*call), exact(norm.truth, *call), norm.plain(*call)
    if plain.isfinite().all():
        assert_no_worse_than_torch(y, truth, plain)
    else:  # NaN like torch, or better
        assert (y.isnan().cpu() | ((y.cpu() - truth).abs() < 1e-5)).all()


@each_dtype
@each_norm
def test_denormals(backend: Backend, norm: Norm, dtype: torch.dtype) -> None:
    """Denormal inputs count: with eps = 0 they normalise like any other number."""
    x = draw((3, 40), torch.float32, backend.device, scale=3.0).round()
    tiny = torch.finfo(dtype).smallest_normal
    x = (x.double() * tiny / 64).to(dtype)
    check(norm, x, eps=1e-300 if dtype == torch.float64 else 1e-12)
    if dtype == torch.float16:  # denormal in float16 alone
        check(norm, x, eps=0.0)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@each_dtype
@each_norm
def test_nonfinite_rows_stay_alone(
    backend: Backend, norm: Norm, dtype: torch.dtype, value: float
) -> None:
    """As torch has them in their row, and other rows bit for bit as without them."""
    for width in (7, 64, 1025, 20001):
        x = draw((4, width), dtype, backend.device)
        weight, bias = parameters((width,), dtype, backend.device)
        call = (x.shape[-1:], weight, bias, EPS)
        clean = norm.weft(x, *call)
        x[1, width // 2] = value
        x[3, -1] = value
        y = check(norm, x, weight=weight, bias=bias)
        assert torch.equal(y[::2], clean[::2])
        assert y[1].isnan().any()


@each_norm
def test_nonfinite_parameters_stay_in_their_column(backend: Backend, norm: Norm) -> None:
    x = draw((4, 65), torch.float32, backend.device)
    weight, bias = parameters((65,), torch.float32, backend.device)
    clean = norm.weft(x, (65,), weight, bias, EPS)
    weight[3], bias[64] = float("nan"), float("inf")
    y = check(norm, x, None, weight, bias)
    assert torch.equal(y[:, 4:64], clean[:, 4:64])


@pytest.mark.parametrize("value", [0.0, 1.0, -3.3, 12345.678, 0.1])
@each_dtype
@each_norm
def test_constant_rows(backend: Backend, norm: Norm, dtype: torch.dtype, value: float) -> None:
    """Zero variance: LayerNorm gives exactly the bias, RMSNorm the sign."""
    for width in (129, 4097, 20001):
        x = torch.full((3, width), value, device=backend.device).to(dtype)
        weight, bias = parameters((width,), dtype, backend.device)
        y = check(norm, x, None, weight, bias, independent=False)
        if norm is LAYER:
            assert torch.equal(y, bias.expand_as(y))


# ------------------------------------------------------------------------------- 64-bit addressing


@pytest.mark.slow
@each_norm
def test_more_than_2_31_elements(backend: Backend, norm: Norm) -> None:
    """Rows on both sides of element 2^31; in place, as one tensor has 4.3 GB."""
    rows, width = 65537, 32769
    pattern = draw((width,), torch.bfloat16, backend.device)
    x = torch.empty(rows, width, dtype=torch.bfloat16, device=backend.device)
    for shift in range(7):
        x[shift::7] = pattern.roll(shift)
    norm.weft(x, (width,), None, None, EPS, out=x)
    for n in (0, 1, rows // 2, 2**31 // width - 1, 2**31 // width, rows - 1):
        truth = exact(norm.truth, pattern.roll(n % 7), (width,), None, None, EPS)
        assert_rounded_once(x[n], truth, f"row {n}")


@pytest.mark.slow
@each_norm
def test_a_row_of_more_than_2_31_elements(backend: Backend, norm: Norm) -> None:
    """A repeated pattern, so that the row has the pattern's mean and variance."""
    pattern = draw((1025,), torch.bfloat16, backend.device, mean=0.5)
    x = pattern.repeat(2**31 // 1025 + 2)
    norm.weft(x, x.shape, None, None, EPS, out=x)
    blocks = x.view(-1, 1025)
    truth = exact(norm.truth, pattern, (1025,), None, None, EPS)
    for n in (0, len(blocks) // 2, len(blocks) - 1):
        assert_rounded_once(blocks[n], truth, f"block {n}")
