"""Which linear layers are measured, at which shapes, what they compute and move, and what is
expected. Shapes are [M rows, K input features, N output features]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

import weft
from bench.case import Case, Inputs, Roof, Traffic
from bench.goals import FasterThan, Goal, ShareOfCopy, ShareOfLimit
from bench.peers import EAGER
from weft import _C

Recipe = Literal["w8a8", "w8a16", "w4a16"]
"""w8a8    x quantised by row, products in int8, scaled, in x's dtype
w8a16   the weight alone in int8
w4a16   the weight alone in int4, a scale for each group of 128
"""

INT_MM = "torch._int_mm"
"""Quantised and scaled by torch's own operators around it."""
PER_TENSOR = "oneDNN, per tensor"
W8A16 = "weft's W8A16"
"""The yardstick of 4 bits: the same product from 8."""
GROUP = 128


@dataclass(frozen=True, kw_only=True)
class Int8Case(Case):
    recipe: Recipe

    @property
    def bits(self) -> int:
        return 4 if self.recipe == "w4a16" else 8

    @property
    def roof(self) -> Roof | None:
        """A weight that is out of cache is read; beyond some rows the multiplications count. What a
        GPU multiplies is set beside its product of bfloat16."""
        if self.device == "cuda":
            return "copy" if self.cold else None
        if self.shape[0] <= 4:
            return "read" if self.cold else None
        return "int8" if _C.isa_level() == "avx512_bf16" else None

    @property
    def flops(self) -> int:
        M, K, N = self.shape
        return 2 * M * K * N

    @property
    def traffic(self) -> Traffic:
        """x, the weight and its scales read, y written."""
        M, K, N = self.shape
        scales = N * (K // GROUP if self.recipe == "w4a16" else 1)
        weight = N * K * self.bits // 8 + 4 * scales
        return Traffic(weight + M * K * self.dtype.itemsize, M * N * self.dtype.itemsize)


def _case(recipe: Recipe, shape: tuple[int, int, int], *goals: Goal, cold: bool) -> Int8Case:
    return Int8Case(
        op=recipe, recipe=recipe, shape=shape, dtype=torch.bfloat16, goals=goals, cold=cold
    )


def cases(device: str) -> list[Int8Case]:
    """Those with goals."""
    if device == "cuda":
        return [replace(case, device=device) for case in _gpu()]
    large = (ShareOfLimit(0.88), FasterThan(2.0, EAGER))
    return [
        _case("w8a8", (1024, 4096, 4096), *large, cold=False),
        _case("w8a8", (1024, 4096, 11008), *large, cold=False),
        _case("w8a8", (128, 4096, 4096), FasterThan(1.05, PER_TENSOR), cold=False),
        _case("w8a8", (16, 4096, 4096), FasterThan(1.2, PER_TENSOR), cold=False),
        _case("w8a8", (1, 4096, 11008), ShareOfLimit(0.95), cold=True),
        _case("w8a16", (1, 4096, 11008), ShareOfLimit(0.95), cold=True),
        _case("w4a16", (1, 4096, 11008), FasterThan(1.8, W8A16), cold=True),
        _case("w8a16", (128, 4096, 4096), cold=False),
        _case("w4a16", (128, 4096, 4096), cold=False),
    ]


def _gpu() -> list[Int8Case]:
    large = (FasterThan(1.7, EAGER), FasterThan(1.1, INT_MM))
    return [
        _case("w8a8", (8192, 8192, 8192), *large, cold=False),
        _case("w8a8", (1024, 8192, 21760), *large, cold=False),
        *(_case("w8a8", (M, 8192, 21760), ShareOfCopy(0.85), cold=True) for M in (1, 16, 64)),
        _case("w8a16", (1, 8192, 21760), ShareOfCopy(0.85), cold=True),
        _case("w4a16", (1, 8192, 21760), ShareOfCopy(0.85), cold=True),
    ]


def sweep(device: str) -> list[Int8Case]:
    """Rows from 1 to 1024, on a GPU by a larger weight and to 8192."""
    recipes: tuple[Recipe, ...] = ("w8a8", "w8a16")
    powers, weight = (14, (8192, 8192)) if device == "cuda" else (11, (4096, 4096))
    found = [
        _case(recipe, (1 << n, *weight), cold=False) for recipe in recipes for n in range(powers)
    ]
    return [replace(case, device=device) for case in found]


def shrink(case: Int8Case) -> Int8Case:
    """At most 5 rows, 256 by 96: shows that everything runs."""
    return replace(case, shape=(min(case.shape[0], 5), 256, 96), goals=())


def inputs(case: Int8Case, seed: int) -> Inputs:
    """One set of tensors: x, the weight's integers and scales, and what they stand for."""
    at = case.device
    generator = torch.Generator(at).manual_seed(seed)
    M, K, N = case.shape
    x = torch.randn(M, K, generator=generator, device=at).to(case.dtype)
    most = 1 << (case.bits - 1)
    values = torch.randint(1 - most, most, (N, K), generator=generator, dtype=torch.int8, device=at)
    groups = K // GROUP if case.recipe == "w4a16" else 1
    scale = torch.rand(groups, N, generator=generator, device=at).t() + 0.5  # [N, groups]
    scale = scale / (most * K**0.5)
    weight = (values.unflatten(1, (groups, -1)) * scale[..., None]).flatten(1)
    return {
        "x": x,
        "values": values,
        "scale": scale,
        "packed": weft.pack_int8_weight(values, bits=case.bits),
        "weight": weight.to(case.dtype),
    }
