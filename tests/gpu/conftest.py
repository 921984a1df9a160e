"""Kernels run in several orders of threads, with early and late completion, and on a GPU if any."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

MODES = [(0, False), (1, False), (2, True), (3, True)]


def mode_name(mode: tuple[int, bool]) -> str:
    return f"seed{mode[0]}-{'late' if mode[1] else 'early'}"


@pytest.fixture(params=MODES, ids=mode_name)
def simulated(request: pytest.FixtureRequest) -> Iterator[None]:
    """For kernels that the simulator alone can run, or must refuse."""
    from .kernel import simulator

    with simulator(seed=request.param[0], late=request.param[1]):
        yield


@pytest.fixture(params=[*MODES, "cuda"], ids=lambda p: p if p == "cuda" else mode_name(p))
def everywhere(request: pytest.FixtureRequest) -> Iterator[None]:
    """For correct kernels."""
    from .kernel import HAS_GPU, gpu, simulator

    if request.param == "cuda":
        if not HAS_GPU:
            pytest.skip("no GPU here, or its test library is not built: make cuda")
        with gpu():
            yield
    else:
        with simulator(seed=request.param[0], late=request.param[1]):
            yield
