"""Where a benchmark runs: the CPU or a GPU, and what differs between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from bench.case import Traffic
from bench.limits import Limits, best_rate, copies, measure_limits
from bench.memory import Mode
from bench.rotation import last_level_cache
from bench.timing import Stopwatch


class Device(Protocol):
    name: str
    modes: tuple[Mode, ...]
    """The states that the allocator can be put into."""
    rest: float
    """Seconds of sleep before a sample."""
    asynchronous: bool
    """Calls return before their work is done, so a sample is timed as a whole."""

    def watch(self) -> Stopwatch: ...

    def cache(self) -> int:
        """Bytes of cache that a cold case must exceed."""

    def limits(self, threads: int, quick: bool) -> Limits: ...

    def copies(self, traffic: Traffic, count: int, threads: int) -> list[Callable[[], object]]:
        """As many copies, each between buffers of its own, that move the traffic's bytes."""


class Cpu:
    name = "cpu"
    modes: tuple[Mode, ...] = ("fresh", "reused")
    rest = 0.09
    asynchronous = False

    def watch(self) -> Stopwatch:
        return Stopwatch()

    def cache(self) -> int:
        return last_level_cache()

    def limits(self, threads: int, quick: bool) -> Limits:
        return measure_limits(threads, (16 << 20) if quick else (256 << 20))

    def copies(self, traffic: Traffic, count: int, threads: int) -> list[Callable[[], object]]:
        return copies(traffic, count, threads)


class GpuStopwatch(Stopwatch):
    """Reads the clock when all work is done. A sample lasts milliseconds, asking costs some
    microseconds."""

    @staticmethod
    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()


class Gpu:
    name = "cuda"
    modes: tuple[Mode, ...] = ("reused",)  # torch's allocator keeps the GPU's memory by itself
    rest = 0.0
    asynchronous = True

    def watch(self) -> Stopwatch:
        return GpuStopwatch()

    def cache(self) -> int:
        return torch.cuda.get_device_properties(0).L2_cache_size

    def limits(self, threads: int, quick: bool) -> Limits:
        size = (16 << 20) if quick else (1 << 30)
        (copy,) = self.copies(Traffic(size, size), 1, threads)
        rate = best_rate(2 * size, copy, self.watch())
        return Limits(copy=rate, read=0.0, new_huge_pages=0.0, new_small_pages=0.0)

    def copies(self, traffic: Traffic, count: int, threads: int) -> list[Callable[[], object]]:
        found: list[Callable[[], object]] = []
        for _ in range(count):
            source = torch.zeros(-(-traffic.total // 2), dtype=torch.uint8, device="cuda")
            target = torch.empty_like(source)
            found.append(lambda target=target, source=source: target.copy_(source))
        return found


DEVICES: dict[str, Device] = {"cpu": Cpu(), "cuda": Gpu()}
