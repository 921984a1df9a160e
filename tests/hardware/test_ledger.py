"""The ledger: what counts as a CUDA source, what counts as passed, who may write it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from . import __main__ as command
from .ledger import LEDGER, Ledger, Pass, sources

PASS = Pass("a GPU", "9.0", "580.1", "2.13.0", "2026-01-01", "abc", 10, 1, sanitized=2)


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    for name in (
        "core/dtype.h", "gpu/gpu.h", "gpu/ptx/warp.h", "gpu/sim/warp.h", "norm/params.h",
        "norm/cuda/forward.h", "norm/cpu/forward.cpp", "cpu/vec.h", "python/module.cpp",
        "library.cpp", "library_cuda.cpp", "library_simulator.cpp", "library_simulator_norm.h",
        "README.md",
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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that seems to have a GPU, and weft for it; the ledger that it would write."""
    file = tmp_path / "ledger.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("weft._library.why_no_cuda", None)
    monkeypatch.setattr(command, "_describe", lambda counts, checked: PASS)
    monkeypatch.setattr(command, "LEDGER", command.ROOT / "ledger.json")
    monkeypatch.setattr(Ledger, "write", lambda self: file.write_text("written"))
    return file


def suite(monkeypatch: pytest.MonkeyPatch, sanitizer: str | None, **outcomes: str) -> list:
    """Stands in for pytest: every part has a test that passes, but for those named.

    Gives back what it was called with.
    """
    calls: list = []

    def pytest_counts(arguments, under=(), **environment):
        calls.append((arguments, under, environment))
        verdicts = {p: outcomes.get(p.partition("/")[2], "passed") for p in command.PARTS}
        failed = "failed" in verdicts.values() or (bool(under) and "memcheck" in outcomes)
        return int(failed), {part: Counter({v: 1}) for part, v in verdicts.items()}

    monkeypatch.setattr(command, "pytest_counts", pytest_counts)
    monkeypatch.setattr(command, "find_sanitizer", lambda: sanitizer)
    return calls


@pytest.mark.parametrize("sanitizer", [None, "compute-sanitizer"])
def test_a_pass_is_recorded(
    gpu: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sanitizer: str | None,
) -> None:
    calls = suite(monkeypatch, sanitizer)
    assert command.main(["record"]) == 0
    assert gpu.read_text() == "written"
    assert [under[:1] for _, under, _ in calls] == [(), ("compute-sanitizer",)][: len(calls)]
    assert len(calls) == (2 if sanitizer else 1)
    printed = capsys.readouterr().out
    assert all(part in printed for part in command.PARTS)
    assert ("no compute-sanitizer" in printed) == (sanitizer is None)


@pytest.mark.parametrize(
    "outcomes", [{"norm": "failed"}, {"comm": "skipped"}, {"memcheck": "errors"}]
)
def test_what_fails_is_not_recorded(
    gpu: Path, monkeypatch: pytest.MonkeyPatch, outcomes: dict[str, str]
) -> None:
    suite(monkeypatch, "compute-sanitizer", **outcomes)
    assert command.main(["record"]) == 1
    assert not gpu.exists()


def test_an_installed_weft_is_run_and_not_recorded(
    gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = suite(monkeypatch, None)
    monkeypatch.setattr("weft.__file__", "/usr/lib/python3/dist-packages/weft/__init__.py")
    assert command.main(["record"]) == 1
    assert "not built here" in capsys.readouterr().out and not calls
    assert command.main(["run"]) == 0
    assert calls and not gpu.exists()


def test_nothing_is_recorded_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = LEDGER.read_bytes() if LEDGER.exists() else None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["record"]) == 1
    assert "no GPU here" in capsys.readouterr().out
    assert (LEDGER.read_bytes() if LEDGER.exists() else None) == before


def test_what_needs_a_gpu_is_marked() -> None:
    """Or the suite, which chooses by backend, would pass it over."""
    for part in command.PARTS:
        for file in (command.ROOT / part).glob("test_*.py"):
            text = file.read_text()
            assert "cuda.is_available" not in text or "pytest.mark.gpu" in text, file


def test_reports_are_counted_by_part(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        """<testsuites><testsuite>
        <testcase classname="tests.norm.test_forward" name="a[cuda]"/>
        <testcase classname="norm.test_forward" name="b[cuda]"/>
        <testcase classname="tests.norm.test_int8" name="c[cuda]"><skipped/></testcase>
        <testcase classname="tests.gpu.test_async" name="d[cuda]"><failure/></testcase>
        </testsuite></testsuites>"""
    )
    assert command.count(report) == {
        "tests/norm": {"passed": 2, "skipped": 1}, "tests/gpu": {"failed": 1}
    }  # fmt: skip
