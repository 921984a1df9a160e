"""Rows and whole results, to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.case import ARITHMETIC, SHORT_DTYPE, Case, Memory, Roof
from bench.goals import Measured, Verdict
from bench.limits import GOALS_MACHINE, Limits
from bench.timing import Spread

SCHEMA = 1
WEFT = "weft"


@dataclass(frozen=True)
class Timed:
    """One contender's time in a row: seconds per call, and which variant of the peer it was."""

    spread: Spread
    variant: str = ""
    competes: bool = True


@dataclass(frozen=True)
class Row:
    """One case under one memory mode."""

    case: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    memory: Memory
    cold: bool
    bytes: int
    flops: int
    limit: float | None
    """Seconds that the machine's limit allows; None where there is none."""
    copy: float
    """Bytes per second of the copies that this row is set beside."""
    times: dict[str, Timed]
    absent: dict[str, str]
    """Peers without a time, and why."""
    verdicts: tuple[Verdict, ...] = ()
    roof: Roof | None = "copy"
    """What the limit is."""

    @classmethod
    def build(
        cls, case: Case, memory: Memory, limits: Limits,
        times: Mapping[str, Timed], absent: Mapping[str, str],
    ) -> Row:  # fmt: skip
        row = cls(
            case=case.name, op=case.op, shape=case.shape, dtype=SHORT_DTYPE[case.dtype],
            memory=memory, cold=case.cold, bytes=case.traffic.total, flops=case.flops,
            limit=limits.seconds(case, memory), copy=limits.copy, times=dict(times),
            absent=dict(absent), roof=case.roof,
        )  # fmt: skip
        return row if row.weft is None else replace(row, verdicts=row._judge(case, limits))

    @property
    def weft(self) -> float | None:
        """Seconds per call of weft."""
        return self.times[WEFT].spread.median if WEFT in self.times else None

    @property
    def best_peer(self) -> str | None:
        """The fastest competitor."""
        peers = {n: t.spread.median for n, t in self.times.items() if n != WEFT and t.competes}
        return min(peers, key=lambda name: peers[name]) if peers else None

    @property
    def speedup(self) -> float | None:
        """The best peer's time over weft's: above 1, weft is faster."""
        if self.weft is None or self.best_peer is None:
            return None
        return self.times[self.best_peer].spread.median / self.weft

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second of the traffic a perfect kernel has."""
        return None if self.weft is None else self.bytes / self.weft

    @property
    def computes(self) -> bool:
        """Whether arithmetic bounds it, so that operations are its measure, and not bytes."""
        return self.roof in ARITHMETIC

    @property
    def operations(self) -> float | None:
        """Operations per second that the textbook formula has."""
        return None if self.weft is None else self.flops / self.weft

    @property
    def share(self) -> float | None:
        """Share of the limit that weft reaches."""
        if self.weft is None or self.limit is None:
            return None
        return self.limit / self.weft

    def _judge(self, case: Case, limits: Limits) -> tuple[Verdict, ...]:
        assert self.weft is not None
        best = self.best_peer
        measured = Measured(
            weft=self.weft,
            peers={n: t.spread.median for n, t in self.times.items() if n != WEFT},
            best_peer=self.times[best].spread.median if best else None,
            limit=self.limit,
            copy_limit=case.traffic.total / limits.copy,
            goal_limit=GOALS_MACHINE.seconds(case, self.memory),
        )
        return tuple(
            verdict
            for goal in case.goals
            if goal.memory in ("any", self.memory)
            for verdict in goal.judge(measured)
        )

    def to_json(self) -> dict[str, Any]:
        """All fields, and the derived figures beside them for readers of the file."""
        derived = {
            "weft": self.weft, "best_peer": self.best_peer, "speedup": self.speedup,
            "bandwidth": self.bandwidth, "operations": self.operations, "share": self.share,
        }  # fmt: skip
        return {**asdict(self), **derived}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        known["shape"] = tuple(data["shape"])
        known["times"] = {
            name: Timed(Spread(**t["spread"]), t["variant"], t["competes"])
            for name, t in data["times"].items()
        }
        known["verdicts"] = tuple(Verdict(**v) for v in data["verdicts"])
        return cls(**known)


@dataclass(frozen=True)
class Result:
    """One run of one family."""

    family: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    limits: Limits
    rows: list[Row] = field(default_factory=list)

    def save(self, path: Path) -> None:
        data = {
            "schema": SCHEMA, "family": self.family, "machine": self.machine,
            "settings": self.settings, "limits": self.limits.to_json(),
            "rows": [row.to_json() for row in self.rows],
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        data = json.loads(path.read_text())
        if data.get("schema") != SCHEMA:
            raise ValueError(f"{path} has schema {data.get('schema')}, expected {SCHEMA}")
        return cls(
            data["family"], data["machine"], data["settings"], Limits(**data["limits"]),
            [Row.from_json(row) for row in data["rows"]],
        )  # fmt: skip
