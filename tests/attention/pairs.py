"""Options in combination: a set of problems in which every two choices meet."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

Row = dict[str, Any]


def covering(
    factors: Mapping[str, Sequence[Any]], legal: Callable[[Row], bool] = lambda row: True
) -> list[Row]:
    """Rows with one choice of each factor, so that all legal pairs of choices occur.

    Greedy: of some random rows through a pair that is still missing, the one that brings most.
    """
    draw = random.Random(0)
    names = list(factors)

    def pairs(row: Row) -> set[tuple]:
        return {(a, b, row[a], row[b]) for a, b in combinations(names, 2)}

    def rows_through(a: str, b: str, x: Any, y: Any) -> list[Row]:
        drawn = [{n: draw.choice(factors[n]) for n in names} | {a: x, b: y} for _ in range(200)]
        return [row for row in drawn if legal(row)]

    missing = [
        (a, b, x, y) for a, b in combinations(names, 2) for x in factors[a] for y in factors[b]
    ]
    found: list[Row] = []
    covered: set[tuple] = set()
    for pair in missing:
        if pair in covered:
            continue
        candidates = rows_through(*pair)
        if candidates:
            found.append(max(candidates[:40], key=lambda row: len(pairs(row) - covered)))
            covered |= pairs(found[-1])
    return found
