"""SPIN finds no fault in the models of the protocol, and finds those that are put in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parent
MISSING = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not on this machine: {', '.join(MISSING)} (Debian: apt install spin)"
)


def verify(folder: Path, model: str, *defines: str) -> subprocess.CompletedProcess[str]:
    """What SPIN's exhaustive search says, deadlocks and assertions included."""
    spin = ["spin", *defines, "-a", MODELS / f"{model}.pml"]
    subprocess.run(spin, cwd=folder, check=True, capture_output=True, text=True)
    compiler = [
        "gcc",
        "-O2",
        "-w",
        "-DSAFETY",
        "-DCOLLAPSE",
        "-DVECTORSZ=2048",
        "pan.c",
        "-o",
        "pan",
    ]
    subprocess.run(compiler, cwd=folder, check=True)
    search = ["./pan", "-m200000", "-w24"]
    found = subprocess.run(search, cwd=folder, capture_output=True, text=True, timeout=600)
    assert "max search depth too small" not in found.stdout
    return found


@pytest.mark.parametrize(
    "model, defines",
    [
        ("ring", ("-DMORTAL",)),
        ("ring", ("-DWORLD=3", "-DMORTAL")),
        ("ring", ("-DPRODUCTS", "-DMORTAL")),
        ("ring", ("-DPRODUCTS", "-DWORLD=3")),
        ("sleep", ()),
        ("channel", ("-DMORTAL",)),
        ("channel", ("-DWORLD=3", "-DMORTAL")),
    ],
)
def test_no_fault(tmp_path: Path, model: str, defines: tuple[str, ...]):
    found = verify(tmp_path, model, *defines)
    assert found.returncode == 0, found
    assert "errors: 0" in found.stdout and "Search not completed" not in found.stdout, found


@pytest.mark.parametrize(
    "model, defines",
    [
        ("ring", ("-DWAITLESS",)),
        ("ring", ("-DRING=4", "-DREADS=0")),
        ("ring", ("-DPRODUCTS", "-DWAITLESS")),
        ("ring", ("-DPRODUCTS", "-DROOMS=4")),
        ("sleep", ("-DRELAXED",)),
        ("channel", ("-DWAITLESS",)),
        ("channel", ("-DSLOTS=1",)),
        ("channel", ("-DWORLD=3", "-DMORTAL", "-DHEEDLESS")),
        ("channel", ("-DWORDS=1",)),
    ],
)
def test_faults_are_found(tmp_path: Path, model: str, defines: tuple[str, ...]):
    found = verify(tmp_path, model, *defines)
    assert "errors: 1" in found.stdout, found
