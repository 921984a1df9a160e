"""Where the sequences of a batch lie: packed, in part used, in caches, in pages, and mixed."""

from __future__ import annotations

import pytest
import torch

import weft
from backends import Backend

from .cases import (
    USUAL,
    Problem,
    Shape,
    check,
    check_backward,
    draw,
    integers,
    name,
    pack_keys,
    pack_queries,
    page,
    problem,
    quantize_cache,
    quantize_out,
    starts,
)

usual_dtype = pytest.mark.parametrize("dtype", USUAL, ids=name)

LENGTHS = [
    ([5, 0, 1, 17], [30, 4, 0, 17]),
    ([1, 1, 1], [3, 64, 65]),
    ([0, 0], [7, 0]),
    ([70], [70]),
    ([], []),
]


def packed(
    queries: list[int], keys: list[int], dtype: torch.dtype, options: tuple[str, ...], device: str
) -> Problem:
    shape = Shape(len(queries), max([0, *queries]), max([0, *keys]), D=24, Dv=24)
    return pack_keys(pack_queries(problem(options, dtype, shape, device), queries), keys)


@usual_dtype
@pytest.mark.parametrize(
    "options", [(), ("causal", "alibi"), ("window", "sinks", "bias")], ids=name
)
@pytest.mark.parametrize("queries, keys", LENGTHS)
def test_packed(
    backend: Backend,
    dtype: torch.dtype,
    options: tuple[str, ...],
    queries: list[int],
    keys: list[int],
) -> None:
    call = packed(queries, keys, dtype, options, backend.device)
    check(call)
    check_backward(call)


def test_packed_equals_dense(backend: Backend) -> None:
    """A sequence gives the same packed as alone: its neighbours do not matter."""
    queries, keys = [9, 33, 1], [40, 33, 64]
    call = packed(queries, keys, torch.bfloat16, ("causal",), backend.device)
    out = weft.attention(**call)
    for b in range(3):
        q, k, v = (
            call[x][cu[b] : cu[b + 1]][None]
            for x, cu in (("q", starts(queries)), ("k", starts(keys)), ("v", starts(keys)))
        )
        alone = weft.attention(q, k, v, causal=True, num_splits=1)
        torch.testing.assert_close(out[starts(queries)[b] : starts(queries)[b + 1]][None], alone)


def test_longest_sequences_are_found() -> None:
    call = packed([5, 0, 1, 17], [30, 4, 0, 17], torch.float32, ("causal",), "cpu")
    expected = weft.attention(**call)
    del call["max_seqlen_q"], call["max_seqlen_k"]
    assert torch.equal(weft.attention(**call), expected)
    none = weft.attention(
        *(torch.zeros(0, 2, 8) for _ in range(3)),
        cu_seqlens_q=integers([0]),
        cu_seqlens_k=integers([0]),
    )
    assert none.shape == (0, 2, 8)


@usual_dtype
def test_used_part_of_packed_sequences(backend: Backend, dtype: torch.dtype) -> None:
    call = packed([5, 3, 17], [30, 4, 17], dtype, ("causal",), backend.device)
    call |= {
        "seqused_q": integers([3, 3, 0], backend.device),
        "seqused_k": integers([7, 0, 17], backend.device),
    }
    out = check(call)
    check_backward(call)
    assert out[3:5].count_nonzero() == 0


@usual_dtype
@pytest.mark.parametrize("page_size", [1, 7, 16, 256])
@pytest.mark.parametrize("S", [1, 5])
def test_pages(backend: Backend, dtype: torch.dtype, page_size: int, S: int) -> None:
    call = problem(("causal",), dtype, Shape(B=4, S=S, T=70), backend.device)
    call["seqused_k"] = integers([70, 0, 1, 33], backend.device)
    expected = check(call)
    if backend.name.endswith("sm90") and page_size % 16:  # which its own kernel does not take
        expected = check(page(call, 70))
    call = page(call, page_size)
    assert torch.equal(check(call), expected)
    del call["max_seqlen_k"]
    torch.testing.assert_close(weft.attention(**call), expected)


@usual_dtype
@pytest.mark.parametrize("options", [("causal",), ("window_left", "softcap", "sinks")], ids=name)
def test_prefill_and_decode_in_one_call(
    backend: Backend, dtype: torch.dtype, options: tuple[str, ...]
) -> None:
    """Packed queries on a paged cache: one new token here, a whole prompt there, a chunk of one."""
    call = problem(options, dtype, Shape(B=5, S=40, T=90, H=6, K=2), backend.device)
    call["seqused_k"] = integers([77, 40, 90, 0, 1], backend.device)
    call = pack_queries(call, [1, 40, 9, 0, 1])
    check(call)
    check(page(call, 16))


@usual_dtype
def test_cache_of_longer_batches(backend: Backend, dtype: torch.dtype) -> None:
    """cache_batch_idx and leftpad_k, alone and together."""
    call = problem(("causal",), dtype, Shape(B=3, S=4, T=50), backend.device)
    call["q"] = call["q"][:2]
    rows = {"cache_batch_idx": integers([2, 0], backend.device)}
    used = {"seqused_k": integers([50, 13], backend.device)}
    left = {"leftpad_k": integers([20, 0], backend.device)}
    check(call | rows)
    check(call | rows | used)
    check(call | rows | used | left)
    call |= {x: call[x][:2] for x in ("k", "v")}
    check(call | left)
    check(page(call | used, 7) | left)


def test_index_tensors_may_be_views() -> None:
    """A part of a block table, and lengths that are a column of something."""
    call = problem(("causal",), torch.float32, Shape(B=2, S=3, T=40))
    call = page(pack_queries(call, [3, 1]), 16)
    names = ("block_table", "seqused_k", "cu_seqlens_q")
    views = {x: torch.stack([call[x], call[x]], -1)[..., 0] for x in names}
    assert not any(view.is_contiguous() for view in views.values())
    assert torch.equal(weft.attention(**(call | views)), weft.attention(**call))

    before = draw((4, 8, 2, 24)), draw((4, 8, 2, 24))
    new, table = (draw((2, 3, 2, 24)), draw((2, 3, 2, 24))), integers([3, 0, 1, 2]).view(2, 2)
    wide, lengths = torch.cat([table, table], 1), integers([6, 1, 0, 1])
    ours, expected = [t.clone() for t in before], [t.clone() for t in before]
    weft.kv_cache_append_(*expected, *new, integers([6, 0]), block_table=table)
    weft.kv_cache_append_(*ours, *new, lengths[::2], block_table=wide[:, :2])
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert not torch.equal(ours[0], before[0])


# -------------------------------------------------------------------------------------------- int8


@usual_dtype
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("S, T", [(1, 70), (33, 65)])
@pytest.mark.parametrize("D", [17, 64, 128])
def test_int8_cache(
    backend: Backend, dtype: torch.dtype, by_row: bool, S: int, T: int, D: int
) -> None:
    shape = Shape(B=2, S=S, T=T, H=6, K=2, D=D, Dv=D)
    call = quantize_cache(problem(("causal",), dtype, shape, backend.device), by_row)
    check(call)
    call["seqused_k"] = integers([T, T // 2], backend.device)
    check(page(call, 16))


@usual_dtype
def test_int8_out(backend: Backend, dtype: torch.dtype) -> None:
    call = problem(("causal",), dtype, device=backend.device)
    for quantized in (quantize_out(call, 40), quantize_out(quantize_cache(call, True), 40)):
        assert check(quantized).dtype == torch.int8
        check({k: v for k, v in quantized.items() if k not in ("out_shift", "out_smooth")})


def test_int8_out_saturates(backend: Backend) -> None:
    call = problem((), torch.float32, device=backend.device)
    out = check(call | {"out_scale": torch.tensor([1e-4], device=backend.device)})
    assert out.min() == -128 and out.max() == 127


# ------------------------------------------------------------------------------------------ splits


@usual_dtype
@pytest.mark.parametrize("num_splits", [1, 2, 5, 64])
@pytest.mark.parametrize("options", [(), ("causal", "sinks", "mask"), ("window_left",)], ids=name)
def test_splits(
    backend: Backend, dtype: torch.dtype, num_splits: int, options: tuple[str, ...]
) -> None:
    """More than there are keys, too; and over pages."""
    for S, T in ((1, 300), (3, 40)):
        call = problem(options, dtype, Shape(B=2, S=S, T=T, H=4, K=1), backend.device)
        call["num_splits"] = num_splits
        check(call)
        check(page(call, 16))
