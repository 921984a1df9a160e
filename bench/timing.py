"""Interleaved timing.

One round takes a sample of every contender; the order turns by one place from round to round, so
that none always follows the same neighbour. Before every sample the process rests: thread pools
that spin after a call (libgomp's for 15 ms, onnxruntime's for 45-70 ms) would otherwise take a core
from whoever comes next. The rest lets the sample's own threads fall asleep too, so a sample begins
with untimed calls that wake them. weft gets the same treatment as everybody.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """Something to time: the same computation bound to each of the rotating sets of inputs."""

    name: str
    calls: Sequence[Call]


@dataclass(frozen=True)
class Plan:
    """How to take samples.

    rounds: samples per contender.
    rest: seconds of sleep before each sample.
    sample: seconds that a sample should last, unless one call takes longer.
    batched: time all calls of a sample together (calls too short for the clock), or one by one.
    before_call: runs untimed before each call that is timed on its own.
    """

    rounds: int = 15
    rest: float = 0.09
    sample: float = 0.01
    batched: bool = False
    before_call: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Spread:
    """Seconds per call over the rounds: the quartiles, the extremes, and how many there were."""

    median: float
    q1: float
    q3: float
    min: float
    max: float
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        ordered = sorted(samples)
        if len(ordered) == 1:
            q1 = median = q3 = ordered[0]
        else:
            q1, median, q3 = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(median, q1, q3, ordered[0], ordered[-1], len(ordered))


class Stopwatch:
    """The clock and the sleep, in one place so that tests can replace them."""

    now: Callable[[], float] = staticmethod(time.perf_counter)
    sleep: Callable[[float], object] = staticmethod(time.sleep)


def measure(
    contenders: Sequence[Contender], plan: Plan, watch: Stopwatch | None = None
) -> dict[str, list[float]]:
    """Seconds per call of every contender, one number a round."""
    watch = watch or Stopwatch()
    samples: dict[str, list[float]] = {c.name: [] for c in contenders}
    with _no_garbage_collection():
        counts = {c.name: _calls_per_sample(c, plan, watch) for c in contenders}
        for round_ in range(plan.rounds):
            for contender in _turned(contenders, round_):
                seconds = _sample(contender, counts[contender.name], plan, watch)
                samples[contender.name].append(seconds)
    return samples


def fastest(contenders: Sequence[Contender], plan: Plan, watch: Stopwatch | None = None) -> str:
    """The name of the contender with the smallest median."""
    if len(contenders) == 1:
        return contenders[0].name
    samples = measure(contenders, plan, watch)
    return min(samples, key=lambda name: statistics.median(samples[name]))


def _calls_per_sample(contender: Contender, plan: Plan, watch: Stopwatch) -> int:
    """Enough calls to fill ``plan.sample``; whole turns of the rotation."""
    sets = len(contender.calls)
    for call in contender.calls:  # first calls pay for lazy initialisation
        call()
    start = watch.now()
    for call in contender.calls:
        call()
    turn = max(watch.now() - start, 1e-9)
    return sets * max(1, min(math.ceil(plan.sample / turn), 100_000))


def _sample(c: Contender, count: int, plan: Plan, watch: Stopwatch) -> float:
    watch.sleep(plan.rest)
    # Untimed: wakes the threads. In a cold case it takes the set that is used last, so that the
    # timed calls still find their data out of cache.
    for _ in range(min(10, count) if plan.batched else 1):
        c.calls[-1]()
    if plan.batched:
        calls = list(chain.from_iterable(repeat(tuple(c.calls), count // len(c.calls))))
        start = watch.now()
        for call in calls:
            call()
        return (watch.now() - start) / count
    total = 0.0
    for i in range(count):
        call = c.calls[i % len(c.calls)]
        plan.before_call()
        start = watch.now()
        call()  # the result is dropped here: giving memory back is part of the price
        total += watch.now() - start
    return total / count


def _turned(contenders: Sequence[Contender], by: int) -> Sequence[Contender]:
    by %= len(contenders)
    return [*contenders[by:], *contenders[:by]]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
