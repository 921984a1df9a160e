"""Finds the fastest algorithm for each size of message, and writes the table that communicators
read (`weft.distributed._table`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from rich.console import Console

from bench.comm.ranks import launch, measure
from bench.units import duration
from weft.distributed import Communicator, _table, _topology

PIECES = (32 << 10, 64 << 10, 128 << 10, 256 << 10)
ALL = (1 << 63) - 1
MULTICAST = "multicast"
CUDA_SIZES = tuple(1 << n for n in range(12, 27, 2))


def run(
    worlds: Sequence[int],
    sizes: Sequence[int],
    console: Console,
    rounds: int = 9,
    device: str = "cpu",
) -> int:
    candidates: dict[str, tuple]
    if device == "cuda":
        candidates = {name: (name,) for name in ("one_shot", "two_shot", MULTICAST)}
    else:
        candidates = {
            f"{'two' if two_shot else 'one'}-shot, {piece >> 10} KB": (two_shot, piece)
            for two_shot in (False, True)
            for piece in PIECES
        }
    tables = {name: [(ALL, *choice)] for name, choice in candidates.items()}
    for world in worlds:
        cases = [(size, "float32") for size in sizes]
        times = measure(world, cases, rounds, tables, device)
        for place, names in places(world, device, list(times[0].times)).items():
            rows = []
            for row in times:
                taken, best = min((row.times[name].median, name) for name in names)
                console.print(
                    f"{world} ranks on {place}, {row.bytes >> 10} KB: {best}, {duration(taken)}"
                )
                rows.append((row.bytes * 2, *candidates[best]))  # up to halfway, in powers
            rows[-1] = (ALL, *rows[-1][1:])
            _table.save(world, place, rows)
    console.print(f"Written to {_table.path()}")
    return 0


def places(
    world: int, device: str, names: list[str]
) -> dict[_topology.Place | _topology.Gpus, list[str]]:
    """By what a table is found, and the candidates for it: GPUs with multicast memory have one
    table for communicators that use it, and one for those that do not."""
    if device == "cpu":
        return {_topology.here(): names}
    gpus = launch(world, "bench.comm.tune", ())
    found = {gpus: [name for name in names if name != MULTICAST]}
    return found | ({gpus._replace(multicast=True): names} if MULTICAST in names else {})


def rank_main(job: tuple, rank: int) -> _topology.Gpus:
    """In each of the processes: what GPUs they have."""
    torch.cuda.set_device(rank)
    with Communicator(dist.group.WORLD) as communicator:
        communicator.connect_cuda()
        assert communicator._node is not None
        return communicator._node.gpus
