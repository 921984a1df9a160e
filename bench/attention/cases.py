"""Which attention is measured, at which shapes, what it computes and moves, and what is expected.

Shapes are [B batch, H query heads, S query length, D head size], with as many keys as queries. Of
decode S counts the keys, and there is one query. The heads of v may have another size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from bench.case import Case, Inputs, Roof, Traffic
from bench.goals import (
    AtMostTimes,
    FasterThan,
    FasterThanBestPeer,
    Goal,
    ShareOfCopy,
    ShareOfLimit,
)
from bench.limits import GOALS_MACHINE
from bench.peers import ATEN_OP, EAGER
from weft import _C

Recipe = Literal["prefill", "decode", "mixed", "varlen", "train", "backward"]
"""prefill   o = softmax(q · kᵀ / √D + mask) · v
decode   the same for one query and a cache of keys
mixed    a chunk of one sequence's prompt, packed before one query of each of the others
varlen   B packed sequences of 17 to S tokens
train    prefill, then the gradients of q, k and v from do
backward   the gradients alone, of an o that is there
"""

SHORTEST = 17
BF16_CACHE = "weft's bf16 cache"
"""The yardstick of the INT8 cache: the same decode from bf16, timed in turn."""
CUDNN, FLASH = "cuDNN", "FlashAttention"
"""Through torch, on a GPU."""
PRODUCT = "a matrix product"
"""The yardstick of what a GPU computes: torch's product of as many operations, timed in turn."""

fp32, bf16, fp16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    recipe: Recipe
    causal: bool = False
    group: int = 1
    """Query heads to a key head."""
    mask: bool = False
    """A float mask [B, 1, S, S]."""
    int8: Literal["", "int8", "int8_static"] = ""
    """Keys and values are int8, with a scale for each token and head, or for each head."""
    value_size: int = 0
    """The head size of v; 0: that of q and k."""
    page: int = 0
    """Keys and values lie in pages of so many rows, in no order; 0: they do not."""
    chunk: int = 0
    """Of a prompt's queries so many, which see all keys; 0: all of them."""

    @property
    def Dv(self) -> int:
        return self.value_size or self.shape[3]

    @property
    def trains(self) -> bool:
        return self.recipe in ("train", "backward")

    @property
    def roof(self) -> Roof | None:
        """Decode reads the cache. All else computes: in bf16 by dot products of pairs where the CPU
        has them, in fp32 otherwise (fp16 has no such instruction). What a GPU computes is set
        beside a matrix product."""
        if self.device == "cuda":
            return "copy" if self.recipe == "decode" and self.cold else None
        if self.recipe == "decode":
            return "read" if self.cold else None
        if self.flops < 1e6:
            return None  # less than a call costs
        return "bf16" if self.dtype == bf16 and _C.isa_level() == "avx512_bf16" else "fp32"

    @property
    def queries(self) -> int:
        """Of a sequence."""
        return 1 if self.recipe == "decode" else self.chunk or self.shape[2]

    @property
    def rows(self) -> int:
        """Of q."""
        if self.recipe == "varlen":
            return sum(self.lengths)
        if self.recipe == "mixed":
            return self.chunk + self.shape[0] - 1
        return self.shape[0] * self.queries

    @property
    def key_heads(self) -> int:
        return self.shape[1] // self.group

    @property
    def lengths(self) -> list[int]:
        """Of the sequences of `varlen`: evenly spaced, in no order."""
        B, _, S, _ = self.shape
        sizes = [SHORTEST + i * (S - SHORTEST) // (B - 1) for i in range(B)]
        return sizes[::2] + sizes[1::2][::-1]

    @property
    def pairs(self) -> float:
        """Of a query and a key that it sees, in one head. Half of all where causal."""
        if self.recipe == "varlen":
            return sum(n * n for n in self.lengths)
        return self.rows * self.shape[2] / (2 if self.causal else 1)

    @property
    def flops(self) -> int:
        """2 · (D + Dv) for each pair and head: q · k and p · v. The gradients cost two and a half
        times as much where D = Dv: three products over D, two over Dv."""
        _, H, _, D = self.shape
        forward, backward = 2 * (D + self.Dv), 2 * (3 * D + 2 * self.Dv)
        each = {"train": forward + backward, "backward": backward}.get(self.recipe, forward)
        return int(each * H * self.pairs)

    @property
    def traffic(self) -> Traffic:
        """q, k and v (and the mask) read, o written. ``train`` counts both passes: backward reads
        q, k, v, o and do, and writes dq, dk and dv."""
        B, H, S, D = self.shape
        tokens = sum(self.lengths) if self.recipe == "varlen" else B * S
        heads = self.rows * H * self.dtype.itemsize
        q, o = heads * D, heads * self.Dv
        row = (D + self.Dv) * (1 if self.int8 else self.dtype.itemsize)
        kv = tokens * self.key_heads * (row + (8 if self.int8 == "int8" else 0))
        if self.trains:
            forward = Traffic(q + kv, o) if self.recipe == "train" else Traffic(0, 0)
            return Traffic(forward.read + q + kv + 2 * o, forward.write + q + kv)
        mask = B * S * S * self.dtype.itemsize if self.mask else 0
        return Traffic(q + kv + mask, o)


def _case(
    recipe: Recipe, shape: tuple[int, ...], dtype: torch.dtype, *goals: Goal,
    causal: bool = False, group: int = 1, mask: bool = False,
    int8: Literal["", "int8", "int8_static"] = "",
    cold: bool | None = None, value_size: int = 0, page: int = 0, chunk: int = 0,
) -> AttentionCase:  # fmt: skip
    """What computes stays in cache, as far as it fits; a cache of keys does not."""
    words = [recipe, causal and "causal", mask and "mask", int8]
    words += [chunk and f"chunk{chunk}", page and f"page{page}"]
    words.append(f"v{value_size}" if value_size else "")
    words.append(f"gqa{group}" if group > 1 else "")
    return AttentionCase(
        op="_".join(word for word in words if word), recipe=recipe, shape=shape, dtype=dtype,
        goals=goals, causal=causal, group=group, mask=mask, int8=int8,
        cold=recipe == "decode" if cold is None else cold, value_size=value_size, page=page,
        chunk=chunk,
    )  # fmt: skip


def _reaches(gflops: float, dtype: torch.dtype) -> ShareOfLimit:
    """A rate that was set on the goals' machine, as the share of the peak there."""
    return ShareOfLimit(
        gflops * 1e9 / (GOALS_MACHINE.bf16 if dtype == bf16 else GOALS_MACHINE.fp32)
    )


def cases(device: str) -> list[AttentionCase]:
    """Those with goals first, then small ones."""
    if device == "cuda":
        return [replace(case, device=device) for case in (*_gpu(), *_gpu_paged(), *_gpu_decode())]
    return [*_prefill(), *_decode(), *_packed(), *_train(), *_small()]


GPU_TOKENS, GPU_WIDTH, GPU_GOALS = 16384, 2048, 16384
"""Of a batch; of all its heads; and how long the sequences are that the goals are for."""


def _gpu() -> list[AttentionCase]:
    """Sequences of 512 to 32768 of as many tokens in all, but for the last."""
    found: list[AttentionCase] = []
    for recipe in ("prefill", "backward"):
        for D, value_size in ((64, 0), (128, 0), (256, 0), (192, 128)):
            for causal in (False, True):
                for S in (1 << n for n in range(9, 16)):
                    shape = max(GPU_TOKENS // S, 1), GPU_WIDTH // (value_size or D), S, D
                    goals = _gpu_goals(recipe, D) if S == GPU_GOALS else []
                    found.append(
                        _case(recipe, shape, bf16, *goals, causal=causal, value_size=value_size)
                    )
    return found


def _gpu_goals(recipe: Recipe, D: int) -> list[Goal]:
    if recipe == "backward":
        return [FasterThan(1.05, CUDNN)] if D == 128 else []
    if D == 128:
        return [FasterThan(1.05, CUDNN), AtMostTimes(1 / 0.85, PRODUCT)]
    return [] if D == 192 else [FasterThanBestPeer(1.05)]


def _gpu_paged() -> list[AttentionCase]:
    """Prompts, and chunks of them behind what is in the cache: short pages and long ones."""
    found: list[AttentionCase] = []
    for page in (16, 256):
        found.append(_case("prefill", (4, 16, 4096, 128), bf16, causal=True, page=page))
        for chunk in (128, 1024):
            shape = 2048 // chunk, 16, 8192, 128
            found.append(_case("prefill", shape, bf16, page=page, chunk=chunk))
    mixed = 64, 32, 4096, 128
    return [*found, _case("mixed", mixed, bf16, group=8, page=16, chunk=1024)]


def _gpu_decode() -> list[AttentionCase]:
    """Caches of 4096 to 65536 keys for 1 to 64 sequences, 4 GiB at most."""
    found: list[AttentionCase] = []
    for B in (1, 8, 64):
        for S in (4096, 16384, 65536):
            if B * S <= 1 << 20:
                cache = B, 64, S, 128
                found += [
                    _case("decode", cache, bf16, ShareOfCopy(0.88), group=8),
                    _case("decode", cache, bf16, FasterThan(1.8, BF16_CACHE), group=8, int8="int8"),
                ]
    for B in (1, 8, 64):
        found.append(
            _case("decode", (B, 64, 16384, 128), bf16, ShareOfCopy(0.88), group=8, page=16)
        )
    return found


def _prefill() -> list[AttentionCase]:
    d128, d64 = (1, 8, 2048, 128), (1, 8, 2048, 64)
    return [
        _case("prefill", d128, bf16, ShareOfLimit(0.75)),
        _case("prefill", d128, bf16, ShareOfLimit(0.62), causal=True),
        _case("prefill", d64, bf16, _reaches(520, bf16)),
        _case("prefill", d64, bf16, _reaches(420, bf16), causal=True),
        _case("prefill", d128, fp32, ShareOfLimit(0.88)),
        _case("prefill", d128, fp32, ShareOfLimit(0.75), causal=True),
        _case("prefill", d128, fp16, _reaches(350, fp16)),
        _case("prefill", d128, fp16, _reaches(300, fp16), causal=True),
        _case("prefill", (1, 32, 1024, 128), bf16, _reaches(500, bf16), causal=True, group=4),
        _case("prefill", (4, 12, 512, 64), bf16, _reaches(450, bf16), mask=True),
    ]


def _decode() -> list[AttentionCase]:
    cache = (4, 32, 4096, 128)
    found = [_case("decode", cache, dtype, ShareOfLimit(0.8), group=4) for dtype in (bf16, fp16)]
    found += [_case("decode", cache, fp32, ShareOfLimit(0.8), group=4)]
    return [
        *found,
        _case("decode", cache, bf16, FasterThan(1.7, BF16_CACHE), group=4, int8="int8"),
        _case("decode", cache, fp32, group=4, int8="int8_static"),
    ]


def _packed() -> list[AttentionCase]:
    shape = (16, 12, 512, 64)
    return [_case("varlen", shape, t, _reaches(n, t)) for t, n in ((bf16, 430), (fp32, 300))]


def _train() -> list[AttentionCase]:
    shape = (2, 12, 1024, 64)
    return [
        _case("train", shape, t, _reaches(n, t), causal=True) for t, n in ((bf16, 420), (fp32, 300))
    ]


def _small() -> list[AttentionCase]:
    """A sentence for an encoder, a short prompt, a short cache, and next to nothing."""
    return [
        _case("prefill", (1, 12, 128, 32), fp32),
        _case("prefill", (8, 12, 128, 64), bf16),
        _case("prefill", (1, 32, 128, 128), bf16, causal=True, group=4),
        _case("decode", (1, 32, 512, 128), bf16, group=4, cold=False),
        _case("decode", (1, 12, 128, 64), fp32, cold=False),
        _case("prefill", (1, 1, 1, 64), fp32,
              AtMostTimes(1.5, ATEN_OP), AtMostTimes(1.5, EAGER), cold=False),
    ]  # fmt: skip


def sweep(device: str) -> list[AttentionCase]:
    """Sequences from 128 to 16384, full and causal; caches from 512 to 65536 keys.

    On a GPU longer ones.
    """
    if device == "cuda":
        shapes = [(1, 16, 1 << n, 128) for n in range(9, 16)]
        caches = [(1, 64, 1 << n, 128) for n in range(12, 20)]
        found = [
            _case("prefill", s, bf16, causal=causal) for causal in (False, True) for s in shapes
        ]
        found += [_case("decode", s, bf16, group=8) for s in caches]
        return [replace(case, device=device) for case in found]
    return [
        *(
            _case("prefill", (1, 8, 1 << n, 128), bf16, causal=causal)
            for causal in (False, True)
            for n in range(7, 15)
        ),
        *(_case("decode", (1, 32, 1 << n, 128), bf16, group=4) for n in range(9, 17)),
    ]


def shrink(case: AttentionCase) -> AttentionCase:
    """At most 3 sequences of 40 tokens, 2 key heads of 32 elements: shows that everything runs."""
    B, H, S, D = case.shape
    heads = min(case.key_heads, 2) * case.group
    return replace(
        case, shape=(min(B, 3), heads, min(S, 40), min(D, 32)), goals=(),
        value_size=min(case.value_size, 24), page=min(case.page, 8), chunk=min(case.chunk, 20),
    )  # fmt: skip


def inputs(case: AttentionCase, seed: int) -> Inputs:
    """One set of tensors. q, k and v are [B, H or key heads, S, D], as torch's attention takes
    them; packed [total, H, D] with `cu_seqlens`."""
    generator = torch.Generator(case.device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=case.device).to(case.dtype)

    B, H, S, D = case.shape
    if case.recipe == "varlen":
        packed = (sum(case.lengths), H, D)
        starts = torch.tensor([0, *case.lengths]).cumsum(0, dtype=torch.int32).to(case.device)
        return {**{name: normal(*packed) for name in "qkv"}, "cu_seqlens": starts}
    queries = (case.rows, H, D) if case.recipe == "mixed" else (B, H, case.queries, D)
    keys = (B, case.key_heads, S, D)
    tensors = {"q": normal(*queries), "k": normal(*keys), "v": normal(*keys[:3], case.Dv)}
    if case.int8:
        for name in "kv":
            dims = (-1,) if case.int8 == "int8" else (0, 2, 3)
            tensors[f"{name}_int8"], tensors[f"{name}_scale"] = quantised(tensors[name], dims)
    if case.mask:
        tensors["mask"] = normal(B, 1, S, S)
    if case.trains:
        for t in tensors.values():
            t.requires_grad_()
        tensors["do"] = normal(*queries[:3], case.Dv)
    return tensors


def quantised(x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values, and float32 scales, each the largest magnitude along `dims` / 127."""
    scale = x.float().abs().amax(dims, keepdim=True) / 127
    return (x / scale).round().to(torch.int8), scale
