"""Rows: ratios, shares, goals, JSON and tables, from given times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench.__main__ import main
from bench.goals import (
    AtMost,
    AtMostTimes,
    FasterThan,
    FasterThanBestPeer,
    ShareOfCopy,
    ShareOfLimit,
)
from bench.limits import GOALS_MACHINE, Limits
from bench.norm.cases import NormCase
from bench.plots import lines, save_plots
from bench.result import Result, Row, Timed
from bench.timing import Spread
from bench.units import duration

from bench import report

LIMITS = Limits(copy=50e9, read=40e9, new_huge_pages=20e9, new_small_pages=4e9, fp32=400e9)
CASE = NormCase(
    op="rms_norm", norm="rms_norm", recipe="norm", shape=(1000, 1000), dtype=torch.bfloat16
)  # fmt: skip


class Computing(NormCase):
    roof = "fp32"


class Reading(NormCase):
    roof = "read"


def row(memory="out=", case=CASE, weft=1e-4, **peers: float) -> Row:
    times = {"weft": weft, **peers}
    timed = {n: Timed(Spread.of([t * 0.98, t, t * 1.02])) for n, t in times.items()}
    return Row.build(case, memory, LIMITS, timed, {"onnxruntime": "no | such operator"})


def result(*rows: Row) -> Result:
    machine = {
        "cpu": "a CPU", "cores": 2, "threads": 2, "memory_gib": 4, "isa": "avx2", "kernel": "Linux",
        "torch_isa": "AVX2", "python": "3.12", "packages": {"torch": "2.13"}, "commit": "abc",
        "huge_pages": "madvise", "date": "2026-01-01",
    }  # fmt: skip
    return Result("norm", machine, {"rounds": 3}, LIMITS, list(rows))


def test_derived_figures() -> None:
    r = row(weft=1e-4, eager=5e-4, compiled=2e-4)
    traffic = 2 * 2_000_000 + 2_000
    assert r.best_peer == "compiled"
    assert r.speedup == pytest.approx(2.0)
    assert r.bytes == traffic
    assert r.bandwidth == pytest.approx(traffic / 1e-4)
    assert r.share == pytest.approx(traffic / 50e9 / 1e-4)


def test_new_pages_have_their_own_limit() -> None:
    assert row("fresh").limit == pytest.approx(2_002_000 / 40e9 + 2_000_000 / 20e9)
    assert row("reused").limit == pytest.approx(4_002_000 / 50e9)


def test_what_computes_is_held_against_a_peak() -> None:
    r = row(case=Computing(**vars(CASE)), weft=1e-4)
    assert r.limit == pytest.approx(CASE.flops / 400e9)
    assert r.share == pytest.approx(CASE.flops / 1e-4 / 400e9)
    peers = report.contenders([r])
    assert report.cells(r, peers, report.NoNotes())[-2:] == ["40 GFLOP/s", "10%"]


def test_what_reads_is_held_against_reading() -> None:
    r = row(case=Reading(**vars(CASE)), weft=2e-4)
    assert r.share == pytest.approx(CASE.traffic.total / 2e-4 / 40e9)
    assert report.cells(r, [], report.NoNotes())[-2:] == ["20 GB/s", "50%"]


def test_variants_are_named_below_the_table() -> None:
    timed = {"weft": Timed(Spread.of([1.0])), "eager": Timed(Spread.of([2.0]), "padded")}
    r = Row.build(CASE, "fresh", LIMITS, timed, {})
    notes = report.Notes()
    assert report.cells(r, ["weft", "eager"], notes)[3] == "2 s ±0% [1]"
    assert notes.lines() == ["1. eager: padded"]


def test_cached_cases_have_no_limit() -> None:
    r = row(case=replace(CASE, cold=False), eager=1e-3)
    assert r.limit is None and r.share is None


def test_yardsticks_are_not_ranked() -> None:
    times = {
        "weft": Timed(Spread.of([3e-6])),
        "eager": Timed(Spread.of([6e-6])),
        "an op": Timed(Spread.of([2e-6]), competes=False),
    }
    r = Row.build(replace(CASE, goals=(AtMostTimes(1.6, "an op"),)), "fresh", LIMITS, times, {})
    assert r.best_peer == "eager"
    assert report.contenders([r]) == ["weft", "eager"]
    (verdict,) = r.verdicts
    assert verdict.reached and verdict.measured == "1.50× of 2 µs"


def test_without_weft_nothing_is_derived() -> None:
    r = Row.build(CASE, "fresh", LIMITS, {"eager": Timed(Spread.of([1.0]))}, {"weft": "wrong"})
    assert (r.weft, r.speedup, r.bandwidth, r.share, r.verdicts) == (None, None, None, None, ())


@pytest.mark.parametrize(
    ("goal", "weft", "reached"),
    [
        (ShareOfCopy(0.85), 0.9e-4, [True]),
        (ShareOfCopy(0.85), 1.1e-4, [False]),
        (FasterThanBestPeer(2), 1e-4, [True]),
        (FasterThanBestPeer(2.5), 1e-4, [False]),
        (ShareOfLimit(0.75), 1e-4, [True]),
        (ShareOfLimit(0.85), 1e-4, [False]),
        (FasterThan(2, "peer"), 1e-4, [True]),
        (FasterThan(2.5, "peer"), 1e-4, [False]),
        (FasterThan(1, "nobody"), 1e-4, [None]),
        (AtMostTimes(0.5, "peer"), 1e-4, [True]),
        (AtMostTimes(0.5, "nobody"), 1e-4, [None]),
        (AtMost(1e-3, "fresh"), 1e-4, []),  # for rows of another memory mode
    ],
)
def test_goals(goal, weft: float, reached: list) -> None:
    r = row(case=replace(CASE, goals=(goal,)), weft=weft, peer=2e-4)
    assert [v.reached for v in r.verdicts] == reached


def test_a_time_is_also_a_share_of_the_limit_it_was_set_under() -> None:
    """The goal's machine copies faster: here the time is missed, but not the share."""
    there = GOALS_MACHINE.seconds(CASE, "out=")
    here = LIMITS.seconds(CASE, "out=")
    goal = AtMost(there / 0.8)
    r = row(case=replace(CASE, goals=(goal,)), weft=here / 0.81)
    time, share = r.verdicts
    assert time.reached is False
    assert share.goal == "≥ 80% of the limit" and share.reached is True


def test_limits_take_the_better_measurement() -> None:
    merged = LIMITS.at_best(replace(LIMITS, copy=60e9, read=10e9))
    assert (merged.copy, merged.read) == (60e9, 40e9)
    assert merged.seconds(CASE, "in place") == pytest.approx(CASE.traffic.total / 60e9)


def test_json_round_trip(tmp_path: Path) -> None:
    goal = replace(CASE, goals=(ShareOfCopy(0.85),))
    before = result(row(case=goal, eager=1e-3), row("fresh", eager=2e-3))
    before.save(tmp_path / "deep" / "r.json")
    after = Result.load(tmp_path / "deep" / "r.json")
    assert after == before
    stored = json.loads((tmp_path / "deep" / "r.json").read_text())["rows"][0]
    assert stored["speedup"] == pytest.approx(10)
    assert stored["times"]["eager"]["spread"]["median"] == pytest.approx(1e-3)


def test_results_from_before_there_were_roofs(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    before = result(row(eager=1e-3))
    before.save(path)
    data = json.loads(path.read_text())
    assert data["rows"][0].pop("roof") == "copy"
    path.write_text(json.dumps(data))
    assert Result.load(path) == before


def test_json_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="has schema 0, expected"):
        Result.load(tmp_path / "r.json")


def test_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = replace(CASE, goals=(ShareOfCopy(0.5),))
    result(row(case=case, eager=5e-4), row("fresh", eager=1e-3)).save(tmp_path / "r.json")
    assert main(["render", str(tmp_path / "r.json")]) == 0
    text = capsys.readouterr().out
    assert "| rms_norm 1000×1000 bf16 | out= | 100 µs ±1% | 500 µs ±1% | – [1] | 5.00 |" in text
    assert "1. onnxruntime: no | such operator" in text
    assert "| ≥ 50% of copy | 80% | ✓ |" in text
    assert main(["render", str(tmp_path / "r.json"), "--table", "--case", "*fresh"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.count("|") == 9 for line in lines)


def test_plots(tmp_path: Path) -> None:
    paths = save_plots(result(row(eager=5e-4), row("fresh")), tmp_path)
    assert [p.name for p in paths] == ["norm-bars.png", "norm-roofline.png"]
    assert all(p.stat().st_size < 200_000 for p in paths)


@pytest.mark.parametrize("grows", [0, 1])
def test_a_line_for_each_contender_over_the_size_that_grows(grows: int) -> None:
    shapes = [(n, 10) if grows == 0 else (10, n) for n in (1, 2)]
    rows = [
        row(case=replace(CASE, shape=shape), weft=n * 1e-6, eager=n * 2e-6)
        for n, shape in enumerate(shapes, 1)
    ]
    (axes,) = lines(result(*rows)).axes
    assert axes.get_xlabel() == ("n, of n×10", "n, of 10×n")[grows]
    found = {line.get_label(): line for line in axes.get_lines()}
    assert list(found) == ["weft", "eager", "the limit (copy)"]
    assert list(found["weft"].get_xdata()) == [1, 2]
    assert list(found["eager"].get_ydata()) == pytest.approx(
        [r.bytes / n / 2e3 for n, r in enumerate(rows, 1)]
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (2.314e-3, "2.31 ms"), (417e-6, "417 µs"), (1e-8, "0.01 µs")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
