"""What the machine allows, measured in the run that the figures come from.

Bandwidths are the best over several attempts and over two ways of moving data: the probes of
``weft._C``, written for the purpose, and plain torch. A limit is what anybody has reached.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from bench.case import Memory, Traffic

ATTEMPTS = 12


@dataclass(frozen=True)
class Limits:
    """Bytes per second, and operations per second (0 where not measured)."""

    copy: float
    """Both directions counted: a copy of n bytes moves 2n."""
    read: float
    new_huge_pages: float
    """Writing memory that has no pages yet, with huge pages advised."""
    new_small_pages: float
    fp32: float = 0.0
    bf16: float = 0.0
    int8: float = 0.0

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
    """Takes a few seconds. ``buffer_bytes`` must be well beyond the caches."""
    ours = _weft_probes(threads)
    copy, read = _torch_copy_and_read(buffer_bytes)
    return Limits(
        copy=max(copy, ours.get("copy", 0.0)),
        read=max(read, ours.get("read", 0.0)),
        new_huge_pages=_new_pages(buffer_bytes, huge=True),
        new_small_pages=_new_pages(buffer_bytes // 4, huge=False),
        fp32=ours.get("fp32", 0.0),
        bf16=ours.get("bf16", 0.0),
        int8=ours.get("int8", 0.0),
    )


def _best_rate(amount: float, action: Callable[[], object]) -> float:
    """``amount`` per second in the fastest of several attempts."""
    best = float("inf")
    for _ in range(ATTEMPTS):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return amount / best


def _torch_copy_and_read(buffer_bytes: int) -> tuple[float, float]:
    source = torch.ones(buffer_bytes // 4)
    target = torch.zeros_like(source)
    copy = _best_rate(2.0 * buffer_bytes, lambda: target.copy_(source))
    read = _best_rate(buffer_bytes, source.sum)
    return copy, read


def _new_pages(buffer_bytes: int, huge: bool) -> float:
    advice = getattr(mmap, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE", None)
    best = 0.0
    for _ in range(ATTEMPTS // 3):
        with mmap.mmap(-1, buffer_bytes) as memory:
            if advice is not None:
                memory.madvise(advice)
            tensor = torch.frombuffer(memory, dtype=torch.float32)
            start = time.perf_counter()
            tensor.fill_(1.0)
            best = max(best, buffer_bytes / (time.perf_counter() - start))
            del tensor  # the mapping cannot be closed while a tensor looks into it
    return best


def _weft_probes(threads: int) -> dict[str, float]:
    """The probes of ``weft._C``; empty where weft is not installed."""
    try:
        from weft import _C
    except ImportError:
        return {}
    return {**_C.memory_bandwidth(threads), **_C.peaks(threads)}
