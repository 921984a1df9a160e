"""What the machine allows, measured in the run that the figures come from.

Limits are taken before and after the cases, and the higher ones hold. Bandwidths are the best over
several attempts and over two ways of moving data: the probes of ``weft._C``, written for the
purpose, and plain torch. A limit is what anybody has reached.

A shared machine's memory is now faster, now slower, for minutes at a time. So a row whose data is
out of cache is also set beside a copy of as many bytes, timed in turn with its contenders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from bench.case import Memory, Traffic
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

    def seconds(self, traffic: Traffic, memory: Memory) -> float:
        """The shortest time for this traffic.

        Into existing memory that is the bytes over copy bandwidth. New pages must first be zeroed
        by the kernel: then it is reading the inputs plus writing new (huge) pages.
        """
        if memory == "fresh":
            return traffic.read / self.read + traffic.write / self.new_huge_pages
        return traffic.total / self.copy


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


def copies(traffic: Traffic, count: int, threads: int) -> list[Callable[[], None]]:
    """As many streaming copies, each between buffers of its own, that read half of the traffic's
    bytes and write as many."""
    blocks = -(-traffic.total // (2 * BLOCK))
    return [_copy(blocks * BLOCK, threads) for _ in range(count)]


def _copy(size: int, threads: int) -> Callable[[], None]:
    buffers = [torch.zeros(size + BLOCK, dtype=torch.uint8) for _ in range(2)]
    to, source = (-(-buffer.data_ptr() // BLOCK) * BLOCK for buffer in buffers)

    def run(_buffers: list[torch.Tensor] = buffers) -> None:  # which keeps them alive
        _C.stream_copy(to, source, size, threads)

    return run


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
