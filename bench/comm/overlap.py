"""How much of an all-reduce hides under the linear layer before it.

    exposed = linear_all_reduce - linear        hidden = 1 - exposed / unoverlapped

`unoverlapped` is what an all-reduce takes behind the same layer: that of the best peer, of gloo
and, for float32 and where it is here, MPI; and weft's own. `waiting` is what weft's all-reduce of
one element takes there: ranks are never ready at once, and nobody has a sum before the last one is.

A round makes each call once, in an order drawn anew, so that nobody always follows the same
neighbour. A call begins when all ranks are there and ends with the last of them; what it adds to
the layer is its time less the layer's in the same round, and `fused less all_reduce` is taken
alike. Medians over the rounds, ± half of their 95 % interval: where a peer adds no more than that,
nothing is said of its share.
"""

from __future__ import annotations

import math
import random
import statistics
import time
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


SECONDS = 20.0
"""That a row should take, if that leaves four calls of each a round, and no more than forty."""


@dataclass
class Added:
    """Seconds that one call takes beyond another: the median of the rounds' differences, and half
    of its 95 % interval."""

    median: float
    error: float

    @staticmethod
    def of(times: Sequence[float], others: Sequence[float]) -> Added:
        found = sorted(t - o for t, o in zip(times, others, strict=True))
        n = len(found)
        reach = 0.98 * math.sqrt(n)  # ranks about the middle: of a binomial, 1.96 σ
        low, high = (found[min(max(round(n / 2 + e), 0), n - 1)] for e in (-reach, reach))
        return Added(statistics.median(found), (high - low) / 2)

    def __str__(self) -> str:
        return f"{self.median * 1e6:.0f} ± {self.error * 1e6:.0f} µs"


@dataclass
class Row:
    """What each call takes, in seconds, and what it adds to the layer; `beside` is what the fused
    call takes beyond the layer and weft's all-reduce behind it."""

    world: int
    shape: tuple[int, int, int]
    dtype: str
    rounds: int = 0
    times: dict[str, float] = field(default_factory=dict)
    added: dict[str, Added] = field(default_factory=dict)
    beside: Added = field(default_factory=lambda: Added(0.0, 0.0))

    @property
    def best_peer(self) -> Added:
        return min((self.added[p] for p in (GLOO, MPI) if p in self.added), key=lambda a: a.median)

    def hidden(self, behind: Added) -> float | None:
        """The share of what an all-reduce adds behind the layer that the fused call does not; None
        where that is less than how far it errs."""
        if behind.median <= behind.error:
            return None
        return 1 - self.added[FUSED].median / behind.median

    def cells(self) -> list[str]:
        M, N, K = self.shape
        share, of_weft = self.hidden(self.best_peer), self.hidden(self.added[WEFT])
        return [
            f"{self.world}",
            f"{M}×{N}×{K}",
            self.dtype,
            duration(self.times[LINEAR]),
            duration(self.times[FUSED]),
            *(str(self.added.get(name, "–")) for name in (FUSED, WAITING, WEFT, GLOO, MPI)),
            str(self.beside),
            "–" if of_weft is None else f"{of_weft:.0%}",
            "–" if share is None else f"{share:.0%} {'✓' if share >= GOAL else '✗'}",
        ]


HEADINGS = [
    "ranks", "M×N×K of a rank", "dtype", "linear", "linear_all_reduce", "exposed",
    "waiting", "all_reduce behind", "gloo behind", "MPI behind", "fused less all_reduce",
    "of weft's hidden", f"of the best peer's hidden (goal {GOAL:.0%})",
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
    together = torch.zeros(1)
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    order = random.Random(0)  # alike on every rank

    def turn() -> None:
        for name in order.sample(list(calls), len(calls)):
            communicator.all_reduce_(together)
            begin = time.perf_counter()  # of one clock on all ranks
            calls[name](x)
            spans[name].append((begin, time.perf_counter()))

    for _ in range(2):
        turn()
    taken = sum(max(_times(spans[name])) for name in calls)
    row.rounds = min(max(int(SECONDS / taken), 4 * rounds), 40 * rounds)
    for each in spans.values():
        each.clear()
    for _ in range(row.rounds):
        turn()
    times = {name: _times(each) for name, each in spans.items()}
    row.times = {name: statistics.median(seconds) for name, seconds in times.items()}
    row.added = {name: Added.of(times[name], times[LINEAR]) for name in times if name != LINEAR}
    row.beside = Added.of(times[FUSED], times[WEFT])
    return row


def _times(spans: list[tuple[float, float]]) -> list[float]:
    """Of each call, from when the last rank begins it to when the last has ended."""
    mine = torch.tensor(spans, dtype=torch.float64)
    dist.all_reduce(mine, dist.ReduceOp.MAX)
    return (mine[:, 1] - mine[:, 0]).tolist()


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
        adds = [row.added[name].median if name in row.added else 0.0 for row in rows]
        shares = [100 * add / row.times[LINEAR] for add, row in zip(adds, rows, strict=True)]
        places = [y + (i - 1.5) * 0.2 for y in range(len(rows))]
        axes.barh(places, shares, 0.2, color=colour, label=labels[name])
    cases = ["×".join(map(str, row.shape)) + f" {row.dtype}" for row in rows]
    axes.set_yticks(range(len(rows)), cases, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time beyond the linear layer, % of it")
    axes.legend(fontsize=8)
    _save(figure, path)
