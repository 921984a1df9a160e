"""`weft doctor`: a reason for everything that cannot run, as text and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from weft import _C, _doctor, cli


@pytest.fixture
def report() -> _doctor.Report:
    return _doctor.examine()


def test_json_holds_the_whole_report(capsys: pytest.CaptureFixture[str], report):
    assert cli.main(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"weft", "torch", "cpu", "threads", "memory", "cuda", "kernels"}
    assert printed["kernels"] == report["kernels"]
    assert printed["cpu"]["level"] == _C.isa_level()
    assert printed["threads"]["torch"] == torch.get_num_threads()


def test_text_names_what_matters(capsys: pytest.CaptureFixture[str], report):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for expected in (
        f"weft {_C.build_info()['version']}",
        torch.__version__,
        *_C.isa_levels(),
        *report["kernels"],
    ):
        assert expected in text
    assert all(len(line) == len(line.rstrip()) for line in text.splitlines())


def test_every_op_of_weft_has_a_row(report):
    names = torch._C._dispatch_get_all_op_names()
    ops = {name.removeprefix("weft::") for name in names if name.startswith("weft::")}
    without_kernels = {op for op in ops if op.startswith("_")} | {"cuda_build_info"}
    assert set(report["kernels"]) == ops - without_kernels
    assert "layer_norm" in ops and "layer_norm.out" in ops


def test_every_kernel_runs_or_has_a_reason(report):
    for op, row in report["kernels"].items():
        assert set(row) == {"CPU", "CUDA"}
        for backend, state in row.items():
            assert state["available"] is (state["why_not"] is None), (op, backend)
    assert report["kernels"]["layer_norm"]["CPU"]["available"]
    if not torch.cuda.is_available():
        assert not report["kernels"]["layer_norm"]["CUDA"]["available"]


def test_a_missing_backend_is_the_reason_in_its_whole_column():
    table = _doctor.kernels(why_no_cpu=None, why_no_cuda="the dog ate it")
    assert {row["CUDA"]["why_not"] for row in table.values()} == {"the dog ate it"}


def test_an_op_without_a_kernel_is_told_apart():
    library = torch.library.Library("weft", "FRAGMENT")
    library.define("only_declared(Tensor x) -> Tensor")
    row = _doctor.kernels(None, None)["only_declared"]
    assert row["CPU"] == {"available": False, "why_not": "weft has no CPU kernel for it"}
    library._destroy()


def test_limits_by_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    bandwidth = dict.fromkeys(["read", "copy", "touch_small_pages", "touch_huge_pages"], 1.5e9)
    monkeypatch.setattr(_C, "memory_bandwidth", lambda threads: bandwidth)
    monkeypatch.setattr(_C, "peaks", lambda threads: {"fp32": threads * 2e9, "bf16": 0, "int8": 0})
    monkeypatch.setattr(_C, "fork_join", lambda threads: 1e-6)
    report = _doctor.examine(limits=True)
    json.dumps(report)
    assert list(report["limits"]) == [str(n) for n in sorted({1, torch.get_num_threads()})]
    lines = [" ".join(line.split()) for line in _doctor.as_text(report).splitlines()]
    for expected in (
        "limits with 1 thread",
        "touch small pages 1.5 GB/s",
        "fp32 2 G operations/s",
        "int8 no instruction at this level",
        "fork and join 1.00 µs",
    ):
        assert expected in lines


def test_text_with_a_gpu(report):
    report["cuda"] = {
        "library": {"runtime": "13.0", "driver": "13.1", "architectures": ["sm_80", "sm_90a"]},
        "gpus": [{"name": "a fast one", "capability": "9.0"}],
        "why_not": None,
    }
    lines = [" ".join(line.split()) for line in _doctor.as_text(report).splitlines()]
    for expected in (
        "CUDA: yes",
        "built for sm_80 sm_90a, CUDA 13.0",
        "driver CUDA 13.1",
        "GPU a fast one, compute capability 9.0",
    ):
        assert expected in lines


def test_a_wrong_environment_is_reported_and_no_crash():
    done = subprocess.run(
        [sys.executable, "-m", "weft.cli", "doctor", "--json"],
        env={**os.environ, "WEFT_CPU_ISA": "sse9"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["cpu"]["level"] is None
    assert "WEFT_CPU_ISA is 'sse9'" in report["cpu"]["error"]
    assert "WEFT_CPU_ISA is 'sse9'" in report["kernels"]["layer_norm"]["CPU"]["why_not"]


@pytest.mark.parametrize("arguments", [[], ["cure"]])
def test_other_commands_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: weft" in capsys.readouterr().err
