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
def doctor(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """`weft doctor` of the package with this library in it."""
    package = tmp_path_factory.mktemp("site") / "weft"
    shutil.copytree(Path(weft.__file__).parent, package)
    shutil.copy(LIBRARY, package)
    report = subprocess.run(
        [sys.executable, "-m", "weft.cli", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return json.loads(report)


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
