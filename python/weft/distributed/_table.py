"""Which algorithm serves which message, as ``python -m bench comm --tune`` has found here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ._topology import Place

Table = list[tuple[int, bool, int]]
"""Rows of (bytes, two_shot, piece), as csrc/comm/params.h has them. Empty: what weft comes with."""


def path() -> Path:
    """``WEFT_COMM_TABLE``, or a file in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("WEFT_COMM_TABLE") or cache / "weft" / "comm.json")


def load(world: int, place: Place) -> Table:
    """The rows for so many ranks on such a place; empty where nobody has tuned."""
    if not path().exists():
        return []
    try:
        rows = json.loads(path().read_text()).get(_key(world, place), [])
        return [(int(size), bool(two_shot), int(piece)) for size, two_shot, piece in rows]
    except (ValueError, TypeError, AttributeError) as error:
        raise RuntimeError(f"weft: {path()} is no table of algorithms: {error}") from None


def save(world: int, place: Place, table: Sequence[tuple[int, bool, int]]) -> None:
    """Puts the rows into the file, beside those for other worlds."""
    tables = json.loads(path().read_text()) if path().exists() else {}
    tables[_key(world, place)] = [list(row) for row in table]
    path().parent.mkdir(parents=True, exist_ok=True)
    path().write_text(json.dumps(tables, indent=1) + "\n")


def _key(world: int, place: Place) -> str:
    return f"{world} ranks on {place}"
