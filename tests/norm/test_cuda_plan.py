"""The geometry of CUDA launches: a pure function, which needs no GPU."""

from __future__ import annotations

import pytest
import torch

from backends import SIMULATED_OPS

if not SIMULATED_OPS.exists():
    pytest.skip("the simulator is not built: make build/simulator/.built", allow_module_level=True)
torch.ops.load_library(SIMULATED_OPS)

WIDTHS = [*range(1, 1100), *(2**k + d for k in range(11, 21) for d in (-1, 0, 1, 9))]


@pytest.mark.parametrize("most", [16, 32])  # columns of a thread, backward and forward
@pytest.mark.parametrize("clusters", [True, False])
def test_geometry(clusters: bool, most: int) -> None:
    torch.ops.weft_simulator.configure(0, False, clusters)
    for width in WIDTHS:
        lanes, threads, rows, split, span = torch.ops.weft_simulator.geometry(width, most)
        assert threads == lanes * rows and threads <= 512 and threads % 32 == 0, width
        if lanes <= 32:  # several rows share a block, and no row a warp's edge
            assert 32 % lanes == 0 and split == 1, width
        else:
            assert lanes % 32 == 0 and rows == 1, width
        assert split == 1 or (clusters and split in (2, 4, 8, 16) and span % 8 == 0), width
        assert (split - 1) * span < width <= split * span, width
        if clusters and width <= 512 * 16 * most or width <= 512 * most:
            assert span <= lanes * most, width  # in registers
