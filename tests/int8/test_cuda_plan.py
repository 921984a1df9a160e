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
    tiles_m, tiles_n, splits, steps, rounds = torch.ops.weft_simulator.int8_plan(M, N, K, GPU)
    depth = -(-K // 128)
    assert tiles_m in {-(-M // m) for m in (16, 64, 128)} and tiles_n >= -(-N // 128)
    assert steps <= 512  # sums that int32 holds
    assert (rounds - 1) * splits * steps < depth <= rounds * splits * steps
    assert rounds > 1 or (splits - 1) * steps < depth  # no split without any of K
    assert splits == 1 or tiles_m * tiles_n * splits <= 2 * GPU  # a round's blocks run at once
    if K <= 65536:
        assert rounds == 1
        # The sums of parts are fewer bytes than the weight.
        assert splits == 1 or steps >= 4 and 4 * splits * M * N <= N * K


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("M, N, K", [(1, 21760, 200000), (4096, 8192, 2**20), (64, 1, 2**24)])
def test_workspace_of_long_sums(M: int, N: int, K: int, outliers: bool) -> None:
    """Beside rows of A: the parts that blocks make at once, and their sums so far."""
    _, size = torch.ops.weft_simulator.int8_linear_plan(M, N, K, outliers, GPU, False)
    parts = max(4 * M * N, 2 * GPU * 4 * 128 * 128)
    columns = 64 * K if outliers else 0  # their extremes and names
    assert size <= outliers * M * (K + 16) + parts + 8 * M * N + columns + 2**20


def test_outliers_take_the_product_of_the_gpu() -> None:
    for M, shape in ((1, 3), (1000, 0)):
        plan = torch.ops.weft_simulator.int8_linear_plan
        assert plan(M, 4096, 8192, True, 132, True)[0] == shape
        assert plan(M, 4096, 8192, True, 132, False)[0] == -1


def test_few_rows_fill_the_gpu() -> None:
    for N, K in ((4096, 4096), (8192, 21760), (21760, 8192)):
        _, tiles_n, splits, *_ = torch.ops.weft_simulator.int8_plan(1, N, K, GPU)
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
