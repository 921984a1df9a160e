"""Calls the kernels of tests/gpu/kernels: CPU tensors go to the simulator, CUDA's to the GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SIMULATOR = Path(os.environ.get("WEFT_SIMULATOR_DIR", ROOT / "build/simulator"))
LIBRARY = SIMULATOR / "libweft_gpu_tests.so"

if not LIBRARY.exists():
    pytest.skip("the simulator is not built: make build/simulator/.built", allow_module_level=True)
torch.ops.load_library(LIBRARY)


def run(
    name: str,
    inputs: Sequence[torch.Tensor] = (),
    outputs: Sequence[torch.Tensor] = (),
    inouts: Sequence[torch.Tensor] = (),
    numbers: Sequence[int] = (),
) -> None:
    """Inputs may only be read; outputs must be written before they are read."""
    torch.ops.weft_gpu_tests.run(name, list(inputs), list(inouts), list(outputs), list(numbers))


@contextmanager
def simulator(seed: int = 0, late: bool = False, races: bool = True) -> Iterator[None]:
    torch.ops.weft_gpu_tests.configure(seed, late, races)
    try:
        yield
    finally:
        torch.ops.weft_gpu_tests.configure(0, False, True)
