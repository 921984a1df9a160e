"""Who works on what in the linear layers' CUDA kernels: pure functions of shapes and of the GPU."""

from __future__ import annotations

import pytest
import torch

from backends import SIMULATED_OPS

GPU = 108  # multiprocessors


@pytest.fixture(autouse=True)
def simulator() -> None:
    if not SIMULATED_OPS.exists():
        pytest.skip("the simulator is not built: make build/simulator/.built")
    torch.ops.load_library(SIMULATED_OPS)


@pytest.mark.parametrize("M", [1, 16, 17, 64, 65, 1000, 8192])
@pytest.mark.parametrize("N", [1, 64, 4096, 21760])
@pytest.mark.parametrize("K", [1, 128, 4096, 65536, 65537, 200000])
def test_products(M: int, N: int, K: int) -> None:
    tiles_m, tiles_n, splits, steps = torch.ops.weft_simulator.int8_plan(M, N, K, GPU)
    depth = -(-K // 128)
    assert tiles_m in {-(-M // m) for m in (16, 64, 128)} and tiles_n >= -(-N // 128)
    assert (splits - 1) * steps < depth <= splits * steps  # all of K, and no split without any
    if K > 65536:  # sums that int32 holds, cut the same way for every M
        assert steps == 512
    elif splits > 1:
        assert steps >= 4 and tiles_m * tiles_n * splits <= 2 * GPU
        assert 4 * splits * M * N <= N * K  # the sums of parts are fewer bytes than the weight


def test_few_rows_fill_the_gpu() -> None:
    for N, K in ((4096, 4096), (8192, 21760), (21760, 8192)):
        _, tiles_n, splits, _ = torch.ops.weft_simulator.int8_plan(1, N, K, GPU)
        assert tiles_n * splits > 0.6 * 2 * GPU or splits * 8 > K // 128
        tokens, _, warps_k, blocks_n, _ = torch.ops.weft_simulator.weight_only_plan(1, N, K, GPU)
        assert tokens == 8 and (blocks_n >= GPU or warps_k == 8)


@pytest.mark.parametrize("M", [1, 8, 9, 33, 4096])
@pytest.mark.parametrize("N", [1, 31, 4096, 21760])
def test_weight_only(M: int, N: int) -> None:
    plan = torch.ops.weft_simulator.weight_only_plan(M, N, 4096, GPU)
    tokens, warps_n, warps_k, blocks_n, blocks_m = plan
    assert warps_n * warps_k == 8
    assert (blocks_n - 1) * warps_n * 32 < N <= blocks_n * warps_n * 32
    assert (blocks_m - 1) * tokens < M <= blocks_m * tokens
