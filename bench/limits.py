"""What the machine allows, measured in the run that the figures come from.

Limits are taken before and after the cases, and the higher ones hold. Bandwidths are the best over
several attempts and over two ways of moving data: the probes of ``weft._C``, written for the
purpose, and plain torch. A limit is what anybody has reached.

A shared machine is now faster, now slower, for minutes at a time. So a row is also set beside its
limit timed in turn with its contenders: a copy of as many bytes, reading them, or as many
operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch

from bench.case import Case, Memory
from bench.timing import Stopwatch
from weft import _C

ATTEMPTS = 12


@dataclass(frozen=True)
class Limits:
    """Bytes per second, and operations per second (0 where there is no such instruction)."""

    copy: float
    """Both directions counted: a copy of n bytes moves 2n."""
    read: float
    new_huge_pages: float
    """Writing memory that has no pages yet, with huge pages advised."""
    new_small_pages: float
    fp32: float = 0.0
    bf16: float = 0.0
    int8: float = 0.0

    def at_best(self, other: Limits) -> Limits:
        """The higher of two measurements of every limit: a disturbance only ever lowers one."""
        theirs = asdict(other)
        return Limits(**{name: max(ours, theirs[name]) for name, ours in asdict(self).items()})

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def seconds(self, case: Case, memory: Memory) -> float | None:
        """The shortest time for a case; None where no limit rules it.

        That is its work over its roof. New pages must first be zeroed by the kernel: where copy
        bandwidth is the roof, it is then reading the inputs plus writing new (huge) pages.
        """
        if case.roof is None:
            return None
        if case.roof == "copy" and memory == "fresh":
            traffic = case.traffic
            return traffic.read / self.read + traffic.write / self.new_huge_pages
        return case.work / getattr(self, case.roof)


GOALS_MACHINE = Limits(
    copy=59.5e9, read=43e9, new_huge_pages=33e9, new_small_pages=4.7e9,
    fp32=477e9, bf16=870e9, int8=1890e9,
)  # fmt: skip
"""The machine that the goals' absolute times were set on: 2 Zen 5 cores. Where only a range was
recorded, its middle; copy is what the recorded limits of single cases imply."""


def measure_limits(threads: int, buffer_bytes: int = 256 << 20) -> Limits:
    """Takes a few seconds. ``buffer_bytes``, for torch's part, must be well beyond the caches."""
    memory, peaks = _C.memory_bandwidth(threads), _C.peaks(threads)
    source = torch.ones(buffer_bytes // 4)
    target = torch.zeros_like(source)
    return Limits(
        copy=max(memory["copy"], best_rate(2 * buffer_bytes, lambda: target.copy_(source))),
        read=max(memory["read"], best_rate(buffer_bytes, source.sum)),
        new_huge_pages=memory["touch_huge_pages"],
        new_small_pages=memory["touch_small_pages"],
        **peaks,
    )


BLOCK = 4096


def at_the_roof(case: Case, count: int, threads: int) -> list[Callable[[], None]]:
    """As many calls that do the case's work at its limit: a streaming copy that reads half of the
    bytes and writes as many, or reading them, each in buffers of its own; or the operations."""
    if case.roof == "copy":
        return [_copy(_whole(case.work / 2), threads) for _ in range(count)]
    if case.roof == "read":
        return [_read(_whole(case.work), threads) for _ in range(count)]
    assert case.roof is not None
    return [partial(_C.run_operations, case.roof, case.work, threads)] * count


def _whole(size: float) -> int:
    return math.ceil(size / BLOCK) * BLOCK


def _copy(size: int, threads: int) -> Callable[[], None]:
    (to, source), keep = _buffers(2, size)

    def run(_keep: list[torch.Tensor] = keep) -> None:
        _C.stream_copy(to, source, size, threads)

    return run


def _read(size: int, threads: int) -> Callable[[], None]:
    (source,), keep = _buffers(1, size)

    def run(_keep: list[torch.Tensor] = keep) -> None:
        _C.stream_read(source, size, threads)

    return run


def _buffers(count: int, size: int) -> tuple[list[int], list[torch.Tensor]]:
    """Addresses at the beginning of a block, and what keeps them alive."""
    keep = [torch.ones(size + BLOCK, dtype=torch.uint8) for _ in range(count)]
    return [-(-buffer.data_ptr() // BLOCK) * BLOCK for buffer in keep], keep


def best_rate(
    bytes_moved: int, action: Callable[[], object], watch: Stopwatch | None = None
) -> float:
    """Bytes per second in the fastest of several attempts."""
    watch = watch or Stopwatch()
    best = float("inf")
    for _ in range(ATTEMPTS):
        start = watch.now()
        action()
        best = min(best, watch.now() - start)
    return bytes_moved / best
