"""Every test of a kernel runs in several orders of threads, and with early and late completion."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

MODES = [(0, False), (1, False), (2, True), (3, True)]


@pytest.fixture(params=MODES, ids=lambda mode: f"seed{mode[0]}-{'late' if mode[1] else 'early'}")
def simulated(request: pytest.FixtureRequest) -> Iterator[None]:
    from .kernel import simulator

    with simulator(seed=request.param[0], late=request.param[1]):
        yield
