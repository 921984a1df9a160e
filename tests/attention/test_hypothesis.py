"""Shapes, lengths, dtypes and options as hypothesis finds them, forward and backward."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import Backend

from .cases import (
    FLOATS,
    OPTIONS,
    Shape,
    check,
    check_backward,
    integers,
    pack_keys,
    pack_queries,
    page,
    problem,
    quantize_cache,
)

# The fixture `backend` holds only the instruction set level: it may stay the same for all examples.
quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])

ELSEWHERE = ("seqused_q", "seqused_k", "splits", "one_split")
dtypes = st.sampled_from(FLOATS)
seeds = st.integers(0, 2**32 - 1)
options = st.sets(st.sampled_from([x for x in OPTIONS if x not in ELSEWHERE]), max_size=6)
sizes = st.integers(1, 80)
heads = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Lengths of queries and keys, some of them 0."""
    B = draw(st.integers(1, 4))
    lengths = st.lists(st.integers(0, 70), min_size=B, max_size=B)
    return draw(lengths), draw(lengths)


def lay_out(seed, dtype, chosen, batch, groups, D, Dv, device):  # type: ignore[no-untyped-def]
    torch.manual_seed(seed)
    queries, keys = batch
    K, group = groups
    shape = Shape(len(queries), max(1, *queries), max(1, *keys), K * group, K, D, Dv)
    return problem(sorted(chosen), dtype, shape, device), queries, keys


@quick
@given(seeds, dtypes, options, batches(), heads, sizes, sizes)
def test_training(backend: Backend, seed, dtype, chosen, batch, groups, D, Dv) -> None:  # type: ignore[no-untyped-def]
    call, queries, keys = lay_out(seed, dtype, chosen, batch, groups, D, Dv, backend.device)
    if seed % 2:
        call = pack_keys(pack_queries(call, queries), keys)
    else:
        call |= {
            "seqused_q": integers(queries, backend.device),
            "seqused_k": integers(keys, backend.device),
        }
    check(call, luck=4)
    check_backward(call, luck=4, unit=0.5)


@quick
@given(
    seeds, dtypes, options, batches(), heads, sizes, sizes, st.integers(1, 40), st.integers(0, 9)
)
def test_paged_cache(  # type: ignore[no-untyped-def]
    backend: Backend, seed, dtype, chosen, batch, groups, D, Dv, page_size, num_splits
) -> None:
    call, queries, keys = lay_out(seed, dtype, chosen, batch, groups, D, Dv, backend.device)
    call |= {"seqused_k": integers(keys, backend.device), "num_splits": num_splits}
    if seed % 3:
        call = quantize_cache(call, by_row=seed % 3 == 1)
    call = page(pack_queries(call, queries) if seed % 2 else call, page_size)
    check(call, luck=4)
