"""The rules of the whole suite.

A test that takes the fixture `backend` runs once on every backend that this machine has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

# OpenMP threads that spin after a call would take the cores from the next test and from xdist's
# other workers: five times the CPU time. Read when torch is loaded, hence before it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from backends import BACKENDS, Backend  # noqa: E402


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
    parser.addoption(
        "--backend",
        metavar="NAME",
        help="run the tests of kernels alone, on the backends whose names begin so: cpu, cuda, …",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--backend")
    if wanted:
        others = [x for x in items if not _backend_of(x).startswith(wanted)]
        config.hook.pytest_deselected(items=others)
        items[:] = [x for x in items if _backend_of(x).startswith(wanted)]
    beyond = [x for x in items if _is_beyond_backend(x)]
    config.hook.pytest_deselected(items=beyond)
    items[:] = [x for x in items if x not in set(beyond)]
    every = config.getoption("--sample")
    if every > 1:
        config.hook.pytest_deselected(items=[x for i, x in enumerate(items) if i % every])
        items[:] = items[::every]


def _backend_of(item: pytest.Item) -> str:
    """The name of the backend that a test runs on; empty if it is no test of a kernel."""
    if item.get_closest_marker("gpu"):
        return "cuda"
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if "everywhere" in parameters:  # tests/gpu: the GPU, or a mode of the simulator
        return "cuda" if parameters["everywhere"] == "cuda" else "simulator"
    return parameters["backend"].name if "backend" in parameters else ""


def _is_beyond_backend(item: pytest.Item) -> bool:
    """What a backend has no kernels for, and what the simulator would repeat for too long."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    backend = parameters.get("backend")
    if backend is None:
        return False
    name, file, family = item.originalname, item.path.stem, item.path.parent.name
    if backend.families is not None and family not in backend.families:
        return True
    values = [*parameters.values(), *parameters.get("row", {}).values()]
    doubles = torch.float64 in values or "gradcheck" in name
    return (doubles and not backend.float64) or not backend.runs(family, file, name, parameters)


def pytest_configure(config: pytest.Config) -> None:
    """Slow tests run when a mark expression is given: `-m slow`, or `-m ""` for all."""
    if not any(arg.startswith("-m") for arg in config.invocation_params.args):
        config.option.markexpr = "not slow"


# The same examples on every run in CI, new ones on every run at a desk; never a deadline, as
# machines differ.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")
