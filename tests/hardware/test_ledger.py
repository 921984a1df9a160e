"""The ledger: what counts as a CUDA source, what counts as passed, who may write it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from . import __main__ as command
from .ledger import LEDGER, Ledger, Pass, sources

PASS = Pass("a GPU", "9.0", "580.1", "2.13.0", "2026-01-01", "abc", passed=10, skipped=1)


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    for name in (
        "core/dtype.h", "gpu/gpu.h", "gpu/ptx/warp.h", "gpu/sim/warp.h", "norm/params.h",
        "norm/cuda/forward.h", "norm/cpu/forward.cpp", "cpu/vec.h", "python/module.cpp",
        "library.cpp", "library_cuda.cpp", "library_simulator.cpp", "README.md",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_sources_are_what_the_cuda_library_is_made_of(csrc: Path) -> None:
    assert list(sources(csrc)) == [
        "core/dtype.h", "gpu/gpu.h", "gpu/ptx/warp.h", "library_cuda.cpp", "norm/cuda/forward.h",
        "norm/params.h",
    ]  # fmt: skip


def test_a_source_passes_until_it_changes(csrc: Path, tmp_path: Path) -> None:
    ledger, file = Ledger(), tmp_path / "ledger.json"
    name = "gpu/gpu.h"
    assert ledger.state(name, sources(csrc)[name]) == "never"
    ledger.record(PASS, sources(csrc))
    ledger.write(file)
    ledger = Ledger.read(file)
    assert ledger.passes == [PASS]
    assert all(ledger.state(n, h) == "passed" for n, h in sources(csrc).items())
    (csrc / name).write_text("other")
    assert ledger.state(name, sources(csrc)[name]) == "changed"
    assert ledger.state("core/dtype.h", sources(csrc)["core/dtype.h"]) == "passed"

    (csrc / "core/dtype.h").unlink()
    ledger.record(PASS, sources(csrc))
    assert "core/dtype.h" not in ledger.hashes and set(ledger.pass_of.values()) == {1}


def test_status_names_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main(["status"])
    printed = capsys.readouterr().out
    states = [Ledger.read().state(name, now) for name, now in sources().items()]
    assert code == (0 if set(states) == {"passed"} else 1)
    assert all(name in printed for name in sources())
    assert f"{states.count('never')} never passed" in printed


def test_nothing_is_recorded_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = LEDGER.read_bytes() if LEDGER.exists() else None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["record"]) == 1
    assert "no GPU here" in capsys.readouterr().out
    assert (LEDGER.read_bytes() if LEDGER.exists() else None) == before


def test_every_part_of_the_suite_must_pass(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        """<testsuites><testsuite>
        <testcase classname="tests.norm.test_forward" name="a[cuda]"/>
        <testcase classname="norm.test_forward" name="b[cuda]"/>
        <testcase classname="tests.norm.test_int8" name="c[cuda]"><skipped/></testcase>
        <testcase classname="tests.gpu.test_async" name="d[cuda]"><failure/></testcase>
        </testsuite></testsuites>"""
    )
    assert command.count(report) == ({"tests/norm": 2}, {"skipped": 1, "failure": 1})
