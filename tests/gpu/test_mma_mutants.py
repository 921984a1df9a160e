"""Wrong kernels with matrices, each of which the simulator must refuse."""

from __future__ import annotations

import pytest
import torch

from .test_mutants import RACE, caught

pytestmark = pytest.mark.usefixtures("simulated")


def words(count: int) -> list[torch.Tensor]:
    return [torch.empty(count, dtype=torch.int32)]


def test_misaligned_row():
    caught("misaligned_row", "read of 16 bytes .* not aligned", outputs=words(32))


def test_early_ldmatrix():
    caught("early_ldmatrix", f"{RACE} a write by thread|not been written", outputs=words(32))
