"""Who works on what in attention's CUDA kernels: pure functions, which need no GPU."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from backends import SIMULATED_OPS

if not SIMULATED_OPS.exists():
    pytest.skip("the simulator is not built: make build/simulator/.built", allow_module_level=True)
torch.ops.load_library(SIMULATED_OPS)

SM90, SM80, FEW = (0, 1), (2, 3, 4), 3  # kernels, as plan.h counts them
MULTIPROCESSORS, SLOTS = 132, 264
KEYS = 64  # of a block of keys, of few rows at D = 128
QUERIES = 128  # of a tile of sm_90's, there


class Plan(NamedTuple):
    kernel: int
    row_blocks: int
    splits: int
    split_keys: int
    grid: int
    workspace: int
    least: int
    decoding_splits: int


def plan(
    B: int, S: int, T: int, H: int, K: int, num_splits: int = 0, total_q: int = 0,
    D: int = 128, page: int = 0, leftpad: bool = False, packed_keys: bool = False,
) -> Plan:  # fmt: skip
    op = torch.ops.weft_simulator.attention_plan
    keys = page, leftpad, packed_keys
    return Plan(*op(B, S, T, H, K, D, num_splits, MULTIPROCESSORS, total_q, *keys))


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
    kernel, row_blocks, splits, split_keys, _, workspace, *_ = plan(B, 1, T, 8 * K, K)
    assert kernel == FEW and row_blocks == 1
    assert (splits - 1) * split_keys < T <= splits * split_keys and split_keys % KEYS == 0
    assert workspace == (splits * B * 8 * K * (128 + 1) * 4 if splits > 1 else 0)
    blocks = B * K * splits
    waves = -(-blocks // SLOTS)
    if T >= 65536:
        assert blocks >= 0.75 * waves * SLOTS, f"{blocks} blocks in {waves} waves"


def test_splits_that_are_asked_for() -> None:
    assert [plan(1, 1, 4096, 8, 1, n)[2] for n in (1, 3, 64)] == [1, 3, 64]
    assert plan(1, 1, KEYS + 8, 8, 1, 64)[2] == 2  # blocks of keys that there are


def test_prefill_goes_to_sm90() -> None:
    for S in (512, 16384):
        kernel, _, splits, _, grid, workspace, *_ = plan(8, S, S, 32, 8)
        assert kernel in SM90 and splits == 1 and workspace == 0 and grid == MULTIPROCESSORS
    assert plan(1, 4, 4096, 32, 8)[0] in SM80


@pytest.mark.parametrize("D", [64, 128, 256])
def test_pages_of_whole_parts_go_to_sm90(D: int) -> None:
    """Of prompts and of their chunks: pages that share a divisor of 16 with a block of keys."""
    for page in (16, 32, 48, 64, 80, 128, 256, 4096):
        assert plan(8, 512, 4096, 32, 8, D=D, page=page)[0] in SM90
        assert plan(8, 300, 4096, 32, 8, D=D, page=page, total_q=1500)[0] in SM90
        assert plan(8, 512, 4096, 32, 8, D=D, page=page, leftpad=True)[0] in SM80
        assert plan(8, 1, 4096, 32, 8, D=D, page=page)[0] in SM80
    for page in (1, 7, 8, 24, 40, 127):
        assert plan(8, 512, 4096, 32, 8, D=D, page=page)[0] in SM80
    assert plan(8, 512, 4096, 32, 8, D=D, leftpad=True)[0] in SM90


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


def test_rows_that_warps_share() -> None:
    assert [plan(4, S, 4096, 8, 1)[0] == FEW for S in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize("lengths", [[2048] + 255 * [1], [1, 700, 3, 128, 129]], ids=len)
def test_packed_sequences_have_the_tiles_that_they_fill(lengths: list[int]) -> None:
    """But for one each: where a sequence begins is known to the GPU alone."""
    B, total, H, K = len(lengths), sum(lengths), 32, 8
    grid = plan(B, max(lengths), 4096, H, K, total_q=total)[4]
    filled = sum(-(-n // QUERIES) for n in lengths)
    assert H * filled <= grid <= H * (filled + B)
    assert grid < B * H * -(-max(lengths) // QUERIES)


@pytest.mark.parametrize("page", [0, 7, 16])
@pytest.mark.parametrize("group, few", [(1, 16), (4, 4), (6, 2), (32, 1)])
def test_decoding_beside_prompts(page: int, group: int, few: int) -> None:
    """A launch of its own, over a cache, for the sequences whose rows fit into a small tile."""
    H, K = 8 * group, 8
    found = plan(4, 2048, 65536, H, K, total_q=2051, page=page)
    assert found.least == few + 1 and found.splits == 1 < found.decoding_splits
    assert found.workspace == found.decoding_splits * 4 * few * H * (128 + 1) * 4
    many = plan(64, 2048, 4096, H, K, total_q=4096, page=page)
    assert many.least == few + 1 and many.decoding_splits == 1 and many.workspace == 0
    for others in (
        plan(4, 2048, 4096, H, K, page=page),  # no packed queries
        plan(4, 2048, 4096, H, K, total_q=4 * 2048, page=page),  # all of one length
        plan(4, few, 4096, H, K, total_q=few + 3, page=page),  # no prompt
        plan(4, 2048, 4096, H, K, total_q=2051, packed_keys=True),  # no cache
    ):
        assert others.least == 0


def test_packed_sequences_of_one_length() -> None:
    """The tiles of each, and none in between."""
    assert plan(64, 512, 512, 32, 8, total_q=64 * 512)[4] == 64 * 32 * 512 // QUERIES
    kernel, row_blocks, *_ = plan(64, 1, 4096, 32, 8, total_q=64)
    assert kernel == FEW and row_blocks == 1


def test_grids_beyond_65535() -> None:
    kernel, row_blocks, splits, *_ = plan(100_000, 1, 4096, 8, 8)
    assert kernel == FEW and row_blocks == splits == 1  # 800,000 blocks
    tiles = 1 << 20 >> 7
    assert plan(2, (1 << 20) - 1, 1 << 20, 128, 8, total_q=1 << 20)[4] == 128 * (tiles + 2)
