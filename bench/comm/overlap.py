"""How much of an all-reduce hides under the linear layer before it.

    exposed = linear_all_reduce - linear        hidden = 1 - exposed / unoverlapped

`unoverlapped` is what an all-reduce takes behind the same layer: that of the best peer, of gloo
and, for float32 and where it is here, MPI; and weft's own. `waiting` is what weft's all-reduce of
one element takes there: ranks are never ready at once, and nobody has a sum before the last one is.
All are sampled in turn, in the same processes (`ranks.py`); a difference is taken round by round,
and the medians are of those.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from bench.comm import ranks
from bench.units import duration

LINEAR, FUSED, WEFT, GLOO, MPI = "linear", "fused", ranks.WEFT, ranks.GLOO, ranks.MPI
WAITING = "waiting"
GOAL = 0.9

# M×N×K of a rank's product, as of one of two ranks: an MLP's last layer in prefill, a small
# model's, and in decode.
SHAPES = ((512, 4096, 2048), (512, 1024, 512), (64, 4096, 2048), (8, 4096, 2048))
DTYPES = ("float32", "bfloat16", "int8")


@dataclass
class Row:
    """Seconds: of the layer alone, fused with its all-reduce, and each all-reduce behind it."""

    world: int
    shape: tuple[int, int, int]
    dtype: str
    times: dict[str, float] = field(default_factory=dict)
    exposed: float = 0.0
    waiting: float = 0.0
    behind: dict[str, float] = field(default_factory=dict)

    @property
    def best_peer(self) -> float:
        return min(seconds for name, seconds in self.behind.items() if name != WEFT)

    def hidden(self, unoverlapped: float) -> float:
        return 1 - self.exposed / unoverlapped

    def cells(self) -> list[str]:
        M, N, K = self.shape
        share = self.hidden(self.best_peer)
        return [
            f"{self.world}",
            f"{M}×{N}×{K}",
            self.dtype,
            duration(self.times[LINEAR]),
            duration(self.times[FUSED]),
            f"{self.exposed * 1e6:.0f} µs",
            f"{self.waiting * 1e6:.0f} µs",
            *(
                f"{self.behind[name] * 1e6:.0f} µs" if name in self.behind else "–"
                for name in (WEFT, GLOO, MPI)
            ),
            f"{self.hidden(self.behind[WEFT]):.0%}",
            f"{share:.0%} {'✓' if share >= GOAL else '✗'}",
        ]


HEADINGS = [
    "ranks", "M×N×K of a rank", "dtype", "linear", "linear_all_reduce", "exposed",
    "waiting", "all_reduce behind", "gloo behind", "MPI behind", "of weft's hidden",
    f"of the best peer's hidden (goal {GOAL:.0%})",
]  # fmt: skip


def measure(
    world: int, cases: Sequence[tuple[tuple[int, int, int], str]], rounds: int
) -> list[Row]:
    """A row for each case, of shape and dtype."""
    job = (world, list(cases), rounds)
    return ranks.launch(world, "bench.comm.overlap", job, not ranks.why_no_mpi())


def rank_main(job: tuple, rank: int) -> list[Row]:
    """In each of the processes."""
    from weft.distributed import Communicator

    world, cases, rounds = job
    communicator = Communicator(dist.group.WORLD)
    return [_row(Row(world, *case), communicator, rounds) for case in cases]


def _row(row: Row, communicator, rounds: int) -> Row:
    x, calls = _contenders(row, communicator)
    counts = {}
    for name, call in calls.items():
        call(x)
        counts[name] = max(2, min(200, int(ranks.SAMPLE / ranks.sample(call, x, 2))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for i in range(len(calls)):
            name = list(calls)[(turn + i) % len(calls)]
            times[name].append(ranks.sample(calls[name], x, counts[name]))
    alone = times[LINEAR]

    def beyond(name: str) -> float:
        return statistics.median(t - a for t, a in zip(times[name], alone, strict=True))

    row.times = {name: statistics.median(seconds) for name, seconds in times.items()}
    row.exposed = beyond(FUSED)
    row.waiting = beyond(WAITING)
    row.behind = {name: beyond(name) for name in (WEFT, GLOO, MPI) if name in times}
    return row


def _contenders(row: Row, communicator) -> tuple[torch.Tensor, dict[str, Callable]]:
    """The input, and what is done with it."""
    import weft

    M, N, K = row.shape
    generator = torch.Generator().manual_seed(communicator.rank)
    x = torch.randn(M, K, generator=generator)
    weight = torch.randn(N, K, generator=generator)
    if row.dtype == "int8":
        x = x.bfloat16()
        packed = weft.pack_int8_weight((weight * 20).clamp(-127, 127).to(torch.int8))
        parameters: tuple[torch.Tensor, ...] = (packed, torch.full((N,), 0.05))
        linear, fused = weft.int8_linear, weft.int8_linear_all_reduce
    else:
        x, weight = (t.to(getattr(torch, row.dtype)) for t in (x, weight))
        parameters = (weight,)
        linear, fused = torch.nn.functional.linear, weft.linear_all_reduce
    one = torch.zeros(1)

    def wait(x: torch.Tensor) -> None:
        linear(x, *parameters)
        communicator.all_reduce_(one)

    calls: dict[str, Callable] = {
        LINEAR: lambda x: linear(x, *parameters),
        WAITING: wait,
        FUSED: lambda x: fused(x, *parameters, None, communicator),
        WEFT: lambda x: communicator.all_reduce_(linear(x, *parameters)),
        GLOO: lambda x: dist.all_reduce(linear(x, *parameters)),
    }
    if x.dtype == torch.float32 and ranks.loaded_mpi() is not None:
        calls[MPI] = lambda x: ranks.through_mpi(linear(x, *parameters))
    return x, calls


def plot(rows: Sequence[Row], path: Path) -> None:
    """The time that each way adds to the layer."""
    from bench.plots import PEER_COLOURS, WEFT_COLOUR, _save, plt

    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.5 * len(rows)))
    labels = {FUSED: "linear_all_reduce", WEFT: "weft's all_reduce behind"}
    labels |= {name: f"{name} behind" for name in (GLOO, MPI)}
    colours = (WEFT_COLOUR, PEER_COLOURS[2], PEER_COLOURS[1], PEER_COLOURS[0])
    for i, (name, colour) in enumerate(zip(labels, colours, strict=True)):
        adds = [row.exposed if name == FUSED else row.behind.get(name, 0.0) for row in rows]
        shares = [100 * add / row.times[LINEAR] for add, row in zip(adds, rows, strict=True)]
        places = [y + (i - 1.5) * 0.2 for y in range(len(rows))]
        axes.barh(places, shares, 0.2, color=colour, label=labels[name])
    cases = ["×".join(map(str, row.shape)) + f" {row.dtype}" for row in rows]
    axes.set_yticks(range(len(rows)), cases, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time beyond the linear layer, % of it")
    axes.legend(fontsize=8)
    _save(figure, path)
