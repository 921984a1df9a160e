"""Finds the fastest algorithm for each size of message, and writes the table that communicators
read (`weft.distributed._table`)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from bench.comm.ranks import measure
from bench.units import duration
from weft.distributed import _table, _topology

PIECES = (32 << 10, 64 << 10, 128 << 10, 256 << 10)
ALL = (1 << 63) - 1


def run(worlds: Sequence[int], sizes: Sequence[int], console: Console, rounds: int = 9) -> int:
    candidates = {
        f"{'two' if two_shot else 'one'}-shot, {piece >> 10} KB": (two_shot, piece)
        for two_shot in (False, True)
        for piece in PIECES
    }
    tables = {name: [(ALL, *choice)] for name, choice in candidates.items()}
    for world in worlds:
        rows = []
        for row in measure(world, [(size, "float32") for size in sizes], rounds, tables):
            best = min(row.times, key=lambda name: row.times[name].median)
            console.print(
                f"{world} ranks, {row.bytes >> 10} KB: {best}, {duration(row.times[best].median)}"
            )
            rows.append((row.bytes * 2, *candidates[best]))  # up to halfway to the next, in powers
        rows[-1] = (ALL, *rows[-1][1:])
        _table.save(world, _topology.here(), rows)
    console.print(f"Written to {_table.path()}")
    return 0
