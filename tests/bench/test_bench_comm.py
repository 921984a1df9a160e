"""The benchmark of collectives runs, and what it tunes is what communicators read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench.__main__ import main
from bench.comm import overlap, tune, tune_cuda
from bench.comm.ranks import WEFT, Row, _contenders, measure, why_no_mpi
from bench.timing import Spread
from rich.console import Console

from weft.distributed import _table, _topology
from weft.distributed._topology import Gpus


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


H200 = Gpus("NVIDIA H200", nvlink=True, multicast=False)


@pytest.mark.parametrize("has_multicast", [False, True])
def test_tuning_between_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_multicast: bool):
    """With figures that are made up: there are no GPUs here."""

    def measure(world, cases, rounds, tables, device):
        assert device == "cuda" and tables["two_shot"] == [(tune.ALL, "two_shot")]
        rows = []
        for size, dtype in cases:
            seconds = {"one_shot": size, "two_shot": 50_000 + size / 2, "multicast": 90_000}
            if not has_multicast:
                del seconds["multicast"]
            times = {name: Spread(t, t, t, t, t, rounds) for name, t in seconds.items()}
            rows.append(Row(world, size, dtype, times))
        return rows

    monkeypatch.setenv("WEFT_COMM_TABLE", str(tmp_path / "comm.json"))
    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.setattr(tune, "launch", lambda world, module, job: H200)
    _table.save(2, _topology.here(), [(tune.ALL, True, 65536)])
    assert tune_cuda(4, Console(quiet=True)) == 0
    small = [(2 << n, "one_shot") for n in (12, 14, 16)]
    large = [2 << n for n in range(18, 26, 2)] + [tune.ALL]
    assert _table.load_cuda(4, H200) == small + [(size, "two_shot") for size in large]
    switched = small + [(size, "multicast") for size in large] if has_multicast else []
    assert _table.load_cuda(4, H200._replace(multicast=True)) == switched
    assert _table.load_cuda(8, H200) == _table.load_cuda(4, H200._replace(nvlink=False)) == []
    assert _table.load(2, _topology.here()) == [(tune.ALL, True, 65536)]


def test_what_the_gpus_do_not_have_is_no_contender(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    closed = []

    class Stub:
        def __init__(self, group: object) -> None:
            self.all_reduce_ = self

        def connect_cuda(self, multicast: bool, table: list) -> None:
            if multicast or table == [(1, "broken")]:
                raise RuntimeError("what the GPU says")

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr("weft.distributed.Communicator", Stub)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    tables = {name: [(tune.ALL, name)] for name in ("one_shot", "two_shot", "multicast")}
    assert list(_contenders(tables, torch.device("cuda"))) == ["one_shot", "two_shot"]
    assert len(closed) == 1 and "Without multicast: what the GPU says" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="what the GPU says"):
        _contenders({"broken": [(1, "broken")]}, torch.device("cuda"))


@pytest.mark.parametrize("gpus, needed", [(0, 2), (1, 2), (2, 3)])
def test_tuning_needs_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpus: int, needed: int
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert main(["comm", "--tune", "--device", "cuda"]) == 0
    assert f"needs {needed} GPUs or more" in capsys.readouterr().out


@pytest.mark.parametrize("row", [[1], [1, "one_shot", 3], ["a", "one_shot"], None])
def test_rows_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: object):
    monkeypatch.setenv("WEFT_COMM_TABLE", str(tmp_path / "comm.json"))
    _table.path().write_text(json.dumps({f"4 ranks on {H200}": [row]}))
    with pytest.raises(RuntimeError, match="is no table of algorithms"):
        _table.load_cuda(4, H200)


def test_a_broken_table_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEFT_COMM_TABLE", str(tmp_path / "comm.json"))
    _table.path().write_text("[]")
    with pytest.raises(RuntimeError, match="is no table of algorithms"):
        _table.load(2, _topology.here())
