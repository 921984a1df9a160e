"""Matrix products of a warp, and matrices on their way to its registers, against torch."""

from __future__ import annotations

import pytest
import torch

from .kernel import run

pytestmark = pytest.mark.usefixtures("everywhere")

# By the name of the kernel: element type of A and B, that of D, K of one instruction.
MMA = {
    "mma_bf16": (torch.bfloat16, torch.float32, 16),
    "mma_f16": (torch.float16, torch.float32, 16),
    "mma_f16_f16": (torch.float16, torch.float16, 16),
    "mma_tf32": (torch.float32, torch.float32, 8),
    "mma_i8": (torch.int8, torch.int32, 32),
}
STEPS = 3  # of K, in the kernel
SIXTEEN_BITS = [name for name in MMA if MMA[name][2] == 16]


def product(name: str, integers: bool, a_transposed: bool = False, b_transposed: bool = False):
    dtype, accumulator, k = MMA[name]
    k *= STEPS
    if integers:
        low, high = (-128, 128) if dtype == torch.int8 else (-3, 4)
        a, b = (torch.randint(low, high, shape).to(dtype) for shape in ((16, k), (k, 16)))
        c = torch.randint(-9, 10, (16, 16)).to(accumulator)
    else:
        a, b = torch.randn(16, k).to(dtype), torch.randn(k, 16).to(dtype)
        c = torch.randn(16, 16).to(accumulator)
    d = torch.empty(16, 16, dtype=accumulator)
    inputs = [
        a.t().contiguous() if a_transposed else a,
        b if b_transposed else b.t().contiguous(),
        c,
    ]
    run(name, inputs, [d], numbers=[a_transposed, b_transposed])
    if dtype == torch.float32:  # what tensor cores see of it
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    return d, c.double() + a.double() @ b.double()


@pytest.mark.parametrize("name", MMA)
def test_products_of_integers_are_exact(name: str):
    d, want = product(name, integers=True)
    assert torch.equal(d.double(), want)


@pytest.mark.parametrize("a_transposed, b_transposed", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_transposed_operands(name: str, a_transposed: bool, b_transposed: bool):
    d, want = product(name, True, a_transposed, b_transposed)
    assert torch.equal(d.double(), want)


@pytest.mark.parametrize("name", [name for name in MMA if name != "mma_i8"])
def test_products_of_floats(name: str):
    d, want = product(name, integers=False)
    tolerance = 1e-5 if d.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(d.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name, dtype", [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_a_result_as_the_next_operand(name: str, dtype: torch.dtype):
    a, b, c = (torch.randn(16, 16).to(dtype) for _ in range(3))
    e = torch.empty(16, 16)
    run(f"mma_chain_{name}", [a, b, c], [e])
    between = (a.float() @ b.float()).to(dtype)
    step = torch.finfo(dtype).eps  # elements of the first product may be rounded the other way
    torch.testing.assert_close(e, between.float() @ c.float().t(), rtol=step, atol=8 * step)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix_and_stmatrix(matrices: int, transposed: bool):
    x = torch.randint(0, 2**15, (matrices, 8, 8), dtype=torch.int16)
    words = torch.empty(matrices, 32, dtype=torch.int32)
    suffix = f"{matrices}{'_transposed' if transposed else ''}"
    run(f"ldmatrix_{suffix}", [x], [words])
    seen = x.transpose(1, 2).contiguous() if transposed else x
    assert torch.equal(words.view(torch.int16).view(matrices, 8, 8), seen)

    back = torch.empty_like(x)
    run(f"stmatrix_{suffix}", [words], [back])
    assert torch.equal(back, x)


def test_movmatrix():
    x = torch.randint(0, 2**15, (8, 8), dtype=torch.int16)
    y = torch.empty(32, dtype=torch.int32)
    run("movmatrix", [x.view(-1).view(torch.int32)], [y])
    assert torch.equal(y.view(torch.int16).view(8, 8), x.t())


def test_to_tf32():
    x = torch.randn(64) * 10.0 ** torch.randint(-30, 30, (64,))
    halfway = (x.view(torch.int32) & ~0x1FFF | 0x1000).view(torch.float32)
    x = torch.cat([x, halfway, torch.tensor([0.0, -0.0, torch.inf, -torch.inf] * 16)])
    bits = torch.empty(x.shape, dtype=torch.int32)
    run("to_tf32", [x], [bits])
    y = (bits & ~0x1FFF).view(torch.float32)
    # Halfway goes away from zero: the magnitude as an integer, rounded to a multiple of 2^13.
    magnitude = (x.view(torch.int32) & 0x7FFFFFFF) + 0x1000 & ~0x1FFF
    assert torch.equal(y.abs().view(torch.int32), magnitude)
    assert torch.equal(y.signbit(), x.signbit())
