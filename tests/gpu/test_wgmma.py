"""Matrix products of a warpgroup against torch: types, widths, directions and swizzles of tiles."""

from __future__ import annotations

import pytest
import torch

from .kernel import run

pytestmark = pytest.mark.usefixtures("everywhere")

BF16, F16, I8 = torch.bfloat16, torch.float16, torch.int8
WIDTHS = {
    "wgmma_bf16": range(8, 257, 8),
    "wgmma_f16": range(8, 257, 8),
    "wgmma_i8": [8, 16, 24, 32, *range(48, 257, 16)],
}
REGISTERS = {
    "wgmma_bf16_registers": [8, 64, 136, 256],
    "wgmma_f16_registers": [16, 128],
    "wgmma_i8_registers": [24, 128],
}


def dtype_of(name: str) -> torch.dtype:
    return I8 if "i8" in name else F16 if "_f16" in name or "minus_reg" in name else BF16


def product(
    name: str,
    n: int,
    majors: str = "kk",
    integers: bool = True,
    by_threads: bool = False,
    with_c: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the kernel gives, the product, and C."""
    dtype = dtype_of(name)
    k = 256 // dtype.itemsize
    accumulator = torch.int32 if dtype == I8 else torch.float32
    shapes = ((64, k), (k, n))
    if integers:
        low, high = (-128, 128) if dtype == I8 else (-4, 5)
        a, b = (torch.randint(low, high, shape).to(dtype) for shape in shapes)
        c = torch.randint(-99, 99, (64, n)).to(accumulator)
    else:
        a, b = (torch.randn(shape).to(dtype) for shape in shapes)
        c = torch.randn(64, n)
    d = torch.empty(64, n, dtype=accumulator)
    inputs = [
        a if majors[0] == "k" else a.t().contiguous(),
        b.t().contiguous() if majors[1] == "k" else b,
        c,
    ]
    run(name, inputs, [d], numbers=[n, by_threads, with_c])
    return d.double(), a.double() @ b.double(), c.double()


@pytest.mark.parametrize("name, n", [(name, n) for name in WIDTHS for n in WIDTHS[name]])
def test_every_width(name: str, n: int):
    d, product_ab, c = product(name, n, with_c=True)
    assert torch.equal(d, c + product_ab)


@pytest.mark.parametrize("name, n", [(name, n) for name in REGISTERS for n in REGISTERS[name]])
def test_a_in_registers(name: str, n: int):
    d, want, _ = product(name, n)
    assert torch.equal(d, want)


@pytest.mark.parametrize("by_threads", [False, True], ids=["boxes", "threads"])
@pytest.mark.parametrize("n", [64, 128])
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("majors", ["kk", "km", "mk", "mm"])
def test_directions_and_swizzles(majors: str, swizzle: int, n: int, by_threads: bool):
    d, want, _ = product(f"wgmma_{majors}_{swizzle}", n, majors, by_threads=by_threads)
    assert torch.equal(d, want)


@pytest.mark.parametrize("by_threads", [False, True], ids=["boxes", "threads"])
@pytest.mark.parametrize("swizzle", [0, 32, 64])
def test_swizzles_of_int8(swizzle: int, by_threads: bool):
    d, want, _ = product(f"wgmma_i8_{swizzle}", 64, by_threads=by_threads)
    assert torch.equal(d, want)


@pytest.mark.parametrize("name, majors", [("wgmma_minus", "kk"), ("wgmma_minus_registers", "km")])
def test_negated_products(name: str, majors: str):
    d, product_ab, c = product(name, 64, majors, with_c=True)
    assert torch.equal(d, c - product_ab)


@pytest.mark.parametrize("name", ["wgmma_bf16", "wgmma_f16"])
def test_products_of_floats(name: str):
    d, product_ab, c = product(name, 96, integers=False, with_c=True)
    torch.testing.assert_close(d, c + product_ab, rtol=1e-5, atol=2e-5)


def test_a_result_as_the_next_operand():
    a, b, c = (torch.randint(-2, 3, (64, 64)).to(BF16) for _ in range(3))
    e = torch.empty(64, 64)
    run("wgmma_chain", [a, b.t().contiguous(), c], [e])
    between = (a.float() @ b.float()).to(BF16)
    assert torch.equal(e, between.float() @ c.float())


@pytest.mark.parametrize("m, n, k", [(128, 128, 64), (128, 256, 448), (256, 128, 192)])
def test_a_whole_kernel(m: int, n: int, k: int):
    a, b = (torch.randint(-3, 4, shape).to(BF16) for shape in ((m, k), (n, k)))
    d = torch.empty(m, n)
    run("wgmma_gemm", [a, b], [d], numbers=[m, n, k])
    assert torch.equal(d, a.float() @ b.float().t())
