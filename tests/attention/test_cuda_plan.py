"""Who works on what in attention's CUDA kernels: pure functions, which need no GPU."""

from __future__ import annotations

import pytest
import torch

from backends import SIMULATED_OPS

if not SIMULATED_OPS.exists():
    pytest.skip("the simulator is not built: make build/simulator/.built", allow_module_level=True)
torch.ops.load_library(SIMULATED_OPS)

SM90, SM80 = (0, 1), (2, 3)  # kernels, as plan.h counts them
MULTIPROCESSORS, SLOTS = 132, 264
KEYS = 32  # of a block of keys, at D = 128


def plan(B: int, S: int, T: int, H: int, K: int, num_splits: int = 0) -> tuple[int, ...]:
    op = torch.ops.weft_simulator.attention_plan
    return tuple(op(B, S, T, H, K, 128, num_splits, MULTIPROCESSORS))


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize("heads, blocks", [(1, 1), (3, 7), (8, 5), (16, 1)])
@pytest.mark.parametrize("section", [1, 2, 3, 16])
@pytest.mark.parametrize("grid", [1, 4, 1000])
def test_schedule(heads: int, blocks: int, section: int, last_first: bool, grid: int) -> None:
    """Every tile once, those of a head in one order, a section's heads before the next one's."""
    rounds = -(-heads * blocks // grid)
    taken = []
    for r in range(rounds):
        tiles = [
            torch.ops.weft_simulator.attention_tile(
                heads, blocks, section, last_first, r, block, grid
            )
            for block in range(grid)
        ]
        taken += [t for t in tiles[:: -1 if r % 2 else 1] if t != (-1, -1)]
    assert sorted(taken) == [(h, b) for h in range(heads) for b in range(blocks)]
    for head in range(heads):
        order = [b for h, b in taken if h == head]
        assert order == sorted(order, reverse=last_first)
    sections = [h // section for h, _ in taken]
    assert sections == sorted(sections)


@pytest.mark.parametrize("B", [1, 2, 3, 5, 8, 13, 16, 20, 27, 33, 64])
@pytest.mark.parametrize("T", [1, 100, 4096, 65536])
@pytest.mark.parametrize("K", [1, 8])
def test_decoding_fills_the_gpu(B: int, T: int, K: int) -> None:
    kernel, row_blocks, splits, split_keys, _, workspace = plan(B, 1, T, 8 * K, K)
    assert kernel in SM80 and row_blocks == 1
    assert (splits - 1) * split_keys < T <= splits * split_keys and split_keys % KEYS == 0
    assert workspace == (splits * B * 8 * K * (128 + 1) * 4 if splits > 1 else 0)
    blocks = B * K * splits
    waves = -(-blocks // SLOTS)
    if T >= 65536:
        assert blocks >= 0.75 * waves * SLOTS, f"{blocks} blocks in {waves} waves"


def test_splits_that_are_asked_for() -> None:
    assert [plan(1, 1, 4096, 8, 1, n)[2] for n in (1, 3, 64)] == [1, 3, 64]
    assert plan(1, 1, 40, 8, 1, 64)[2] == 2  # blocks of keys that there are


def test_prefill_goes_to_sm90() -> None:
    for S in (512, 16384):
        kernel, _, splits, _, grid, workspace = plan(8, S, S, 32, 8)
        assert kernel in SM90 and splits == 1 and workspace == 0 and grid == MULTIPROCESSORS
    assert plan(1, 4, 4096, 32, 8)[0] in SM80


def backward_plan(B: int, S: int, T: int, H: int, K: int) -> tuple[int, ...]:
    op = torch.ops.weft_simulator.attention_backward_plan
    return tuple(op(B, S, T, H, K, 128, MULTIPROCESSORS))


@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("S, section", [(512, 8), (4096, 8), (16384, 2), (65536, 1)])
def test_backward_goes_over_key_heads_together(S: int, section: int, group: int) -> None:
    """As many as have room in L2 for what one query head of each reads and adds to.

    Fewer would put more blocks of a head side by side, which wait for each other.
    """
    assert backward_plan(1, S, S, 8 * group, 8) == (8 * S // 128, section, 64)
