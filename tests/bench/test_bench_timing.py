"""The timing loop, with a clock that the contenders themselves advance."""

from __future__ import annotations

import pytest
from bench.timing import Contender, Plan, Spread, fastest, measure


class FakeWatch:
    """Time passes only when a contender runs or the process rests."""

    def __init__(self) -> None:
        self.time = 0.0
        self.rests: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.time += seconds


def contender(watch: FakeWatch, name: str, seconds: float, log: list[str], sets: int = 2):
    def call(i: int) -> None:
        log.append(f"{name}{i}")
        watch.time += seconds

    return Contender(name, [lambda i=i: call(i) for i in range(sets)])


@pytest.mark.parametrize("batched", [False, True])
def test_samples_are_seconds_per_call(batched: bool) -> None:
    watch = FakeWatch()
    plan = Plan(rounds=4, rest=0.5, sample=0.01, batched=batched)
    samples = measure(
        [contender(watch, "a", 0.002, []), contender(watch, "b", 0.003, [])], plan, watch
    )
    assert samples["a"] == pytest.approx([0.002] * 4)
    assert samples["b"] == pytest.approx([0.003] * 4)
    assert watch.rests == [0.5] * 8, "a rest before every sample of everybody"


def test_order_turns_and_rotation_is_complete() -> None:
    watch, log = FakeWatch(), []
    plan = Plan(rounds=2, rest=0.0, sample=0.0)
    measure([contender(watch, n, 1.0, log, sets=3) for n in "ab"], plan, watch)
    warm_up = 2 * 2 * 3
    # A sample: one untimed call on the last set, then every set once.
    assert log[warm_up:] == [
        *("a2", "a0", "a1", "a2"), *("b2", "b0", "b1", "b2"),
        *("b2", "b0", "b1", "b2"), *("a2", "a0", "a1", "a2"),
    ]  # fmt: skip


def test_before_call_runs_before_each_timed_call_and_is_not_timed() -> None:
    watch, calls = FakeWatch(), []

    def before() -> None:
        calls.append(watch.time)
        watch.time += 7.0

    plan = Plan(rounds=3, rest=0.0, sample=0.0, before_call=before)
    samples = measure([contender(watch, "a", 1.0, [], sets=2)], plan, watch)
    assert samples["a"] == [1.0] * 3
    assert len(calls) == 3 * 2


def test_fastest() -> None:
    watch = FakeWatch()
    many = [contender(watch, name, seconds, []) for name, seconds in (("a", 3), ("b", 2), ("c", 4))]
    assert fastest(many, Plan(rounds=2, rest=0.0), watch) == "b"


def test_spread() -> None:
    spread = Spread.of([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (spread.min, spread.q1, spread.median, spread.q3, spread.max) == (1, 2, 3, 4, 5)
    assert spread.rounds == 5
    assert Spread.of([2.0]).q1 == Spread.of([2.0]).q3 == 2.0
