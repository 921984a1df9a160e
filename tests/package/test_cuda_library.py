"""libweft_cuda.so, as `make cuda` builds it beside a CPU torch, in a torch that has CUDA."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import weft

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build/cuda/libweft_cuda.so"

pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason="the CUDA library is not built: make cuda"),
    pytest.mark.skipif(torch.version.cuda is None, reason="this build of torch has no CUDA"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with this library in it."""
    package = tmp_path_factory.mktemp("site") / "weft"
    shutil.copytree(Path(weft.__file__).parent, package)
    shutil.copy(LIBRARY, package)
    return package.parent


def run(site: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def doctor(site: Path) -> dict:
    return json.loads(run(site, "-m", "weft.cli", "doctor", "--json"))


def test_it_loads_and_says_what_it_was_built_for(doctor: dict) -> None:
    assert set(doctor["cuda"]["library"]["architectures"]) >= {"sm_80", "sm_90a", "compute_80"}


def test_every_op_with_a_cpu_kernel_has_one_on_cuda(doctor: dict) -> None:
    reasons = {op: row["CUDA"]["why_not"] for op, row in doctor["kernels"].items()}
    assert set(reasons.values()) == {doctor["cuda"]["why_not"]}


def test_it_says_whether_there_is_a_gpu(doctor: dict) -> None:
    why_not = doctor["cuda"]["why_not"]
    if torch.cuda.is_available():
        assert why_not is None and doctor["cuda"]["gpus"]
    else:
        assert why_not in ("there is no GPU driver", "torch finds no GPU")


@pytest.mark.parametrize("switch", ["_prefer_sm90", "_as_sm80"])
def test_it_lets_tests_choose_kernels(site: Path, switch: str) -> None:
    call = f"import torch, weft; [torch.ops.weft.{switch}(on) for on in (True, False)]"
    assert run(site, "-c", call) == ""
