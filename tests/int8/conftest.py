"""Tensors of these tests are made where the backend has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[None]:
    if "backend" not in request.fixturenames:
        yield
        return
    with torch.device(request.getfixturevalue("backend").device):
        yield
