"""Backends that do not look into index tensors: what these hold leads nowhere outside the
tensors of the call, and other sequences have their results. On the simulator foreign memory is an
error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from backends import Backend

from .test_errors import raw

B, T, K, H, D = 2, 48, 2, 4, 64
BEYOND, BEHIND = 2**30, -(2**30)


@pytest.fixture(params=["bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.param)


def normal(backend: Backend, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, device=backend.device).to(dtype)


def ints(backend: Backend, *values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=backend.device)


def forward(**call: Any) -> tuple[Tensor, Tensor]:
    out, lse = raw("attention_forward", **call)
    return out, lse


def same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("splits", [1, 3])
def test_more_queries_than_there_are(backend: Backend, dtype: torch.dtype, splits: int) -> None:
    """Rows beyond the batch's would be the next sequence's, or behind the workspace."""
    call = {
        "q": normal(backend, dtype, B, 20, H, D), "k": normal(backend, dtype, B, T, K, D),
        "v": normal(backend, dtype, B, T, K, D), "num_splits": splits,
    }  # fmt: skip
    for wrong, right in ((BEYOND, 20), (21, 20), (BEHIND, 0)):
        same(
            forward(**call, seqused_q=ints(backend, 7, wrong)),
            forward(**call, seqused_q=ints(backend, 7, right)),
        )


@pytest.mark.parametrize("splits", [1, 3])
def test_sequences_longer_than_the_longest(
    backend: Backend, dtype: torch.dtype, splits: int
) -> None:
    call = {
        "q": normal(backend, dtype, 90, H, D), "k": normal(backend, dtype, 60, K, D),
        "v": normal(backend, dtype, 60, K, D), "cu_seqlens_k": ints(backend, 0, 40, 60),
        "max_seqlen_k": 40, "num_splits": splits,
    }  # fmt: skip
    out, lse = forward(**call, cu_seqlens_q=ints(backend, 0, 70, 90), max_seqlen_q=20)
    expected, expected_lse = forward(
        **call,
        cu_seqlens_q=ints(backend, 0, 70, 90),
        max_seqlen_q=70,
        seqused_q=ints(backend, 20, 20),
    )
    assert torch.equal(out[:20], expected[:20]) and torch.equal(out[70:], expected[70:])
    assert torch.equal(lse[:, :20], expected_lse[:, :20]) and not out[20:70].any()
    same(
        forward(**call, cu_seqlens_q=ints(backend, 0, 70, BEYOND), max_seqlen_q=70),
        forward(**call, cu_seqlens_q=ints(backend, 0, 70, 90), max_seqlen_q=70),
    )
    same(
        forward(**call, cu_seqlens_q=ints(backend, BEHIND, 70, 90), max_seqlen_q=70),
        forward(**call, cu_seqlens_q=ints(backend, 0, 70, 90), max_seqlen_q=70),
    )


def test_tiles_of_packed_sequences(backend: Backend, dtype: torch.dtype) -> None:
    """Looked up in cu_seqlens_q, whatever it holds."""
    q, k, v = (normal(backend, dtype, n, 1, D) for n in (310, 40, 40))
    keys = {"k": k, "v": v, "cu_seqlens_k": ints(backend, 0, 20, 40), "max_seqlen_k": 20}

    def run(*starts: int, q: Tensor = q) -> tuple[Tensor, Tensor]:
        return forward(q=q, **keys, cu_seqlens_q=ints(backend, *starts), max_seqlen_q=300)

    right = run(0, 300, 310)
    same(run(0, 300, BEYOND), right)
    same(run(BEHIND, 300, 310), right)
    out, lse = run(100, 300, 310)
    expected, expected_lse = run(0, 200, 210, q=q[100:])
    assert torch.equal(out[100:], expected) and not out[:100].any()
    assert torch.equal(lse[:, 100:], expected_lse) and lse[:, :100].isneginf().all()
    for wrong in ((BEYOND, BEHIND, 300), (310, 300, 0), (300, 0, 310), (BEYOND, BEYOND, BEYOND)):
        run(*wrong)


@pytest.mark.parametrize("paged", [False, True])
def test_more_keys_than_there_are(backend: Backend, dtype: torch.dtype, paged: bool) -> None:
    call = {"q": normal(backend, dtype, B, 20, H, D)}
    shape = (6, 16, K, D) if paged else (B, T, K, D)
    call |= {"k": normal(backend, dtype, *shape), "v": normal(backend, dtype, *shape)}
    if paged:
        call |= {"block_table": ints(backend, [0, 4, 1], [5, 2, 3]), "max_seqlen_k": 100}
    for wrong, right in ((BEYOND, T), (T + 1, T), (BEHIND, 0)):
        same(
            forward(**call, seqused_k=ints(backend, 9, wrong)),
            forward(**call, seqused_k=ints(backend, 9, right)),
        )
    for wrong, right in ((BEYOND, 30), (BEHIND, 0)):
        used = ints(backend, 9, 30)
        same(
            forward(**call, seqused_k=used, leftpad_k=ints(backend, 0, wrong)),
            forward(**call, seqused_k=used, leftpad_k=ints(backend, 0, right)),
        )


def test_gradients_of_more_than_there_is(backend: Backend, dtype: torch.dtype) -> None:
    q, dout = (normal(backend, dtype, B, 20, H, D) for _ in range(2))
    k, v = (normal(backend, dtype, B, T, K, D) for _ in range(2))

    def gradients(queries: int, keys: int) -> tuple[Tensor, ...]:
        used = {"seqused_q": ints(backend, 7, queries), "seqused_k": ints(backend, 9, keys)}
        out, lse = forward(q=q, k=k, v=v, **used)
        found = raw("attention_backward", dout=dout, q=q, k=k, v=v, out=out, lse=lse, **used)
        return tuple(found[:3])

    same(gradients(BEYOND, BEYOND), gradients(20, T))
    same(gradients(BEHIND, T + 1), gradients(0, T))


@pytest.mark.parametrize("kind", ["rows", "pages", "batch_idx"])
@pytest.mark.parametrize("int8", [False, True])
def test_append_beyond_a_cache(backend: Backend, dtype: torch.dtype, kind: str, int8: bool) -> None:
    """Rows that the cache has are appended, the others are not."""
    shape = (4, 16, K, D) if kind == "pages" else (3, 32, K, D)
    new = {n: normal(backend, dtype, B, 5, K, D) for n in "kv"}
    caches = {f"{n}_cache": torch.zeros(shape, dtype=dtype, device=backend.device) for n in "kv"}
    if int8:
        caches = {n: t.to(torch.int8) for n, t in caches.items()}
        caches |= {f"{n}_scale": torch.zeros(shape[:3], device=backend.device) for n in "kv"}
    where: dict[str, Any] = {}
    if kind == "pages":
        where["block_table"] = ints(backend, [2, 0], [3, 1])
    if kind == "rows":
        caches = {n: t[:B] for n, t in caches.items()}
    if kind == "batch_idx":
        where["cache_batch_idx"] = ints(backend, 2, BEYOND)

    def append(first: int, second: int) -> dict[str, Tensor]:
        into = {n: t.clone() for n, t in caches.items()}
        raw("kv_cache_append_", **into, **new, **where, seqused_k=ints(backend, first, second))
        return into

    nowhere = append(BEYOND, 32)
    assert not any(t.any() for t in nowhere.values())
    at_the_end = append(30, BEHIND)  # two of five
    into = at_the_end["k_cache"]
    rows = into[0] if kind == "pages" else into[2 if kind == "batch_idx" else 0]
    assert rows[-2:].any(-1).all() and not rows[:-2].any()
    assert into.any(-1).sum() == 2 * K
    if not int8:
        assert torch.equal(rows[-2:], new["k"][0, :2])


@pytest.mark.parametrize("kind", ["rows", "pages", "batch_idx"])
@pytest.mark.parametrize("splits", [1, 3])
def test_growing_beyond_a_cache(
    backend: Backend, dtype: torch.dtype, kind: str, splits: int
) -> None:
    """One kernel, or rotary, append and forward: the same, whatever lengths say."""
    S = 3
    q = normal(backend, dtype, B, S, H, D)
    k, v = (normal(backend, dtype, B, S, K, D) for _ in range(2))
    shape = {"rows": (B, T, K, D), "pages": (6, 16, K, D), "batch_idx": (3, T, K, D)}[kind]
    caches = [normal(backend, dtype, *shape) for _ in range(2)]
    table = [torch.randn(T, 8, device=backend.device) for _ in range(2)]
    where: dict[str, Tensor] = {}
    if kind == "pages":
        where["block_table"] = ints(backend, [0, 4, 1], [5, 2, 3])
    elif kind == "batch_idx":
        where["cache_batch_idx"] = ints(backend, 2, 0)
    causal = {"window_right": 0, "num_splits": splits}

    def check(used: Tensor, leftpad: Tensor, where: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        once, apart = ([t.clone() for t in caches] for _ in range(2))
        out, lse = raw(
            "attention_with_kvcache_", q=q, k_cache=once[0], v_cache=once[1], k=k, v=v,
            seqused_k=used, leftpad_k=leftpad, cos=table[0], sin=table[1], **where, **causal,
        )  # fmt: skip
        turn = {"cos": table[0], "sin": table[1], "offsets": used}
        turned_q, turned_k = (raw("rotary", x=x, **turn) for x in (q, k))
        raw(
            "kv_cache_append_", k_cache=apart[0], v_cache=apart[1], k=turned_k, v=v,
            seqused_k=used, **where,
        )  # fmt: skip
        same(
            (out, lse),
            forward(q=turned_q, k=apart[0], v=apart[1], seqused_k=used + S, leftpad_k=leftpad,
                    **where, **causal),
        )  # fmt: skip
        same(tuple(once), tuple(apart))
        return out, lse

    none = ints(backend, 0, 0)
    for used in (BEYOND, BEHIND, T - 1, -2):
        check(ints(backend, 9, used), none, where)
    for left in (BEYOND, BEHIND, T):
        check(ints(backend, 9, 30), ints(backend, 4, left), where)
    nowhere = {name: t.clone() for name, t in where.items()}
    for t in nowhere.values():
        t[1] = BEHIND if kind == "batch_idx" else BEYOND
    out, lse = check(ints(backend, 9, 30), ints(backend, 0, 33), nowhere)  # and nothing is read
    assert not out[1].any() and lse[1].isneginf().all() and out[0].all()


def test_rotary_beyond_its_table(backend: Backend, dtype: torch.dtype) -> None:
    """Positions beyond take the last row, or the first."""
    x = normal(backend, dtype, B, 1, H, D)
    cos, sin = (torch.randn(10, D // 2, device=backend.device) for _ in range(2))

    def turned(first: int, second: int) -> Tensor:
        return raw("rotary", x=x, cos=cos, sin=sin, offsets=ints(backend, first, second))

    assert torch.equal(turned(BEYOND, BEHIND), turned(9, 0))
    with pytest.raises(RuntimeError, match="cos has shape .0, 32., expected at least one row"):
        raw("rotary", x=x, cos=cos[:0], sin=sin[:0], offsets=ints(backend, 0, 0))


@pytest.mark.parametrize("page_size", [16, 48])
def test_pages_that_nobody_needs(backend: Backend, dtype: torch.dtype, page_size: int) -> None:
    """In front of a window and behind the end: their entries may be anything."""
    S, used = 130, 400
    q = normal(backend, dtype, 1, S, H, D)
    k, v = (normal(backend, dtype, 30, page_size, K, D) for _ in range(2))
    k[29], v[29] = torch.nan, torch.nan
    first, pages = (used - S - 20) // page_size, -(-used // page_size)
    table = torch.arange(pages + 2, dtype=torch.int32)
    call = {"q": q, "k": k, "v": v, "seqused_k": ints(backend, used), "max_seqlen_k": 450}
    call |= {"window_left": 20, "window_right": 0}

    def run(before: int, behind: int) -> tuple[Tensor, Tensor]:
        table[:first], table[pages:] = before, behind
        return forward(**call, block_table=table[None].clone().to(q.device))

    right = run(0, 0)
    assert right[0].isfinite().all()
    for nowhere in (BEYOND, BEHIND, 29):
        same(run(nowhere, nowhere), right)


@pytest.mark.parametrize(
    "paged, nowhere", [(False, 3), (True, 3), (True, BEYOND), (True, -1), (True, BEHIND)]
)
def test_caches_that_are_not_there(backend: Backend, paged: bool, nowhere: int) -> None:
    """Tensor copies of what is not in the cache give zeros: weights alike, and no values."""
    if backend.device != "cpu":
        pytest.skip("where other kernels take the call they read foreign memory")
    q = normal(backend, torch.bfloat16, B, 128, H, D)
    k, v = (normal(backend, torch.bfloat16, 3, T, K, D) for _ in range(2))
    where = {"cache_batch_idx": ints(backend, 2, nowhere)}
    if paged:
        where = {"block_table": ints(backend, [2], [nowhere]), "seqused_k": ints(backend, T, T)}
    out, lse = forward(q=q, k=k, v=v, **where)
    assert not out[1].any() and out[0].any()
    torch.testing.assert_close(lse[1], torch.full_like(lse[1], T).log())
