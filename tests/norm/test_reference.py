"""The oracle itself: against torch's own ops, and against published vectors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from weft import reference

from .cases import name

# Random123's tests/kat_vectors, philox4x32 with 10 rounds: counter, key, words.
KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


@pytest.mark.parametrize("vector", KNOWN_ANSWERS.strip().splitlines())
def test_philox_known_answers(vector: str) -> None:
    numbers = torch.tensor([int(word, 16) for word in vector.split()])
    counter, key, words = numbers.split((4, 2, 4))
    assert torch.equal(reference.philox.philox4x32(counter, key), words)


def test_words_follow_the_counter() -> None:
    """Seed, offset, block and stream land in the key and counter words they are said to."""
    seed, offset = 0x1111_2222_3333_4444, 0x5555_6666_7777_0888
    element, stream = 4 * (2**33 + 9) + 2, 1
    counter = torch.tensor([9, 2 + 2**8, 0x7777_0888, 0x5555_6666])
    key = torch.tensor([0x3333_4444, 0x1111_2222])
    word = reference.philox.philox4x32(counter, key)[2]
    rng_state = torch.tensor([seed, offset])
    assert reference.philox.words(torch.tensor([element]), rng_state, stream).item() == word


def test_negative_seeds_are_their_64_bits() -> None:
    elements = torch.arange(8)
    words = reference.philox.words(elements, torch.tensor([-1, -1]))
    ones = torch.tensor([0xFFFFFFFF] * 2)
    block = torch.tensor([0, 0, 0xFFFFFFFF, 0xFFFFFFFF])
    assert torch.equal(words[:4], reference.philox.philox4x32(block, ones))


SHAPES = [((4, 9), 1), ((2, 3, 5), 1), ((2, 3, 5), 2), ((2, 3, 5), 3), ((0, 5), 1), ((3, 0), 1)]


@pytest.mark.parametrize("shape, ndim", SHAPES, ids=name)
@pytest.mark.parametrize("affine", [True, False])
def test_norms_are_torchs(shape: tuple[int, ...], ndim: int, affine: bool) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    normalized = shape[-ndim:]
    weight, bias = torch.randn(2, *normalized, dtype=torch.float64) if affine else (None, None)
    close = {"rtol": 1e-13, "atol": 1e-13}
    ours = reference.norm.layer_norm(x, normalized, weight, bias, 1e-3)
    torch.testing.assert_close(ours, F.layer_norm(x, normalized, weight, bias, 1e-3), **close)
    ours = reference.norm.rms_norm(x, normalized, weight, 1e-3)
    torch.testing.assert_close(ours, F.rms_norm(x, normalized, weight, 1e-3), **close)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=name)
def test_default_eps_of_rms_norm_is_torchs(dtype: torch.dtype) -> None:
    x = (torch.randn(4, 64) * 1e-4).to(dtype)  # small enough for eps to matter
    ours = reference.norm.rms_norm(x, (64,)).double()
    torch.testing.assert_close(ours, F.rms_norm(x, (64,)).double(), rtol=2e-2, atol=1e-6)


def test_fused_is_its_parts() -> None:
    """layer_norm_fn against the same sum written out with torch's own functions."""
    x, x1, residual, residual2 = torch.randn(4, 6, 10, dtype=torch.float64)
    weight, bias, weight1, bias1, x_bias, layerscale = torch.randn(6, 10, dtype=torch.float64)
    rowscale = torch.rand(6, dtype=torch.float64)
    mask, mask1 = torch.rand(2, 6, 10) < 0.5
    y, y1, z = reference.norm.layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, 1e-5, 0.5, rowscale, prenorm=True,
        x_bias=x_bias, layerscale=layerscale, residual2=residual2, residual_alpha=3.0,
        dropout_mask=mask, dropout_mask1=mask1,
    )  # fmt: skip
    u = torch.einsum("nc,n,c->nc", x + x_bias, rowscale, layerscale)
    expected = 2 * u * mask + 2 * x1 * mask1 + 3 * residual + residual2
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(y, F.layer_norm(expected, (10,), weight, bias))
    torch.testing.assert_close(y1, F.layer_norm(expected, (10,), weight1, bias1))


def test_quantized_rows_come_back() -> None:
    """Dequantised values lie within half a step; extremes are reached; rows of zeros stay zeros."""
    t = torch.randn(5, 100, dtype=torch.float64) + torch.linspace(-3, 3, 5)[:, None]
    t[2] = 0
    t[3] = 0.7  # constant
    for symmetric in (True, False):
        q, scale, point = reference.norm.quantize(t, 1, None, 0, symmetric)
        assert scale[2] == 1
        assert ((q.double() - point) * scale - t).abs().sub(scale / 2).max() <= 1e-12
        assert torch.equal((q.double() - point)[2], torch.zeros(100))
    q, scale, _ = reference.norm.quantize(t, 1, None, 0, True)
    assert torch.equal(q.abs().amax(-1), torch.tensor([127, 127, 0, 127, 127]).to(torch.int8))


def test_static_rounding_is_half_to_even_and_saturates() -> None:
    t = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9], dtype=torch.float64)
    q, _, _ = reference.norm.quantize(t, 1, torch.tensor([1.0]), 3, True)
    assert q.tolist() == [3, 5, 5, 3, 1, 127, -128]
