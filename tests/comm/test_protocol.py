"""The protocol between threads under ThreadSanitizer, and its model in SPIN."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C++ compiler on this machine")
    program = tmp_path_factory.mktemp("protocol") / "protocol"
    source = Path(__file__).parent / "protocol.cpp"
    command = [COMPILER, "-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread"]
    subprocess.run([*command, f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    return program


def outcome(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    # Without address randomisation, which not every kernel's has room for the sanitizer in.
    command = [*([shutil.which("setarch"), "-R"] if shutil.which("setarch") else []), program]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("world, calls", [(2, 3000), (3, 1500), (5, 600)])
def test_no_race_between_threads(harness: Path, world: int, calls: int):
    run = outcome(harness, world, calls)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 wrong" in run.stdout and "WARNING" not in run.stderr


def test_own_work_is_no_waiting(harness: Path):
    run = outcome(harness, "slow")
    assert run.returncode == 0 and "WARNING" not in run.stderr


@pytest.mark.parametrize("mutant", ["early", "late"])
def test_the_sanitizer_finds_faults(harness: Path, mutant: str):
    run = outcome(harness, 3, 1500, mutant)
    assert "data race" in run.stderr
