"""Options in combination: a set in which every two meet, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest

from backends import Backend

from .cases import (
    FLOATS,
    Shape,
    check,
    check_backward,
    integers,
    pack_keys,
    pack_queries,
    page,
    problem,
    quantize_cache,
    quantize_out,
)
from .pairs import Row, covering

TRAINING: dict[str, tuple[Any, ...]] = {
    "layout": ("dense", "used", "packed", "packed_q"),
    "lengths": ((19, 37), (1, 66), (70, 33)),
    "heads": ((3, 3), (4, 2), (5, 1)),
    "sizes": ((24, 24), (64, 17)),
    "dtype": FLOATS,
    "sight": ((), ("causal",), ("causal", "top_left"), ("window",), ("window_left", "top_left")),
    "softcap": ((), ("softcap",)),
    "scale": ((), ("scale",)),
    "bias": ((), ("bias",), ("bias_of_keys",), ("bias_of_heads",)),
    "mask": ((), ("mask",), ("mask_of_keys",), ("mask_of_queries",)),
    "alibi": ((), ("alibi",), ("alibi_of_batch",)),
    "sinks": ((), ("sinks",)),
    "dropout": ((), ("dropout",)),
}
INFERENCE = TRAINING | {
    "layout": ("dense", "used", "packed", "packed_q", "paged", "mixed", "cache", "leftpad"),
    "int8_cache": (None, "by_head", "by_row"),
    "int8_out": (False, True),
    "splits": ((), ("splits",), ("one_split",)),
}
CHOICES = ("sight", "softcap", "scale", "bias", "mask", "alibi", "sinks", "dropout", "splits")


def build(row: Row, device: str) -> dict[str, Any]:
    (S, T), (H, K), (D, Dv) = row["lengths"], row["heads"], row["sizes"]
    options = [option for choice in CHOICES for option in row.get(choice, ())]
    call = problem(options, row["dtype"], Shape(3, S, T, H, K, D, Dv), device)
    if row.get("int8_cache"):
        call = quantize_cache(call, by_row=row["int8_cache"] == "by_row")
    if row.get("int8_out"):
        call = quantize_out(call, Dv)

    queries, keys = [S, 0, S // 2 + 1], [T, T // 2, 0]
    layout = row["layout"]
    if layout == "used":
        call |= {"seqused_q": integers(queries, device), "seqused_k": integers(keys, device)}
    if layout in ("paged", "mixed", "cache"):
        call |= {"seqused_k": integers([T, 1, T // 2], device)}
    if layout in ("packed", "packed_q", "mixed"):
        call = pack_queries(call, queries)
    if layout == "packed":
        call = pack_keys(call, keys)
    if layout in ("paged", "mixed"):
        call = page(call, 7)
    if layout == "cache":
        call |= {"cache_batch_idx": integers([2, 0, 2], device)}
    if layout == "leftpad":
        call |= {"leftpad_k": integers([0, T // 3, T], device)}
    return call


def identify(row: Row) -> str:
    return "-".join(
        "+".join(map(str, x)) if isinstance(x, tuple) else str(x).removeprefix("torch.")
        for x in row.values()
        if x
    )


@pytest.mark.parametrize("row", covering(INFERENCE), ids=identify)
def test_forward(backend: Backend, row: Row) -> None:
    check(build(row, backend.device), luck=2)


@pytest.mark.parametrize("row", covering(TRAINING), ids=identify)
def test_backward(backend: Backend, row: Row) -> None:
    check_backward(build(row, backend.device), luck=2)
