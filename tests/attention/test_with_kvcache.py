"""weft.attention_with_kvcache_: what rotary, append and attention give one after the other, bit for
bit, in one kernel or in four."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import weft
from backends import Backend

from .cases import draw, integers, name

B, H, K, T, PAGE = 3, 4, 2, 48, 16
USED = [5, 0, 37]
TABLE = [[4, 1, 0], [7, 6, 2], [3, 8, 5]]
ROTARY = {"none": None, "halves": False, "interleaved": True}


def caches(kind: str, dtype: torch.dtype, D: int, Dv: int, device: str) -> dict[str, Tensor]:
    """Of all kinds of rows; int8 with scales by row, or by head."""
    shape = (9, PAGE, K) if kind == "pages" else (5, T, K)
    return {f"{x}_cache": draw((*shape, d), dtype, device) for x, d in (("k", D), ("v", Dv))}


def int8(cache: dict[str, Tensor], by_row: bool) -> dict[str, Tensor]:
    found = {}
    for x in "kv":
        t = cache[f"{x}_cache"]
        scale = t.float().abs().amax(-1) / 127 if by_row else torch.full((K,), 0.02).to(t.device)
        q = t.float() / (scale[..., None] if by_row else scale[:, None])
        found[f"{x}_cache"] = q.round().clamp(-128, 127).to(torch.int8)
        found[f"{x}_scale"] = scale
    return found


def step_by_step(q: Tensor, k: Tensor, v: Tensor, cache: dict[str, Tensor], **call: Any) -> Any:
    used, where = call.pop("cache_seqlens"), {}
    for x in ("cache_batch_idx", "block_table"):
        where[x] = call.get(x)
    if "rotary_cos" in call:
        table = [call.pop(f"rotary_{x}") for x in ("cos", "sin", "interleaved")]
        k = weft.apply_rotary_emb(k, *table, seqlen_offsets=used)
        still = not call.get("causal") and call.get("window_size") is None
        rows = q.flatten(1, 2).unsqueeze(1) if still else q
        q = weft.apply_rotary_emb(rows, *table, seqlen_offsets=used).view(q.shape)
    scales = {x: t for x, t in cache.items() if "scale" in x}
    weft.kv_cache_append_(cache["k_cache"], cache["v_cache"], k, v, used, **scales, **where)
    return weft.attention(q, cache["k_cache"], cache["v_cache"], seqused_k=used + k.shape[1],
                          return_lse=True, **scales, **call)  # fmt: skip


def check(
    backend: Backend, kind: str, cached: str, dtype: torch.dtype, rotary: str, S: int = 1,
    new: int = 1, D: int = 40, Dv: int = 24, **call: Any,
) -> None:  # fmt: skip
    device = backend.device
    cache = caches(kind, dtype, D, Dv, device)
    if cached != "same":
        cache = int8(cache, cached == "int8_by_row")
    q, k, v = (draw((B, n, h, d), dtype, device) for n, h, d in
               ((S, H, D), (new, K, D), (new, K, Dv)))  # fmt: skip
    call["cache_seqlens"] = integers(USED, device)
    if kind == "pages":
        call["block_table"] = torch.tensor(TABLE, dtype=torch.int32, device=device)
    elif kind == "cache_batch_idx":
        call["cache_batch_idx"] = integers([4, 0, 1], device)
    else:
        cache = {x: t[:B] if t.dim() > 1 else t for x, t in cache.items()}
    interleaved = ROTARY[rotary]
    if interleaved is not None:
        angle = torch.rand(2 * T, 8) * 7
        call |= {"rotary_cos": angle.cos().to(device), "rotary_sin": angle.sin().to(device)}
        call["rotary_interleaved"] = interleaved
    once, apart = ({x: t.clone() for x, t in cache.items()} for _ in range(2))
    scales = {x: t for x, t in once.items() if "scale" in x}
    out, lse = weft.attention_with_kvcache_(
        q, once["k_cache"], once["v_cache"], k, v, **scales, **call, return_lse=True
    )
    expected, expected_lse = step_by_step(q, k, v, apart, **call)
    for x, t in apart.items():
        assert torch.equal(once[x], t), x
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)


@pytest.mark.parametrize("kind", ["rows", "cache_batch_idx", "pages"])
@pytest.mark.parametrize("cached", ["same", "int8_by_row", "int8_by_head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("rotary", ROTARY)
def test_a_token(backend: Backend, kind: str, cached: str, dtype: torch.dtype, rotary: str) -> None:
    check(backend, kind, cached, dtype, rotary, causal=True)


@pytest.mark.parametrize("cached", ["same", "int8_by_row"])
@pytest.mark.parametrize("S, new", [(3, 3), (2, 5), (4, 1), (1, 0)])
@pytest.mark.parametrize("num_splits", [1, 4])
def test_several_tokens(backend: Backend, cached: str, S: int, new: int, num_splits: int) -> None:
    """New keys of one sequence in several splits; queries that see them in part."""
    options = {"num_splits": num_splits, "causal": True}
    check(backend, "pages", cached, torch.bfloat16, "halves", S, new, **options)


@pytest.mark.parametrize("options", ["still", "window", "leftpad", "long", "wide", "options"])
def test_other_calls(backend: Backend, options: str) -> None:
    """Queries that all turn alike, keys that no query sees, and calls that take several kernels."""
    device = backend.device
    call: dict[str, Any] = {
        "still": {"S": 3, "new": 3},
        "window": {"S": 2, "new": 8, "window_size": (1, 0)},
        "leftpad": {"leftpad_k": integers([6, 1, 4], device), "new": 3, "causal": True},
        "long": {"S": 40, "new": 9, "causal": True},
        "wide": {"D": 96, "Dv": 300, "causal": True},
        "options": {"softcap": 2.0, "alibi_slopes": torch.rand(H, device=device),
                    "sinks": torch.zeros(H, device=device)},
    }[options]  # fmt: skip
    check(backend, "pages", "same", torch.bfloat16, "halves", **call)


def test_refuses(backend: Backend) -> None:
    q, k = (draw((2, 1, h, 8), device=backend.device) for h in (4, 2))
    cache = [draw((2, 8, 2, 8), device=backend.device) for _ in range(2)]
    table = torch.ones(8, 4, device=backend.device)
    used = integers([0, 7], backend.device)
    for wrong, arguments, message in (
        ({"rotary_cos": table}, (k, k, used), "cos and sin belong together"),
        ({}, (k[:1], k[:1], used[:1]), "seqused_k is int32 .1., expected"),
        ({}, (k.bfloat16(), k.bfloat16(), used), "k has dtype bfloat16, expected float32"),
        ({"num_splits": -1}, (k, k, used), "num_splits is -1"),
    ):
        with pytest.raises(RuntimeError, match=f"^weft.attention_with_kvcache: {message}"):
            weft.attention_with_kvcache_(q, *cache, *arguments, **wrong)
    if backend.reads_indices and backend.device == "cpu":
        with pytest.raises(RuntimeError, match="seqused_k is 8 for sequence 1, expected 0 to 7"):
            weft.attention_with_kvcache_(q, *cache, k, k, used + 1)
    with pytest.raises(RuntimeError, match="writing into a cache has no gradient"):
        weft.attention_with_kvcache_(q.requires_grad_(), *cache, k, k, used)
