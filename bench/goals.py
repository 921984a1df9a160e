"""The figures to reach, as objects that judge a measurement.

Absolute times belong to the machine they were set on. ``AtMost`` therefore also states itself as a
share of the limit there, and judges a measurement both ways: on another machine the share holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bench.units import duration


@dataclass(frozen=True)
class Measured:
    """What a goal may look at: seconds per call, and shares of the limits in the same run."""

    weft: float
    peers: dict[str, float]
    best_peer: float | None
    limit: float | None
    """Seconds that the machine's limit allows for this case; None where no such limit rules."""
    copy_limit: float
    """Seconds to move the same bytes at copy bandwidth."""
    goal_limit: float | None
    """``limit`` as it was on the machine that the goals were set on."""


@dataclass(frozen=True)
class Verdict:
    """A goal held against a measurement. ``reached`` is None where it could not be judged."""

    goal: str
    measured: str
    reached: bool | None


class Goal(Protocol):
    @property
    def memory(self) -> str:
        """The memory mode of the rows that it is for, or `any`."""

    def judge(self, m: Measured) -> list[Verdict]: ...


@dataclass(frozen=True)
class AtMost:
    """A time per call in seconds."""

    seconds: float
    memory: str = "any"

    def judge(self, m: Measured) -> list[Verdict]:
        verdicts = [
            Verdict(f"≤ {duration(self.seconds)}", duration(m.weft), m.weft <= self.seconds)
        ]
        if m.limit is not None and m.goal_limit is not None:
            verdicts += _share(min(m.goal_limit / self.seconds, 1.0), m.limit / m.weft, "the limit")
        return verdicts


@dataclass(frozen=True)
class ShareOfCopy:
    """A share of the copy bandwidth measured in the same run."""

    share: float
    memory: str = "any"

    def judge(self, m: Measured) -> list[Verdict]:
        return _share(self.share, m.copy_limit / m.weft, "copy")


@dataclass(frozen=True)
class ShareOfLimit:
    """A share of the case's own limit, measured in the same run."""

    share: float
    memory: str = "any"

    def judge(self, m: Measured) -> list[Verdict]:
        if m.limit is None:
            return [Verdict(f"≥ {self.share:.0%} of the limit", "no limit", None)]
        return _share(self.share, m.limit / m.weft, "the limit")


@dataclass(frozen=True)
class FasterThanBestPeer:
    """How many times as fast as the fastest peer."""

    factor: float
    memory: str = "any"

    def judge(self, m: Measured) -> list[Verdict]:
        return [_times_as_fast(self.factor, "the best peer", m.best_peer, m.weft)]


@dataclass(frozen=True)
class FasterThan:
    """How many times as fast as one named peer or yardstick."""

    factor: float
    peer: str
    memory: str = "any"

    def judge(self, m: Measured) -> list[Verdict]:
        return [_times_as_fast(self.factor, self.peer, m.peers.get(self.peer), m.weft)]


@dataclass(frozen=True)
class AtMostTimes:
    """At most ``factor`` times as long as one named peer or yardstick takes."""

    factor: float
    peer: str
    memory: str = "any"

    def judge(self, m: Measured) -> list[Verdict]:
        goal = f"≤ {self.factor:g}× {self.peer}"
        if self.peer not in m.peers:
            return [Verdict(goal, f"{self.peer} not measured", None)]
        theirs = m.peers[self.peer]
        factor = m.weft / theirs
        return [Verdict(goal, f"{factor:.2f}× of {duration(theirs)}", factor <= self.factor)]


def _times_as_fast(wanted: float, peer: str, theirs: float | None, weft: float) -> Verdict:
    goal = f"≥ {wanted:g}× {peer}"
    if theirs is None:
        return Verdict(goal, "not measured", None)
    return Verdict(goal, f"{theirs / weft:.2f}×", theirs / weft >= wanted)


def _share(wanted: float, got: float, of: str) -> list[Verdict]:
    return [Verdict(f"≥ {wanted:.0%} of {of}", f"{got:.0%}", got >= wanted)]
