"""Copies that go on by themselves: pipelines, clusters, boxes of tensors."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from .kernel import run

pytestmark = pytest.mark.usefixtures("everywhere")


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_copy_async(stages: int, rows: int):
    x = torch.randint(-9, 9, (rows, 256)).float()
    y = torch.empty(256)
    run(f"copy_async_{stages}", [x], [y], numbers=[3])
    x[-1, 3::4] = 0  # beyond the three valid ones of each four
    assert torch.equal(y, x.sum(0))


@pytest.mark.parametrize("kind", ["bulk", "copies"])
@pytest.mark.parametrize("rows", [1, 3, 11])
def test_ring(kind: str, rows: int):
    x = torch.randint(-9, 9, (rows, 128)).float()
    y = torch.empty(128)
    run(f"ring_{kind}", [x], [y])
    assert torch.equal(y, x.sum(0))


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("f32", torch.float32),
        ("bf16", torch.bfloat16),
        ("f16", torch.float16),
        ("i32", torch.int32),
    ],
)
def test_bulk(name: str, dtype: torch.dtype):
    x = torch.randint(-9, 9, (5, 256)).to(dtype)
    out, sums = torch.empty_like(x), torch.ones(2, 256, dtype=dtype)
    run(f"bulk_{name}", [x], [out], [sums])
    assert torch.equal(out, 2 * x)
    for half in range(2):
        assert torch.equal(sums[half], (1 + 2 * x[half::2].float().sum(0)).to(dtype))


@pytest.mark.parametrize("size", [2, 8])
def test_store_async(size: int):
    x = torch.randint(-9, 9, (3, size)).float()
    y = torch.empty(3, size)
    run("store_async", [x], [y], numbers=[size])
    assert torch.equal(y, x.sum(1, keepdim=True).expand(-1, size))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_multicast(size: int):
    x = torch.randint(-9, 9, (5, 256)).float()
    y = torch.empty(size)
    run("multicast", [x], [y], numbers=[size])
    assert torch.equal(y, x.sum().expand(size))


@pytest.mark.parametrize("size", [2, 4])
def test_tensor_multicast(size: int):
    x = torch.randn(size, 64)
    y = torch.empty(size, size, 64)
    run("tensor_multicast", [x], [y])
    assert torch.equal(y, x.expand_as(y))


def test_registers():
    out = torch.empty(384, dtype=torch.int32)
    run("registers", [], [out])
    assert torch.equal(out, torch.arange(384, dtype=torch.int32))


def test_dependent_launch():
    x = torch.randn(32)
    between, y = torch.empty(32), torch.empty(32)
    run("dependent", [x], [between, y])
    assert torch.equal(y, x + 1 + 1)


def swizzled(image: torch.Tensor, row_bytes: int) -> torch.Tensor:
    """The bytes of a dense box in 16-byte units, as a swizzle of `row_bytes` places them."""
    units = image.view(torch.uint8).view(-1, 16)
    at = torch.arange(len(units)) * 16
    place = at ^ ((at >> 7) & (row_bytes // 16 - 1)) << 4
    moved = torch.empty_like(units)
    moved[place // 16] = units
    return moved.view(-1).view(image.dtype)


def box_of(x: torch.Tensor, at: list[int], box: list[int], fill: float) -> torch.Tensor:
    """x[at : at + box], with what lies outside of x filled; dimensions as torch has them."""
    result = torch.full(box, fill, dtype=x.dtype)
    inside = [(max(a, 0), min(a + b, n)) for a, b, n in zip(at, box, x.shape, strict=True)]
    if all(low < high for low, high in inside):
        source = x[tuple(slice(low, high) for low, high in inside)]
        target = tuple(slice(low - a, high - a) for (low, high), a in zip(inside, at, strict=True))
        result[target] = source
    return result


SWIZZLES = {0: 0, 1: 32, 2: 64, 3: 128}


@pytest.mark.parametrize(
    "name, dtype, shape, box, at, back, swizzle",
    [
        ("tensor_1", torch.float32, [300], [64], [0], [4], 0),
        ("tensor_1", torch.float32, [300], [64], [260], [-4], 0),
        ("tensor_2", torch.bfloat16, [40, 128], [16, 64], [3, 32], [30, 70], 3),
        ("tensor_2", torch.bfloat16, [40, 128], [16, 32], [38, -8], [0, 0], 2),
        ("tensor_2", torch.bfloat16, [40, 128], [32, 16], [-5, 120], [9, 8], 1),
        ("tensor_2", torch.bfloat16, [40, 128], [5, 24], [0, 100], [38, 108], 0),
        ("tensor_2_add", torch.float32, [12, 64], [8, 32], [-1, 40], [6, -4], 3),
        ("tensor_3", torch.bfloat16, [3, 9, 64], [2, 8, 64], [2, 3, 0], [0, 0, 0], 3),
        ("tensor_4", torch.float32, [2, 3, 5, 8], [2, 2, 2, 8], [-1, 1, 4, 0], [0, 2, 0, 4], 1),
        ("tensor_5", torch.int32, [2, 3, 2, 5, 12], [1, 2, 2, 3, 8], [1, 2, -1, 4, 8], [0] * 5, 0),
    ],
)
def test_tensor_copies(name, dtype, shape, box, at, back, swizzle):
    x = torch.randint(-99, 99, shape).to(dtype)
    image = torch.empty(math.prod(box), dtype=dtype)
    y = torch.randint(-99, 99, shape).to(dtype)
    want_y = y.clone()
    # The kernels count the fastest dimension first.
    sizes = [list(reversed(v)) for v in (shape, box, at, back)]
    run(name, [x], [image], [y], [swizzle, 0, *itertools.chain(*sizes)])

    want = box_of(x, at, box, 0)
    dense = want.reshape(-1)
    assert torch.equal(image, swizzled(dense, SWIZZLES[swizzle]) if swizzle else dense)

    if name == "tensor_3":
        return
    for index in itertools.product(*(range(n) for n in box)):
        target = tuple(b + i for b, i in zip(back, index, strict=True))
        if all(0 <= t < n for t, n in zip(target, shape, strict=True)):
            add = name in ("tensor_2_add", "tensor_5")
            want_y[target] = want[index] + (want_y[target] if add else 0)
    assert torch.equal(y, want_y)


def test_nan_fill():
    x = torch.randn(8, 64).bfloat16()
    image = torch.empty(4 * 64, dtype=torch.bfloat16)
    run("tensor_2", [x], [image], [x.clone()], [3, 1, 64, 8, 64, 4, 0, 6, 0, 0])
    assert image.isnan().sum() == 2 * 64


@pytest.mark.parametrize(
    "shape, box, swizzle, message",
    [
        ([8, 60], [4, 32], 0, "stride of 120 bytes in dimension 1"),
        ([8, 64], [4, 12], 0, "rows of 24 bytes"),
        ([8, 64], [4, 32], 3, "rows of 64 bytes in the box, expected 128"),
        ([600, 64], [300, 64], 0, "box of 300 in dimension 1"),
    ],
)
def test_descriptions_that_are_refused(shape, box, swizzle, message):
    x = torch.randn(shape).bfloat16()
    image = torch.empty(math.prod(box), dtype=torch.bfloat16)
    numbers = [swizzle, 0, *shape[::-1], *box[::-1], 0, 0, 0, 0]
    with pytest.raises(RuntimeError, match=message):
        run("tensor_2", [x], [image], [x.clone()], numbers)
