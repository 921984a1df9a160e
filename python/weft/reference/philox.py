"""Philox4x32-10, the counter-based generator behind dropout, in int64 tensor arithmetic.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011.

A counter of four 32-bit words and a key of two go in, four random words come out. Nothing is
remembered between calls, so that any kernel on any device, forward or backward, can draw the word
of any element.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and sqrt(3) - 1, as fractions of 2^32
ROUNDS = 10
STREAM = 2**40  # counters that separate one stream of a call from the next


def multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product, by 16-bit halves of `a`, as int64 would overflow."""
    upper, lower = (a >> 16) * b, (a & 0xFFFF) * b
    return (upper + (lower >> 16)) >> 16, ((upper << 16) + lower) & WORD


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Ten rounds: counters [..., 4] and keys [..., 2] to words [..., 4], int64 in [0, 2^32)."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(ROUNDS):
        high0, low0 = multiply(MULTIPLIERS[0], c0)
        high1, low1 = multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return torch.stack((c0, c1, c2, c3), dim=-1)


def words(elements: Tensor, rng_state: Tensor, stream: int = 0) -> Tensor:
    """The random words of `elements`, int64 indices of any shape.

    Element e takes word e % 4 of the block whose key is the seed and whose counter is
    (e / 4 + stream * 2^40, offset), each 64 bits, low word first. `rng_state` is (seed, offset).
    """
    seed, offset = rng_state.unbind(-1)
    block = elements // 4 + stream * STREAM
    key = torch.stack((seed & WORD, (seed >> 32) & WORD))
    counter = torch.stack(
        [w.expand(block.shape) & WORD for w in (block, block >> 32, offset, offset >> 32)], dim=-1
    )
    return philox4x32(counter, key).gather(-1, (elements % 4).unsqueeze(-1)).squeeze(-1)


def dropout_mask(rng_state: Tensor, shape: tuple[int, ...], p: float, stream: int = 0) -> Tensor:
    """Which elements of a tensor of `shape`, counted row by row, dropout keeps: bool."""
    elements = torch.arange(torch.Size(shape).numel())
    return (words(elements, rng_state, stream).double() >= p * 2.0**32).view(shape)
