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
    ops = {
        name.removeprefix("weft::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("weft::")
    }
    assert set(report["kernels"]) == ops - {"cuda_build_info"}
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


def test_limits_by_number_of_threads(threads: None):
    torch.set_num_threads(1)
    report = _doctor.examine(limits=True)
    assert list(report["limits"]) == ["1"]
    assert "limits with 1 thread\n" in _doctor.as_text(report)
    json.dumps(report)


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
