"""Where a benchmark runs: the CPU or a GPU, and what differs between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

from bench.case import Case
from bench.limits import Limits, at_the_roof, best_rate, measure_limits
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

    def at_the_roof(self, case: Case, count: int, threads: int) -> Sequence[Callable[[], object]]:
        """As many calls that do the case's work at its limit."""


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

    def at_the_roof(self, case: Case, count: int, threads: int) -> Sequence[Callable[[], object]]:
        return at_the_roof(case, count, threads)


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
        rate = best_rate(2 * size, _gpu_copy(size), self.watch())
        return Limits(copy=rate, read=0.0, new_huge_pages=0.0, new_small_pages=0.0)

    def at_the_roof(self, case: Case, count: int, threads: int) -> Sequence[Callable[[], object]]:
        assert case.roof == "copy", "no other limit of a GPU is measured"
        return [_gpu_copy(-(-case.work // 2)) for _ in range(count)]


def _gpu_copy(size: int) -> Callable[[], object]:
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    return partial(torch.empty_like(source).copy_, source)


DEVICES: dict[str, Device] = {"cpu": Cpu(), "cuda": Gpu()}
