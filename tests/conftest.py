"""Backends, and the rules of the whole suite.

A test that takes the fixture `backend` runs once on every backend that this machine has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import hypothesis
import pytest
import torch

from weft import _C


@dataclass(frozen=True)
class Backend:
    """Where kernels run: a torch device and, on the CPU, an instruction set level."""

    name: str
    device: str = "cpu"
    isa: str | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        before = _C.isa_level()
        if self.isa is not None:
            _C.force_isa(self.isa)
        try:
            yield
        finally:
            _C.force_isa(before)


def cpu_levels() -> list[Backend]:
    return [Backend(f"cpu-{isa}", isa=isa) for isa, here in _C.isa_levels().items() if here]


def cuda() -> list[Backend]:
    built = torch._C._dispatch_has_kernel_for_dispatch_key("weft::norm_forward", "CUDA")
    return [Backend("cuda", "cuda")] if built and torch.cuda.is_available() else []


BACKENDS = [*cpu_levels(), *cuda()]  # a new backend adds itself to this line


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with request.param.active():
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores torch's thread count after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers alone, in any order and on any xdist worker."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sample",
        type=int,
        default=1,
        metavar="N",
        help="run every Nth test only: for runs under sanitizers or in a second environment",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    every = config.getoption("--sample")
    if every > 1:
        config.hook.pytest_deselected(items=[x for i, x in enumerate(items) if i % every])
        items[:] = items[::every]


def pytest_configure(config: pytest.Config) -> None:
    """Slow tests run when a mark expression is given: `-m slow`, or `-m ""` for all."""
    if not any(arg.startswith("-m") for arg in config.invocation_params.args):
        config.option.markexpr = "not slow"


# The same examples on every run in CI, new ones on every run at a desk; never a deadline, as
# machines differ.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")
