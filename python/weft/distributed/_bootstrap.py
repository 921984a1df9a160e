"""How the ranks of a group come to share memory: through the group's own object collectives.

Rank 0 makes the segment and tells its name; all open it; when all say that they have, the name
goes. A rank that cannot says why, and then all raise, with its reason.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from .. import _C
from . import _table, _topology
from ._topology import Place


@dataclass
class _Report:
    """What a rank says of itself."""

    name: str = ""
    error: str = ""
    table: _table.Table = field(default_factory=list)
    host: str = field(default_factory=socket.gethostname)
    place: Place = field(default_factory=_topology.here)


def connect(
    group: dist.ProcessGroup, timeout: float, table: _table.Table | None = None
) -> _C.Communicator:
    """This rank's communicator, once every rank of the group has one. RuntimeError otherwise.

    All take the table that rank 0 was given, or else finds."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    # How many CPUs there are decides how to wait, so it is known before anything is made.
    place = _topology.together(report.place for report in _exchange(group, _Report(), timeout))

    made: _C.Communicator | _Report = _Report()
    try:
        if rank == 0:
            made, table = _make_first(world, timeout, place, table)
        first, *_ = _exchange(group, _named(made, table), timeout)
        if rank > 0 and not first.error:
            made = _make(first.name, rank, world, timeout, place, first.table)
        reports = _exchange(group, _named(made), timeout)
    finally:
        if isinstance(made, _C.Communicator):
            made.all_here()
    failed = [(r, report) for r, report in enumerate(reports) if report.error]
    if not failed:
        assert isinstance(made, _C.Communicator)
        return made
    if isinstance(made, _C.Communicator):
        made.close()
    raise RuntimeError(
        "; ".join(f"{report.error} (rank {r}, on {report.host})" for r, report in failed)
    )


def _make_first(
    world: int, timeout: float, place: Place, table: _table.Table | None
) -> tuple[_C.Communicator | _Report, _table.Table]:
    try:
        rows = _table.load(world, place) if table is None else table
    except Exception as error:  # whatever it is: the peers wait for a word
        return _Report(error=str(error)), []
    return _make("", 0, world, timeout, place, rows), rows


def _make(
    name: str, rank: int, world: int, timeout: float, place: Place, table: _table.Table
) -> _C.Communicator | _Report:
    try:
        return _C.Communicator(name, rank, world, timeout, len(place.cpus), table)
    except Exception as error:
        return _Report(error=str(error))


def _named(made: _C.Communicator | _Report, table: _table.Table | None = None) -> _Report:
    return made if isinstance(made, _Report) else _Report(name=made.name, table=table or [])


def _exchange(group: dist.ProcessGroup, report: _Report, timeout: float) -> list[_Report]:
    if dist.get_backend(group) == "gloo":  # else a missing rank would show after the group's time
        limit = timedelta(seconds=min(timeout, 1e9))  # as nanoseconds in 64 bits
        dist.monitored_barrier(group, limit, wait_all_ranks=True)
    reports: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(reports, report, group=group)
    return reports
