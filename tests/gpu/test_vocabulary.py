"""The words of csrc/gpu, one by one: what kernels say, against what torch says."""

from __future__ import annotations

import pytest
import torch

from .kernel import run

pytestmark = pytest.mark.usefixtures("everywhere")


def test_row_sum():
    x = torch.randn(37, 1028)
    y = torch.empty(37)
    run("row_sum", [x], [y])
    torch.testing.assert_close(y, x.sum(1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("warps", [1, 3])
def test_warp_words(warps: int):
    n = 32 * warps
    x = torch.randint(-1000, 1000, (n,), dtype=torch.int32)
    out = torch.empty(14, n, dtype=torch.int32)
    run("warp_words", [x], [out])

    lane = torch.arange(32)
    v = x.view(warps, 32).long()

    def group(source: torch.Tensor, width: int) -> torch.Tensor:
        """The lane to read from: the own one where the source is outside of the group."""
        return torch.where(source // width == lane // width, source, lane)

    expected = [
        v[:, [5] * 32],
        v[:, lane // 8 * 8 + 3],
        v[:, lane ^ 9],
        v[:, lane ^ 1],
        v[:, group(lane + 3, 32)],
        v[:, group(lane + 9, 16)],
        v[:, group(lane - 2, 32)],
        v[:, group(lane - 5, 8)],
        ((v > 0).long() << lane).sum(1, keepdim=True).expand(-1, 32),
        (v > 900).any(1, keepdim=True).long().expand(-1, 32),
        (v > -900).all(1, keepdim=True).long().expand(-1, 32),
        v.sum(1, keepdim=True).expand(-1, 32),
        v.view(warps, 4, 8).amax(2).repeat_interleave(8, 1),
        v.view(warps, 8, 4).amin(2).repeat_interleave(4, 1),
    ]
    for row, want in zip(out, expected, strict=True):
        assert torch.equal(row, want.reshape(-1).to(torch.int32))


def test_warp_wide():
    x = torch.randn(64, dtype=torch.float64)
    out = torch.empty(3, 64, dtype=torch.float64)
    run("warp_wide", [x], [out])
    v = x.view(2, 32)
    torch.testing.assert_close(out[0], v.sum(1).repeat_interleave(32))
    assert torch.equal(out[1], v[:, torch.arange(32) ^ 16].reshape(-1))
    bits = ((v > 0).long() << torch.arange(32)).view(2, 2, 16).sum(2)
    assert torch.equal(out[2], bits.reshape(-1).repeat_interleave(16).double())


def test_elect():
    out = torch.empty(3, dtype=torch.int32)
    run("elect", [], [out])
    assert out.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "dtype, name, sizes",
    [
        (torch.uint8, "u8", [1]),
        (torch.int8, "i8", [16]),
        (torch.bfloat16, "bf16", [1, 2, 8, 16]),
        (torch.float32, "f32", [1, 4, 8]),
        (torch.float64, "f64", [1, 2]),
    ],
)
def test_copies(dtype: torch.dtype, name: str, sizes: list[int]):
    x = (torch.randn(1, 4160) * 50).to(dtype)
    for size in sizes:
        y = torch.empty_like(x)
        run(f"copy_{name}_{size}", [x], [y])
        assert torch.equal(x, y)


SPECIAL = [0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 1e30, 6e-8, 2.98e-8, 3e-8, 6.1e-5, 6.0e-5]
SPECIAL += [float("inf"), float("-inf"), 3.3895e38, 3.4e38, 1e-40, 1.00390625, 1.01171875]


@pytest.mark.parametrize("dtype, name", [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_conversions(dtype: torch.dtype, name: str):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    y = torch.empty(every.shape)
    run(f"f32_from_{name}", [every], [y])
    assert torch.equal(y.view(torch.int32)[y == y], every.float().view(torch.int32)[y == y])
    assert torch.equal(y.isnan(), every.isnan())

    x = torch.cat(
        [torch.tensor(SPECIAL), torch.randn(2001) * 10.0 ** torch.randint(-12, 12, (2001,))]
    )
    x = torch.cat([x, (every.float() * (1 + 2.0**-11))])  # halfway between some
    back = torch.empty(x.shape, dtype=dtype)
    run(f"{name}_from_f32", [x], [back])
    want = x.to(dtype)
    assert torch.equal(back.isnan(), want.isnan())
    assert torch.equal(back.view(torch.int16)[~want.isnan()], want.view(torch.int16)[~want.isnan()])


def test_math():
    x = torch.cat([torch.randn(500).abs() * 20, torch.tensor([0.5, 1.5, 2.5, 126.5, 127.5, 300.0])])
    out = torch.empty(9, x.numel())
    run("math", [x], [out])
    d = x.double()
    want = [d.exp2(), d.log2(), d.rsqrt(), 1 / d, d.tanh(), d.rsqrt(), d * d - 1, d.clamp(min=1)]
    for row, expected in zip(out, want, strict=False):
        torch.testing.assert_close(row, expected.float(), rtol=6e-4, atol=1e-6)
    assert torch.equal(out[8], x.round().clamp(-128, 127))


def test_philox():
    """Known answers of the Random123 distribution: zero, and all bits set."""
    out = torch.empty(64, 4, dtype=torch.int32)
    run("philox", [], [out], numbers=[0, 0])
    assert [w & 0xFFFFFFFF for w in out[0].tolist()] == [
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    ]


def test_named_barriers():
    x = torch.randn(20 * 32)
    y = torch.empty_like(x)
    run("hand_over", [x], [y])
    assert torch.equal(y.view(20, 32), 2 * x.view(20, 32).flip(1))


@pytest.mark.parametrize("low", [0, -1])
def test_block_votes(low: int):
    x = torch.randint(0, 10, (256,), dtype=torch.int32)
    out = torch.empty(12, dtype=torch.int32)
    run("block_votes", [x], [out])
    assert out[:2].tolist() == [1, 1]
    assert torch.equal(out[2:].long(), torch.bincount(x, minlength=10))


@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_clusters(size: int):
    x = torch.randn(3, 1000)
    y = torch.empty(3 * size)
    run("cluster_sum", [x], [y], numbers=[size])
    y = y.view(3, size)
    torch.testing.assert_close(y[:, 0], x.sum(1), rtol=1e-5, atol=1e-4)
    assert (y == y[:, :1]).all()

    x = torch.randn(2, size, 128)
    y = torch.empty_like(x)
    run("cluster_shift", [x], [y], numbers=[size])
    assert torch.equal(y, x.roll(-1, 1))


def test_last_block():
    x = torch.randn(50, 32)
    parts, y = torch.empty(50), torch.empty(1)
    run("last_block", [x], [parts, y], [torch.zeros(1, dtype=torch.int32)])
    torch.testing.assert_close(y[0], x.sum(), rtol=1e-5, atol=1e-4)


def test_blocks_that_wait_for_each_other():
    x = torch.randn(24)
    between, y = torch.empty(24), torch.empty(24)
    run("grid_barrier", [x], [between, y], [torch.zeros(1, dtype=torch.int32)])
    assert torch.equal(y, x.roll(-1))


def test_atomics():
    x = torch.randperm(640).to(torch.int32) - 300
    words = torch.tensor([0, -(2**31), 2**31 - 1, 0, 7], dtype=torch.int32)
    sums = torch.ones(640)
    run("atomics", [x], [], [words, sums])
    assert words[:3].tolist() == [int(x.sum()), int(x.max()), int(x.min())]
    assert words[3] in x and words[4] in x
    assert torch.equal(sums, x + 1.5)
