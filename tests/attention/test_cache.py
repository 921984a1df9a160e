"""The ops around attention, against plain torch: rows appended to a cache, rotary embeddings, the
merge of partial results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from backends import Backend
from tolerance import assert_no_worse_than_torch

from .cases import FLOATS, draw, integers, name

OPS = torch.ops.weft
PAGE, CAPACITY = 4, 12

# --------------------------------------------------------------------------------- kv_cache_append_


class Cache:
    """Keys and values of B sequences, dense or in pages, between elements that are no one's.

    `places` [B, CAPACITY] says where each row of a sequence is.
    """

    def __init__(self, kind: str, dtype: torch.dtype, device: str, K: int, D: int, Dv: int) -> None:
        self.block_table = self.cache_batch_idx = None
        if kind == "paged":
            shape = (9, PAGE)
            table = torch.tensor([[8, 0, 3], [1, 7, 5]])
            self.block_table = table.to(device, torch.int32)
            self.places = (table[:, :, None] * PAGE + torch.arange(PAGE)).flatten(1)
        else:
            rows = torch.tensor([3, 1] if kind == "cache_batch_idx" else [0, 1])
            shape = (4 if kind == "cache_batch_idx" else 2, CAPACITY)
            self.places = rows[:, None] * CAPACITY + torch.arange(CAPACITY)
            if kind == "cache_batch_idx":
                self.cache_batch_idx = rows.to(device, torch.int32)
        self.k, self.v = (self._between((*shape, K, d), dtype, device) for d in (D, Dv))

    @staticmethod
    def _between(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
        *rows, K, D = shape
        whole = torch.randint(-99, 99, (*rows, 2, K, D + 1)).to(device, dtype)
        return whole[..., 1, :, :D]

    def append(self, k: Tensor, v: Tensor, **given: Any) -> None:
        OPS.kv_cache_append_(
            self.k, self.v, given.get("k_scale"), given.get("v_scale"), k, v, given.get("used"),
            given.get("cu_seqlens"), self.cache_batch_idx, self.block_table,
        )  # fmt: skip

    def rows(self, t: Tensor) -> Tensor:
        """The rows of a tensor laid out as the cache, [all rows, …]."""
        return t.flatten(0, 1)


CACHES = ("dense", "cache_batch_idx", "paged")


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("K, D, Dv", [(3, 40, 17), (1, 128, 128)])
def test_append(backend: Backend, kind: str, dtype: torch.dtype, K: int, D: int, Dv: int) -> None:
    """New rows stand behind the old ones, and nothing else has changed."""
    cache = Cache(kind, dtype, backend.device, K, D, Dv)
    new, used = (draw((2, 5, K, d), dtype, backend.device) for d in (D, Dv)), [7, 2]
    k, v = new
    want = {}
    for what, t, x in (("k", cache.k, k), ("v", cache.v, v)):
        want[what] = t.clone()
        for b in range(2):
            cache.rows(want[what])[cache.places[b, used[b] : used[b] + 5]] = x[b]
    cache.append(k, v, used=integers(used, backend.device))
    assert torch.equal(cache.k, want["k"]) and torch.equal(cache.v, want["v"])


@pytest.mark.parametrize("kind", CACHES)
def test_append_packed(backend: Backend, kind: str) -> None:
    """Rows of a packed batch; those that belong to no sequence go nowhere."""
    cache = Cache(kind, torch.float32, backend.device, 2, 9, 9)
    k, v = (draw((9, 2, 9), device=backend.device) for _ in range(2))
    before = cache.k.clone(), cache.v.clone()
    cache.append(k, v, cu_seqlens=integers([1, 1, 8], backend.device))
    for t, x, want in ((cache.k, k, before[0]), (cache.v, v, before[1])):
        cache.rows(want)[cache.places[1, :7]] = x[1:8]
        assert torch.equal(t, want)


def test_append_nothing(backend: Backend) -> None:
    cache = Cache("paged", torch.float32, backend.device, 2, 8, 8)
    before = cache.k.clone()
    new = draw((2, 0, 2, 8), device=backend.device)
    cache.append(new, new, used=integers([CAPACITY, 0], backend.device))
    assert torch.equal(cache.k, before)


def quantised(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """int8 rows and their scales, in the arithmetic that kernels have."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if scale is None:
        scale = (x.abs().amax(-1) / 127).float()
    divisor = torch.where(scale == 0, 1, scale).to(x.dtype)
    return (x / divisor[..., None]).round().clamp(-128, 127).to(torch.int8), scale


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("D", [1, 37, 128])
def test_append_quantises_by_row(backend: Backend, kind: str, dtype: torch.dtype, D: int) -> None:
    cache = Cache(kind, torch.int8, backend.device, 3, D, 40)
    k, v = (draw((2, 5, 3, d), dtype, backend.device) for d in (D, 40))
    k[0, 1] *= 1000
    k[1, 2] = 0
    scales = [torch.full(t.shape[:3], -7.0, device=backend.device) for t in (cache.k, cache.v)]
    before = [t.clone() for t in (cache.k, cache.v, *scales)]
    cache.append(k, v, used=integers([7, 2], backend.device), k_scale=scales[0], v_scale=scales[1])
    for x, t, scale, t_want, scale_want in zip(
        (k, v), (cache.k, cache.v), scales, before[:2], before[2:], strict=True
    ):
        q, s = quantised(x)
        for b, used in enumerate((7, 2)):
            cache.rows(t_want)[cache.places[b, used : used + 5]] = q[b]
            cache.rows(scale_want)[cache.places[b, used : used + 5]] = s[b]
        assert torch.equal(scale, scale_want)
        assert torch.equal(t, t_want)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_append_with_given_scales(backend: Backend, dtype: torch.dtype) -> None:
    """Given scales are kept; beyond them values saturate, and halves round to even."""
    cache = Cache("dense", torch.int8, backend.device, 2, 33, 33)
    k = draw((2, CAPACITY, 2, 33), dtype, backend.device) * 40
    v = torch.arange(-16.5, 16.5).to(backend.device, dtype).expand(2, CAPACITY, 2, 33).contiguous()
    k_scale = torch.tensor([0.25, 3.0], device=backend.device)
    v_scale = torch.ones(2, device=backend.device)
    cache.append(k, v, k_scale=k_scale, v_scale=v_scale)
    assert torch.equal(cache.k, quantised(k, k_scale)[0])
    assert cache.k.amin() == -128 and cache.k.amax() == 127
    assert torch.equal(cache.v, quantised(v, v_scale)[0])
    assert k_scale.tolist() == [0.25, 3.0]


def test_scales_say_what_is_not_finite(backend: Backend) -> None:
    """An int8 has no NaN: the row's scale says that there was one."""
    cache = Cache("dense", torch.int8, backend.device, 1, 40, 40)
    k = draw((2, 1, 1, 40), device=backend.device)
    k[0, 0, 0, 33], k[1, 0, 0, 2] = math.nan, -math.inf
    scales = [torch.zeros(2, CAPACITY, 1, device=backend.device) for _ in range(2)]
    cache.append(k, k, k_scale=scales[0], v_scale=scales[1])
    assert scales[0][0, 0, 0].isnan() and scales[0][1, 0, 0] == math.inf


# ------------------------------------------------------------------------------------------- rotary


def turned(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool, conjugate: bool
) -> Tensor:
    """x [*, H, D] turned by the angles at `positions` [*], in its own dtype."""
    R = 2 * cos.shape[1]
    c, s = (t[positions.to(t.device)].to(x.dtype)[..., None, :] for t in (cos, sin))
    s = -s if conjugate else s
    head = x[..., :R]
    a, b = (head[..., ::2], head[..., 1::2]) if interleaved else head.chunk(2, -1)
    pairs = a * c - b * s, a * s + b * c
    both = torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)
    return torch.cat([both, x[..., R:]], -1)


def angles(rows: int, R: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    angle = torch.rand(rows, R // 2) * 7
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("conjugate", [False, True], ids=["forth", "back"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("D, R", [(64, 64), (50, 22), (128, 96), (7, 2), (512, 512), (9, 0)])
def test_rotary(
    backend: Backend, interleaved: bool, conjugate: bool, dtype: torch.dtype, D: int, R: int
) -> None:
    x = draw((2, 7, 3, D), dtype, backend.device)
    cos, sin = angles(40, R, torch.float32, backend.device)
    offsets = integers([5, 33], backend.device)
    positions = offsets.long().cpu()[:, None] + torch.arange(7)
    y = OPS.rotary(x, cos, sin, offsets, 0, None, interleaved, conjugate)
    turn: Callable[[Tensor], Tensor] = lambda t: turned(  # noqa: E731
        t, cos, sin, positions, interleaved, conjugate
    )
    assert_no_worse_than_torch(y, turn(x.double()).cpu(), turn(x))
    assert torch.equal(y[..., R:], x[..., R:])

    whole = draw((2, 7, 5, D + 3), dtype, backend.device)
    whole[:, :, 1:4, :D] = x
    want = whole.clone()
    want[:, :, 1:4, :D] = y
    OPS.rotary_(whole[:, :, 1:4, :D], cos, sin, offsets, 0, None, interleaved, conjugate)
    assert torch.equal(whole, want)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_rotary_of_a_packed_batch(backend: Backend, interleaved: bool) -> None:
    """Each sequence begins at the offset; rows that belong to none stay as they are."""
    x = draw((9, 2, 24), device=backend.device)
    cos, sin = angles(10, 16, torch.float32, backend.device)
    cu = integers([1, 4, 4, 8], backend.device)
    y = OPS.rotary(x, cos, sin, None, 3, cu, interleaved, False)
    want = x.clone()
    want[1:4] = turned(x[1:4], cos, sin, torch.arange(3, 6), interleaved, False)
    want[4:8] = turned(x[4:8], cos, sin, torch.arange(3, 7), interleaved, False)
    torch.testing.assert_close(y, want)
    assert torch.equal(y[[0, 8]], x[[0, 8]])
    OPS.rotary_(x, cos, sin, integers([3, 3, 3], backend.device), 0, cu, interleaved, False)
    assert torch.equal(x, y)


@pytest.mark.parametrize("table", FLOATS, ids=name)
def test_rotary_tables_of_any_dtype(backend: Backend, table: torch.dtype) -> None:
    x = draw((1, 4, 2, 32), torch.bfloat16, backend.device)
    cos, sin = angles(4, 32, table, backend.device)
    y = OPS.rotary(x, cos, sin, None, 0, None, False, False)
    want = turned(x.float(), cos.float(), sin.float(), torch.arange(4)[None], False, False)
    torch.testing.assert_close(y, want.bfloat16())


def test_rotary_there_and_back(backend: Backend) -> None:
    dtype = torch.float64 if backend.float64 else torch.float32
    x = draw((1, 4, 2, 32), dtype, backend.device)
    cos, sin = angles(4, 32, dtype, backend.device)
    there = OPS.rotary(x, cos, sin, None, 0, None, True, False)
    torch.testing.assert_close(OPS.rotary(there, cos, sin, None, 0, None, True, True), x)


@pytest.mark.parametrize("shape", [(0, 4, 2, 8), (2, 0, 2, 8), (2, 4, 0, 8)])
def test_rotary_of_nothing(backend: Backend, shape: tuple[int, ...]) -> None:
    x = draw(shape, device=backend.device)
    cos, sin = angles(4, 8, torch.float32, backend.device)
    assert OPS.rotary(x, cos, sin, None, 0, None, False, False).shape == shape


# ------------------------------------------------------------------------------------------- merge


def merged(parts: Tensor, lses: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Parts [P, B, S, H, Dv] by their share of the whole, computed in dtype."""
    parts, lses = parts.to(dtype), lses.to(dtype)
    lse = lses.logsumexp(0)
    shares = (lses - torch.where(lse == -math.inf, 0, lse)).exp()
    return (shares.mT[..., None] * parts).sum(0), lse


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("Dv", [1, 40, 128, 512])
@pytest.mark.parametrize("P", [1, 2, 5])
def test_merge(backend: Backend, dtype: torch.dtype, Dv: int, P: int) -> None:
    compute = torch.promote_types(dtype, torch.float32)
    parts = draw((P, 2, 5, 3, Dv), dtype, backend.device)
    lses = 3 * draw((P, 2, 3, 5), compute, backend.device)
    lses[0, 0, 0, 0] = -math.inf
    lses[:, 1, 2, 3] = -math.inf  # saw nothing
    parts = parts.masked_fill((lses == -math.inf).mT[..., None], 0)
    out, lse = OPS.merge_attention_states(parts, lses)
    truth, truth_lse = (t.cpu() for t in merged(parts, lses, torch.float64))
    plain, plain_lse = merged(parts, lses, compute)
    assert_no_worse_than_torch(out, truth, plain.to(dtype), "out")
    assert_no_worse_than_torch(lse, truth_lse, plain_lse, "lse", luck=4)
    assert not out[1, 3, 2].any() and lse[1, 2, 3] == -math.inf


def test_merge_by_strides(backend: Backend) -> None:
    """Parts, and their lses, may lie anywhere; a packed batch has no batch dimension."""
    parts = draw((7, 2, 3, 16), device=backend.device).transpose(0, 1)[..., :9]
    lses = draw((2, 7, 3), device=backend.device).mT
    out, lse = OPS.merge_attention_states(parts, lses)
    want, want_lse = OPS.merge_attention_states(
        parts[:, None].contiguous(), lses[:, None].contiguous()
    )
    assert torch.equal(out, want[0]) and torch.equal(lse, want_lse[0])
    assert lse.is_contiguous() and out.is_contiguous()


def test_merge_of_extremes(backend: Backend) -> None:
    """exp(lse) alone would overflow, or vanish; a part that saw nothing counts for nothing."""
    parts = torch.tensor([3.0, 5.0, math.nan], device=backend.device).view(3, 1, 1, 1, 1)
    for level in (1e4, -1e4):
        lses = torch.tensor([level, level, -math.inf], device=backend.device).view(3, 1, 1, 1)
        out, lse = OPS.merge_attention_states(parts, lses)
        assert out.item() == 4
        assert lse.item() == pytest.approx(level + math.log(2), rel=1e-6)


def test_merge_passes_nan_on(backend: Backend) -> None:
    lses = torch.tensor([0.0, math.nan], device=backend.device).view(2, 1, 1, 1)
    out, lse = OPS.merge_attention_states(torch.ones(2, 1, 1, 1, 4, device=backend.device), lses)
    assert out.isnan().all() and lse.isnan().all()


# ------------------------------------------------------------------------------------------ threads


def test_threads_change_nothing(backend: Backend, threads: None) -> None:
    """Rows enough for every thread, cut where the number of threads says: the same bits."""
    x = draw((3, 211, 4, 72), torch.bfloat16, backend.device)
    cos, sin = angles(211, 64, torch.float32, backend.device)
    parts, lses = draw((3, 1, 211, 4, 72), device=backend.device), draw((3, 1, 4, 211))

    def everything() -> list[Tensor]:
        cache = torch.zeros(3, 250, 4, 72, dtype=torch.int8, device=backend.device)
        scale = torch.zeros(3, 250, 4, device=backend.device)
        used = integers([39, 0, 4], backend.device)
        OPS.kv_cache_append_(cache, cache.clone(), scale, scale.clone(), x, x, used, *[None] * 3)
        y = OPS.rotary(x, cos, sin, None, 0, None, False, False)
        return [cache, scale, y, *OPS.merge_attention_states(parts, lses.to(backend.device))]

    torch.set_num_threads(1)
    alone = everything()
    for n in (2, 3):
        torch.set_num_threads(n)
        for a, b in zip(alone, everything(), strict=True):
            assert torch.equal(a, b)
