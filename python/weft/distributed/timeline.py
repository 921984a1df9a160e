"""What the ranks did when: products, waiting and reduction, measured.

>>> with Timeline(communicator) as timeline:
...     y = weft.linear_all_reduce(x, weight, None, communicator)
>>> timeline.save("trace.json")     # for chrome://tracing or ui.perfetto.dev
>>> timeline.plot("timeline.png")
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .communicator import Communicator


class Span(NamedTuple):
    """A stretch of a rank's time, in seconds from the beginning of the timeline."""

    rank: int
    name: str  # of an op, or what `Timeline.span` was given
    phase: str  # call, product, copy, wait, reduce, or mark
    piece: int
    begin: float
    end: float


COLORS = {
    "product": "tab:blue",
    "copy": "tab:cyan",
    "reduce": "tab:orange",
    "wait": "tab:red",
    "mark": "0.85",
}


class Timeline:
    """Records the calls of a communicator within a ``with`` block, on every rank, and brings
    everybody's together at its end: all ranks enter and leave it together.

    A recorded call takes some 50 ns more for each of its pieces. Of small 16-bit products
    `linear_all_reduce` has no span of the product, which may go before the call.
    """

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator
        self.spans: list[Span] = []
        """Of all ranks, in the order of time."""
        self._marks: list[tuple[str, int, int]] = []

    def __enter__(self) -> Timeline:
        self.communicator._native.record(True)
        return self

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Marks what is done within as `name`."""
        begin = time.monotonic_ns()
        yield
        self._marks.append((name, begin, time.monotonic_ns()))

    def __exit__(self, *exception: object) -> None:
        native = self.communicator._native
        native.record(False)
        mine = [
            (op, _phase(op, phase), piece, begin, end)
            for _, op, phase, piece, begin, end in native.take_spans()
        ]
        mine += [(name, "mark", 0, begin, end) for name, begin, end in self._marks]
        if exception[0] is not None:
            return
        everyones = [
            (rank, *span) for rank, spans in enumerate(_everyones(self.communicator, mine))
            for span in spans
        ]  # fmt: skip
        start = min((begin for *_, begin, _ in everyones), default=0)
        self.spans = sorted(
            (
                Span(rank, name, phase, piece, (begin - start) / 1e9, (end - start) / 1e9)
                for rank, name, phase, piece, begin, end in everyones
            ),
            key=lambda span: span.begin,
        )

    def seconds(self, phase: str, rank: int | None = None) -> float:
        """The time that a rank, or the average one, spent in a phase."""
        total = sum(
            s.end - s.begin for s in self.spans if s.phase == phase and rank in (None, s.rank)
        )
        return total if rank is not None else total / self.communicator.world_size

    def chrome_trace(self) -> dict[str, Any]:
        """As the Trace Event Format has it: a process for each rank, a line for calls and marks,
        and one for what happens in them."""
        return {
            "displayTimeUnit": "ms",
            "traceEvents": [
                {
                    "name": span.name if span.phase in ("call", "mark") else span.phase,
                    "cat": span.phase,
                    "ph": "X",
                    "pid": span.rank,
                    "tid": 0 if span.phase in ("call", "mark") else 1,
                    "ts": span.begin * 1e6,
                    "dur": (span.end - span.begin) * 1e6,
                    "args": {"piece": span.piece},
                }
                for span in self.spans
            ],
        }

    def save(self, path: str | Path) -> None:
        """Writes the trace, on rank 0."""
        if self.communicator.rank == 0:
            Path(path).write_text(json.dumps(self.chrome_trace()))

    def plot(self, path: str | Path, title: str = "") -> None:
        """Draws a line for each rank, on rank 0. Needs matplotlib."""
        if self.communicator.rank != 0:
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 1.2 + 0.8 * self.communicator.world_size))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for phase, color in COLORS.items():
            for rank in range(self.communicator.world_size):
                bars = [
                    (s.begin * 1e3, max(s.end - s.begin, 0) * 1e3)
                    for s in self.spans
                    if s.phase == phase and s.rank == rank
                ]
                height = 0.8 if phase == "mark" else 0.5
                axes.broken_barh(
                    bars, (rank - height / 2, height), color=color, zorder=1 + (phase != "mark"),
                    label=phase if rank == 0 and bars else None,
                )  # fmt: skip
        ranks = range(self.communicator.world_size)
        axes.set_yticks(list(ranks), [f"rank {r}" for r in ranks])
        axes.invert_yaxis()
        axes.set_xlabel("ms")
        axes.set_title(title, loc="left")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(COLORS), frameon=False)
        figure.tight_layout()
        figure.savefig(path, dpi=120)


def _phase(op: str, phase: str) -> str:
    """What a phase of the communicator's is of this op."""
    copies = phase == "put" or (phase == "take" and "gather" in op)
    return "copy" if copies else {"take": "reduce"}.get(phase, phase)


def _everyones(communicator: Communicator, mine: Any) -> list[Any]:
    """What every rank has, of what JSON can say."""
    text = json.dumps(mine).encode()
    sizes = communicator.all_gather(torch.tensor([len(text)]))
    padded = text.ljust(int(sizes.max()))
    everyones = communicator.all_gather(
        torch.frombuffer(bytearray(padded), dtype=torch.uint8)[None]
    )
    return [json.loads(bytes(row.tolist())) for row in everyones]
