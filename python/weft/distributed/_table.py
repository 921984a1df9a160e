"""Which algorithm serves which message, as ``python -m bench comm --tune`` has found here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ._topology import Gpus, Place

Table = list[tuple[int, bool, int]]
"""Rows of (bytes, two_shot, piece), as csrc/comm/params.h has them. Empty: what weft comes with."""

CudaTable = list[tuple[int, str]]
"""Rows of (bytes, algorithm), as csrc/comm/cuda/plan.h has them, before those weft comes with."""

_Row = TypeVar("_Row")


def path() -> Path:
    """``WEFT_COMM_TABLE``, or a file in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("WEFT_COMM_TABLE") or cache / "weft" / "comm.json")


def load(world: int, place: Place) -> Table:
    """The rows for so many ranks on such a place; empty where nobody has tuned."""
    return _load(world, place, lambda size, two, piece: (int(size), bool(two), int(piece)))


def load_cuda(world: int, gpus: Gpus) -> CudaTable:
    """The same for ranks on such GPUs."""
    return _load(world, gpus, lambda size, algorithm: (int(size), str(algorithm)))


def save(world: int, place: Place | Gpus, table: Sequence[tuple]) -> None:
    """Puts the rows into the file, beside those for other worlds and places."""
    tables = json.loads(path().read_text()) if path().exists() else {}
    tables[_key(world, place)] = [list(row) for row in table]
    path().parent.mkdir(parents=True, exist_ok=True)
    path().write_text(json.dumps(tables, indent=1) + "\n")


def _load(world: int, place: Place | Gpus, row: Callable[..., _Row]) -> list[_Row]:
    if not path().exists():
        return []
    try:
        stored = json.loads(path().read_text()).get(_key(world, place), [])
        return [row(*values) for values in stored]
    except (ValueError, TypeError, AttributeError) as error:
        raise RuntimeError(f"weft: {path()} is no table of algorithms: {error}") from None


def _key(world: int, place: Place | Gpus) -> str:
    return f"{world} ranks on {place}"
