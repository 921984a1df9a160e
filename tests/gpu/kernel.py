"""Calls the kernels of tests/gpu/kernels, on the simulator or on the GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

BUILD = Path(__file__).resolve().parents[2] / "build"
SIMULATOR = Path(os.environ.get("WEFT_SIMULATOR_DIR", BUILD / "simulator"))
LIBRARY = SIMULATOR / "libweft_gpu_tests.so"
CUDA_LIBRARY = BUILD / "cuda/libweft_gpu_tests_cuda.so"

if not LIBRARY.exists():
    pytest.skip("the simulator is not built: make build/simulator/.built", allow_module_level=True)
torch.ops.load_library(LIBRARY)

HAS_GPU = torch.cuda.is_available() and CUDA_LIBRARY.exists()
if HAS_GPU:
    torch.ops.load_library(CUDA_LIBRARY)

_device = "cpu"


def run(
    name: str,
    inputs: Sequence[torch.Tensor] = (),
    outputs: Sequence[torch.Tensor] = (),
    inouts: Sequence[torch.Tensor] = (),
    numbers: Sequence[int] = (),
) -> None:
    """Inputs may only be read; outputs must be written before they are read. Tensors are the CPU's;
    for the GPU they are copied there, and what is written back again."""
    there = [[t.to(_device) for t in tensors] for tensors in (inputs, inouts, outputs)]
    torch.ops.weft_gpu_tests.run(name, *there, list(numbers))
    for here, device in zip([*inouts, *outputs], [*there[1], *there[2]], strict=True):
        if here is not device:
            here.copy_(device)


@contextmanager
def simulator(seed: int = 0, late: bool = False, races: bool = True) -> Iterator[None]:
    torch.ops.weft_gpu_tests.configure(seed, late, races)
    try:
        yield
    finally:
        torch.ops.weft_gpu_tests.configure(0, False, True)


@contextmanager
def gpu() -> Iterator[None]:
    global _device
    _device = "cuda"
    try:
        yield
    finally:
        _device = "cpu"
