"""Calls the kernels of tests/gpu/kernels, on the simulator or on the GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from .conftest import BUILD, CUDA_LIBRARY, HAS_GPU

LIBRARY = Path(os.environ.get("WEFT_SIMULATOR_DIR", BUILD / "simulator")) / "libweft_gpu_tests.so"

if not LIBRARY.exists():
    pytest.skip("the simulator is not built: make build/simulator/.built", allow_module_level=True)
torch.ops.load_library(LIBRARY)

if HAS_GPU:
    torch.ops.load_library(CUDA_LIBRARY)

_device = "cpu"


def run(
    name: str,
    inputs: Sequence[torch.Tensor] = (),
    outputs: Sequence[torch.Tensor] = (),
    inouts: Sequence[torch.Tensor] = (),
    numbers: Sequence[int] = (),
    partly: bool = False,
) -> None:
    """Inputs may only be read; outputs must be written before they are read, and in full, unless
    `partly`. Tensors are the CPU's; for the GPU they are copied there, and what is written back."""
    there = [[t.to(_device) for t in tensors] for tensors in (inputs, inouts, outputs)]
    written = torch.ops.weft_gpu_tests.run(name, *there, list(numbers))
    assert partly or written == len(outputs), "an output has not been written in full"
    for here, device in zip([*inouts, *outputs], [*there[1], *there[2]], strict=True):
        if here is not device:
            here.copy_(device)


@contextmanager
def simulator(
    seed: int = 0, late: bool = False, races: bool = True, multiprocessors: int = 4
) -> Iterator[None]:
    torch.ops.weft_gpu_tests.configure(seed, late, races, multiprocessors)
    try:
        yield
    finally:
        torch.ops.weft_gpu_tests.configure(0, False, True, 4)


@contextmanager
def gpu() -> Iterator[None]:
    global _device
    _device = "cuda"
    try:
        yield
    finally:
        _device = "cpu"
