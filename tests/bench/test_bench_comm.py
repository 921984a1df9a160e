"""The benchmark of collectives runs, and what it tunes is what communicators read."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.comm import overlap, tune
from bench.comm.ranks import WEFT, measure, why_no_mpi
from rich.console import Console

from weft.distributed import _table, _topology


def test_all_contenders_are_timed_and_right():
    (row,) = measure(2, [(4096, "float32")], rounds=2)
    assert {WEFT, "gloo"} <= set(row.times) and row.best_peer != WEFT
    assert row.speedup == row.times[row.best_peer].median / row.times[WEFT].median > 0


def test_what_a_product_hides_is_measured(tmp_path: Path):
    cases = [((8, 64, 32), dtype) for dtype in ("float32", "int8")]
    rows = overlap.measure(2, cases, rounds=2)
    for row in rows:
        mpi = {"MPI"} if row.dtype == "float32" and not why_no_mpi() else set()
        assert set(row.added) == {"fused", "waiting", "weft", "gloo"} | mpi
        assert row.rounds >= 8 and all(t > 0 for t in row.times.values())
        assert row.best_peer in [row.added[name] for name in {"gloo"} | mpi]
        assert len(row.cells()) == len(overlap.HEADINGS)
        row.added["fused"].median = 0.25
        assert row.hidden(overlap.Added(1.0, 0.1)) == 0.75
        assert row.hidden(overlap.Added(1.0, 1.1)) is None
    overlap.plot(rows, tmp_path / "overlap.png")
    assert (tmp_path / "overlap.png").stat().st_size > 1000


def test_what_a_call_adds_is_the_median_of_differences():
    slow, base = [3.0, 9.0, 4.0, 8.0, 5.0], [1.0, 1.0, 1.0, 5.0, 1.0]
    added = overlap.Added.of(slow, base)  # differences 2, 3, 3, 4, 8
    assert (added.median, added.error) == (3.0, 3.0)
    same = overlap.Added.of([2.0] * 100, [1.0] * 100)
    assert (same.median, same.error) == (1.0, 0.0)


def test_tuning_writes_what_communicators_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEFT_COMM_TABLE", str(tmp_path / "cache" / "comm.json"))
    monkeypatch.setattr(tune, "PIECES", (64 << 10,))
    place = _topology.here()
    assert _table.load(2, place) == []
    assert tune.run([2], [1024, 65536], Console(quiet=True), rounds=1) == 0
    assert _table.path().exists()
    (first, *_), (last, *_) = _table.load(2, place)
    assert first == 2048 and last == tune.ALL
    _table.save(3, place, [(tune.ALL, True, 65536)])
    assert _table.load(3, place) == [(tune.ALL, True, 65536)] and len(_table.load(2, place)) == 2


def test_a_broken_table_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEFT_COMM_TABLE", str(tmp_path / "comm.json"))
    _table.path().write_text("[]")
    with pytest.raises(RuntimeError, match="is no table of algorithms"):
        _table.load(2, _topology.here())
