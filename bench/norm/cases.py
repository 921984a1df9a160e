"""Which norms are measured, at which shapes, what they move, and what is expected of them.

Shapes are [N rows, C channels]; a third leading dimension, where there is one, counts as rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from bench.case import Case, Inputs, Output, Traffic
from bench.goals import AtMost, AtMostTimes, FasterThanBestPeer, Goal, ShareOfCopy
from bench.peers import ATEN_OP, EAGER

Norm = Literal["layer_norm", "rms_norm"]
Recipe = Literal["norm", "add", "post", "int8", "add_int8", "train", "backward"]
"""norm   y = norm(x)
add    r = x + residual, y = norm(r); gives y and r (pre-norm blocks)
post   y = norm(x + residual) (post-norm blocks: BERT)
int8   q, scale = norm(x), quantised symmetrically per row with scale = absmax / 127
add_int8   r = x + residual, then q, scale from r; gives q, scale and r
train  y = norm(x), then dx and the gradients of the parameters from dy
backward   the gradients alone, of a y that is there
"""

EPS = 1e-5
fp32, bf16, fp16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True, kw_only=True)
class NormCase(Case):
    norm: Norm
    recipe: Recipe

    @property
    def trains(self) -> bool:
        return self.recipe in ("train", "backward")

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def channels(self) -> int:
        return self.shape[-1]

    @property
    def parameters(self) -> int:
        """LayerNorm has a weight and a bias, RMSNorm a weight."""
        return self.channels * (2 if self.norm == "layer_norm" else 1)

    @property
    def traffic(self) -> Traffic:
        """Whole tensors of N·C elements read and written, then the small ones.

        ``train`` counts both passes: forward reads x and writes y; backward cannot find x in cache
        again, so it reads x and dy and writes dx.
        """
        size = self.dtype.itemsize
        tensor = self.rows * self.channels * size
        parameters = self.parameters * size
        read, write = {
            "norm": (1, 1), "add": (2, 2), "post": (2, 1), "int8": (1, 0), "add_int8": (2, 1),
            "train": (3, 2), "backward": (2, 1),
        }[self.recipe]  # fmt: skip
        read, write = read * tensor, write * tensor
        if self.recipe in ("int8", "add_int8"):
            write += self.rows * self.channels + 4 * self.rows  # values and scales
        if self.recipe == "train":
            return Traffic(read + 2 * parameters, write + parameters)
        if self.recipe == "backward":
            return Traffic(read + parameters, write + parameters)
        return Traffic(read + parameters, write)

    @property
    def flops(self) -> int:
        """Additions and multiplications per element, as the textbook formulas have them: LayerNorm
        8 (mean 1, variance 3, normalise 2, affine 2), RMSNorm 4; their backward 13 and 9."""
        layer = self.norm == "layer_norm"
        forward, backward = (8, 13) if layer else (4, 9)
        each = {
            "norm": forward, "add": forward + 1, "post": forward + 1, "int8": forward + 3,
            "add_int8": forward + 4, "train": forward + backward, "backward": backward,
        }[self.recipe]  # fmt: skip
        return each * self.rows * self.channels


def _case(
    norm: Norm, recipe: Recipe, shape: tuple[int, ...], dtype: torch.dtype,
    output: Output = "fresh", *goals: Goal, cold: bool = True,
) -> NormCase:  # fmt: skip
    if output == "inplace":
        op = f"fused_add_{norm}"
    else:
        op = {
            "norm": norm, "add": f"add_{norm}", "post": f"post_{norm}",
            "int8": f"{norm}_int8", "add_int8": f"add_{norm}_int8", "train": f"{norm}_train",
            "backward": f"{norm}_backward",
        }[recipe]  # fmt: skip
    return NormCase(
        op=op, norm=norm, recipe=recipe, shape=shape, dtype=dtype, output=output,
        goals=goals, cold=cold,
    )  # fmt: skip


def cases(device: str) -> list[NormCase]:
    """Large activations with goals first, then decode sizes, then other types and widths."""
    if device == "cuda":
        return [replace(case, device=device) for case in (*_gpu(), *_decode())]
    return [*_large(), *_decode(), *_types(), *_widths(), *_bert()]


GPU_ELEMENTS = 1 << 27
"""A tensor of 256 MiB in bf16, five times the L2 cache of an H100."""


def _gpu() -> list[NormCase]:
    """Widths from 1024 to 262144 of as many elements, held against copy bandwidth."""
    found: list[NormCase] = []
    for norm in ("layer_norm", "rms_norm"):
        for width in (1 << n for n in range(10, 19)):
            shape = GPU_ELEMENTS // width, width
            goals = [ShareOfCopy(0.92 if width >= 4096 else 0.8)] if width <= 131072 else []
            found.append(_case(norm, "norm", shape, bf16, "out", *goals))
            if width <= 65536:
                found.append(_case(norm, "backward", shape, bf16, "fresh", ShareOfCopy(0.85)))
        shape = GPU_ELEMENTS // 4096, 4096
        found += [
            _case(norm, "norm", shape, fp32, "out", ShareOfCopy(0.92)),
            _case(norm, "norm", shape, fp16, "out", ShareOfCopy(0.92)),
            _case(norm, "add", shape, bf16, "out", ShareOfCopy(0.92)),
            _case(norm, "add_int8", shape, bf16, "fresh", ShareOfCopy(0.9)),
        ]
    return found


def _large() -> list[NormCase]:
    big = (4096, 4096)
    found: list[NormCase] = []
    for norm in ("layer_norm", "rms_norm"):
        found += [
            _case(norm, "norm", big, bf16, "fresh",
                  AtMost(3e-3, "fresh"), FasterThanBestPeer(4, "fresh")),
            _case(norm, "norm", big, bf16, "out", ShareOfCopy(0.85)),
            _case(norm, "add", big, bf16, "fresh", AtMost(5e-3, "fresh")),
            _case(norm, "add", big, bf16, "out", AtMost(2.7e-3)),
            _case(norm, "int8", big, bf16, "fresh", AtMost(2.5e-3, "fresh")),
            _case(norm, "int8", big, bf16, "out", AtMost(1.1e-3)),
            _case(norm, "train", big, bf16, "fresh",
                  AtMost(10e-3, "fresh"), AtMost(4e-3, "reused")),
        ]  # fmt: skip
    found.append(_case("rms_norm", "add", big, bf16, "inplace"))
    return found


def _decode() -> list[NormCase]:
    """What a decoder calls between two matrix products: microseconds, all overhead included."""
    found: list[NormCase] = []
    for norm in ("layer_norm", "rms_norm"):
        found += [
            _case(norm, "norm", (32, 4096), bf16, "fresh", AtMost(10e-6), cold=False),
            _case(norm, "norm", (1, 4096), bf16, cold=False),
            _case(norm, "norm", (1, 64), fp32, "fresh",
                  AtMostTimes(1.5, ATEN_OP), AtMostTimes(1.5, EAGER), cold=False),
            _case(norm, "int8", (32, 4096), bf16, cold=False),
        ]  # fmt: skip
    found.append(_case("rms_norm", "add", (32, 4096), bf16, "inplace", cold=False))
    return found


def _types() -> list[NormCase]:
    big = (4096, 4096)
    found = [
        _case(norm, "norm", big, dtype, output)
        for norm in ("layer_norm", "rms_norm")
        for dtype in (fp32, fp16)
        for output in ("fresh", "out")
    ]
    found += [_case(norm, "add", big, fp32, "out") for norm in ("layer_norm", "rms_norm")]
    return found


def _widths() -> list[NormCase]:
    return [
        _case(norm, "norm", shape, bf16, "out")
        for norm in ("layer_norm", "rms_norm")
        for shape in ((16384, 768), (16384, 1024), (2048, 8192))
    ]


def _bert() -> list[NormCase]:
    return [_case("layer_norm", "post", (8, 128, 384), t, cold=False) for t in (fp32, bf16)]


def sweep(device: str) -> list[NormCase]:
    return []


def shrink(case: NormCase) -> NormCase:
    """At most 64 rows of 128 channels: shows that everything runs."""
    rows = tuple(min(n, 64) for n in case.shape[:-1])
    return replace(case, shape=(*rows, min(case.channels, 128)), goals=())


def inputs(case: NormCase, seed: int) -> Inputs:
    """One set of tensors: what the recipe reads, and what it writes where that is the caller's."""
    generator = torch.Generator(case.device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=case.device).to(case.dtype)

    def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=case.device)

    c = case.channels
    tensors = {"x": normal(*case.shape), "weight": 1 + 0.1 * normal(c)}
    if case.norm == "layer_norm":
        tensors["bias"] = 0.1 * normal(c)
    if case.recipe in ("add", "post", "add_int8"):
        tensors["residual"] = normal(*case.shape)
    if case.trains:
        tensors["dy"] = normal(*case.shape)
        for name in ("x", "weight", "bias"):
            if name in tensors:
                tensors[name].requires_grad_()
    if case.output == "out":
        values = torch.int8 if case.recipe == "int8" else case.dtype
        tensors["out"] = zeros(*case.shape, dtype=values)
        if case.recipe == "add":
            tensors["residual_out"] = zeros(*case.shape, dtype=case.dtype)
        if case.recipe == "int8":
            tensors["scale_out"] = zeros(*case.shape[:-1], 1, dtype=torch.float32)
    return tensors
