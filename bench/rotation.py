"""How many sets of inputs a case rotates over, so that its data is out of cache."""

from __future__ import annotations

import math
from pathlib import Path

from bench.case import Case

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE = 64 << 20
MARGIN = 4
"""Caches hash addresses and prefetchers run ahead: between two uses of a set, this many times the
last-level cache passes through."""


def last_level_cache(caches: Path = CACHES) -> int:
    """Bytes in the largest cache of the first core; a generous guess where the system is silent."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [
        int(text[:-1]) * units[text[-1]]
        for text in (p.read_text().strip() for p in caches.glob("index*/size"))
    ]
    return max(sizes, default=UNKNOWN_CACHE)


def sets_of_inputs(case: Case, cache: int) -> int:
    """One for a case that stays in cache; else enough for ``MARGIN`` caches, at least two."""
    if not case.cold:
        return 1
    return max(2, math.ceil(MARGIN * cache / case.traffic.total))
