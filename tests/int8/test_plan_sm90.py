"""Which tiles sm_90a's int8 products take: a pure function, which needs no GPU."""

from __future__ import annotations

import pytest
import torch

from backends import SIMULATED_OPS

# rows and columns of a team's tile, blocks of the team
TILES = {0: (256, 256, 2), 1: (128, 128, 1), 2: (64, 128, 1), 3: (16, 128, 1)}
WIDE, SQUARE, FEW_64, FEW_16 = TILES


@pytest.fixture(autouse=True)
def library() -> None:
    if not SIMULATED_OPS.exists():
        pytest.skip("the simulator is not built: make build/simulator/.built")
    torch.ops.load_library(SIMULATED_OPS)


def plan(M: int, N: int, K: int, multiprocessors: int = 132) -> tuple[int, int, int]:
    return torch.ops.weft_simulator.int8_plan_sm90(M, N, K, multiprocessors)[:3]


@pytest.mark.parametrize("multiprocessors", [1, 4, 78, 132])
@pytest.mark.parametrize("M", [1, 16, 17, 64, 65, 128, 300, 1000, 8192])
def test_blocks(M: int, multiprocessors: int) -> None:
    """They fill the GPU and no more; each has a tile at least, each split some depth."""
    for N in (1, 128, 130, 4096, 11008):
        for K in (1, 128, 1000, 8192, 65536):
            shape, splits, grid = plan(M, N, K, multiprocessors)
            rows, columns, blocks = TILES[shape]
            tiles = -(-M // rows) * -(-N // columns)
            assert grid % (blocks * splits) == 0 and splits in (1, 2, 4, 8)
            clusters = splits > 2 and multiprocessors >= 16  # these leave what is beside 16
            room = multiprocessors // 16 * 16 if clusters else multiprocessors
            assert grid <= max(room, blocks)
            assert grid // (blocks * splits) <= tiles
            if splits > 1:
                assert grid == tiles * splits and -(-K // 128) >= 4 * splits


def test_shapes() -> None:
    """Few rows by tiles of their own, many by the widest, unless these leave too much empty."""
    assert plan(1, 4096, 8192) == (FEW_16, 4, 128)
    assert plan(64, 8192, 8192) == (FEW_64, 2, 128)
    assert plan(128, 4096, 8192) == (SQUARE, 4, 128)
    assert plan(1024, 8192, 21760) == (WIDE, 1, 132)
    assert plan(8192, 8192, 8192) == (WIDE, 1, 132)


def test_depth() -> None:
    """What int32 does not hold is left to other kernels."""
    assert plan(64, 128, 65536)[0] >= 0 and plan(64, 128, 65537)[0] == -1


@pytest.mark.parametrize("M", [1, 64, 300])
def test_addresses(M: int) -> None:
    """Tensor copies reach rows that begin at multiples of 16 bytes, of x and of the result."""
    find = torch.ops.weft_simulator.int8_plan_sm90
    whole = find(M, 128, 300, 132)
    assert whole[0] >= 0 and whole[3]
    assert find(M, 128, 300, 132, x_at=16, x_row=32, out_at=16) == whole
    for off in (1, 4, 8):
        assert find(M, 128, 300, 132, x_at=off)[0] == find(M, 128, 300, 132, x_row=off)[0] == -1
        assert find(M, 128, 300, 132, out_at=off) == (*whole[:3], False)
    assert not find(M, 130, 300, 132)[3]  # its rows
