"""The norm family: byte formulas, rotation, checking, and a run from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench.__main__ import main
from bench.norm import contenders
from bench.norm.cases import NormCase
from bench.peers import COMPILED, EAGER, ONNX
from bench.rotation import MARGIN, last_level_cache, sets_of_inputs

from bench import norm, runner

CASES = {c.name: c for c in norm.cases("cpu")}
# What is measured on a GPU, to be run on the CPU.
GPU_CASES = {c.name: replace(c, device="cpu") for c in norm.cases("cuda")}
MIB = 1 << 20


def test_names_are_unique() -> None:
    assert len(CASES) == len(norm.cases("cpu"))
    assert len(GPU_CASES) == len(norm.cases("cuda"))
    assert all(c.device == "cuda" for c in norm.cases("cuda"))


@pytest.mark.parametrize(
    ("name", "read", "write"),
    [
        ("rms_norm/4096x4096/bf16/out", 32, 32),
        ("layer_norm/4096x4096/fp32/out", 64, 64),
        ("add_rms_norm/4096x4096/bf16/out", 64, 64),
        ("fused_add_rms_norm/4096x4096/bf16/inplace", 64, 64),
        ("rms_norm_int8/4096x4096/bf16/out", 32, 16),
        ("layer_norm_train/4096x4096/bf16/fresh", 96, 64),
    ],
)
def test_traffic(name: str, read: int, write: int) -> None:
    """Whole tensors by hand, in MiB; parameters and scales add less than a thousandth."""
    traffic = CASES[name].traffic
    assert traffic.read / MIB == pytest.approx(read, rel=1e-3)
    assert traffic.write / MIB == pytest.approx(write, rel=1e-3)
    assert traffic.total == traffic.read + traffic.write


def test_traffic_counts_small_tensors() -> None:
    case = replace(CASES["layer_norm_int8/4096x4096/bf16/out"], shape=(3, 5))
    assert (case.traffic.read, case.traffic.write) == (3 * 5 * 2 + 2 * 5 * 2, 3 * 5 + 3 * 4)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rotation_leaves_the_cache(case: NormCase) -> None:
    cache = last_level_cache()
    sets = sets_of_inputs(case, cache)
    if case.cold:
        assert sets >= 2 and sets * case.traffic.total >= MARGIN * cache
    else:
        assert sets == 1


def test_cache_size_is_read_from_the_system(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1024K", "96M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_level_cache(tmp_path) == 96 * MIB
    assert last_level_cache(tmp_path / "nothing") > 0


def test_jobs_repeat_only_where_memory_matters() -> None:
    jobs = runner.jobs(list(CASES.values()), ("fresh", "reused"))
    assert {j.memory for j in jobs} == {"fresh", "reused", "out=", "in place"}
    assert [j.mode for j in jobs] == sorted(j.mode for j in jobs), "mode by mode"
    reused = [j.case for j in jobs if j.mode == "reused"]
    assert reused and all(c.output == "fresh" for c in reused)
    in_cache = [j for j in jobs if not j.case.cold and j.case.traffic.write > 1 << 20]
    assert in_cache and all(j.mode == "reused" for j in in_cache), "or the pages go back"
    assert len(jobs) == len({(j.case.name, j.mode) for j in jobs})


def test_a_wrong_result_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = norm.shrink(CASES["rms_norm/4096x4096/bf16/fresh"])

    def wrong(case, tensors):
        return contenders.Bound(lambda: tensors["x"] * 1.5, contenders.as_tuple)

    monkeypatch.setattr(contenders, "_bind_eager", wrong)
    monkeypatch.setattr(contenders, "why_not", lambda peer: "left out here")
    (measurement,) = runner.run(norm, [runner.Job(case, "fresh")], settings())
    assert set(measurement.times) == {"weft"}
    assert "output 0 is wrong" in measurement.absent[EAGER]
    assert measurement.absent[COMPILED] == "left out here"


def test_compare_accepts_rounding_and_refuses_more() -> None:
    case = norm.shrink(CASES["rms_norm_int8/4096x4096/bf16/out"])
    truth = norm.truth(case, norm.inputs(case, 0))
    values, scale = truth
    assert norm.compare(case, (values, scale.float()), truth) == ""
    assert "output 0 is wrong" in norm.compare(case, (values // 2, scale), truth)
    assert "output 1 is wrong" in norm.compare(case, (values, scale * 1.2), truth)
    assert "output 1 is wrong" in norm.compare(case, (values, scale * float("nan")), truth)
    assert "returned 1 tensors" in norm.compare(case, (values,), truth)
    assert "has shape" in norm.compare(case, (values[1:], scale), truth)


@pytest.mark.parametrize("case", [*CASES.values(), *GPU_CASES.values()], ids=[*CASES, *GPU_CASES])
def test_weft_is_right_on_every_case(case: NormCase) -> None:
    small = norm.shrink(case)
    truth = norm.truth(small, norm.inputs(small, 0))
    ours, eager = contenders.offers(small, threads=1)[:2]
    for offer in (ours, eager):
        assert offer.build is not None
        with torch.inference_mode(not small.trains):
            bound = offer.build()(norm.inputs(small, 0))
            assert norm.compare(small, bound.outputs(bound.run()), truth) == ""


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """A whole quick run; without torch.compile, which would take minutes."""
    here = contenders.why_not
    monkeypatch.setattr(contenders, "why_not", lambda p: "slow" if p == COMPILED else here(p))
    threads = torch.get_num_threads()
    arguments = ["norm", "--quick", "--case", "*add*", "--memory", "fresh", "--rounds", "2"]
    try:
        code = main([*arguments, "--json", str(tmp_path / "r.json"), "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    data = json.loads((tmp_path / "r.json").read_text())
    expected = {norm.shrink(c).name for name, c in CASES.items() if "add" in name}
    assert {row["case"] for row in data["rows"]} == expected
    for row in data["rows"]:
        assert row["weft"] > 0
        assert row["speedup"] == pytest.approx(
            row["times"][row["best_peer"]]["spread"]["median"] / row["weft"]
        )
        assert row["absent"][COMPILED] == "slow"
        assert ONNX in row["times"] or row["absent"][ONNX]
    assert data["machine"]["threads"] == 1 and data["limits"]["copy"] > 0
    assert "× best peer" in capsys.readouterr().out


def test_no_case_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["norm", "--case", "nothing"]) == 1
    assert "No case of norm matches 'nothing'" in capsys.readouterr().out


def settings() -> runner.Settings:
    return runner.Settings(
        rounds=2, threads=1, modes=("fresh",), rest=0.0, sample=0.0, cache=0, quick=True
    )


def test_what_a_gpu_does_is_timed_as_a_whole() -> None:
    """Its calls return before they are done."""
    cold = CASES["rms_norm/4096x4096/bf16/out"]
    assert not settings().plan(cold, lambda: None).batched
    assert replace(settings(), device="cuda").plan(cold, lambda: None).batched
