"""Kernels run in several orders of threads, with early and late completion, and on a GPU if any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

BUILD = Path(__file__).resolve().parents[2] / "build"
CUDA_LIBRARY = BUILD / "cuda/libweft_gpu_tests_cuda.so"
HAS_GPU = torch.cuda.is_available() and CUDA_LIBRARY.exists()

MODES = [(0, False), (1, False), (2, True), (3, True)]  # seed, late completion
PLACES = [*MODES, *(["cuda"] if HAS_GPU else [])]


def name_of(place: tuple[int, bool] | str) -> str:
    return place if isinstance(place, str) else f"seed{place[0]}-{'late' if place[1] else 'early'}"


@pytest.fixture(params=MODES, ids=name_of)
def simulated(request: pytest.FixtureRequest) -> Iterator[None]:
    """For kernels that the simulator alone can run, or must refuse."""
    from .kernel import simulator

    with simulator(seed=request.param[0], late=request.param[1]):
        yield


@pytest.fixture(params=PLACES, ids=name_of)
def everywhere(request: pytest.FixtureRequest) -> Iterator[None]:
    """For correct kernels."""
    from .kernel import gpu, simulator

    if request.param == "cuda":
        with gpu():
            yield
    else:
        with simulator(seed=request.param[0], late=request.param[1]):
            yield
