"""Which algorithm, how many blocks and pieces of what size the collectives take on the GPU."""

from __future__ import annotations

import pytest
import torch

from backends import SIMULATED_OPS

if not SIMULATED_OPS.exists():
    pytest.skip("the simulator is not built: make build/simulator/.built", allow_module_level=True)
torch.ops.load_library(SIMULATED_OPS)

OPS = ["sum", "avg", "max"]
KINDS = ["all_reduce", "all_reduce_int8", "reduce_scatter", "all_gather"]
ALGORITHMS = ["one_shot", "two_shot", "multicast"]
SLOT_BYTES, BLOCKS = 256 << 10, 32


def plan(
    n: int,
    world: int,
    kind: str = "all_reduce",
    op: str = "sum",
    dtype: torch.dtype = torch.bfloat16,
    nvlink: bool = True,
    multicast: bool = False,
    group: int = 0,
) -> tuple[str, int, int, int]:
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    algorithm, blocks, threads, piece = torch.ops.weft_simulator_comm.plan(
        KINDS.index(kind), OPS.index(op), dtypes.index(dtype), n, group, world, nvlink, multicast
    )
    return ALGORITHMS[algorithm], blocks, threads, piece


@pytest.mark.parametrize(
    "arguments, algorithm",
    [
        ({"n": 1 << 30, "world": 2}, "one_shot"),
        ({"n": 1 << 18, "world": 4}, "one_shot"),
        ({"n": (1 << 18) + 1, "world": 4}, "two_shot"),
        ({"n": 1 << 17, "world": 8}, "one_shot"),
        ({"n": (1 << 17) + 1, "world": 8}, "two_shot"),
        ({"n": (1 << 15) + 1, "world": 4, "nvlink": False}, "two_shot"),
        ({"n": (1 << 15) + 1, "world": 8, "multicast": True}, "multicast"),
        ({"n": 1 << 15, "world": 8, "multicast": True}, "one_shot"),
        ({"n": 1 << 20, "world": 8, "multicast": True, "op": "max"}, "two_shot"),
        ({"n": 1 << 20, "world": 6, "multicast": True, "op": "avg"}, "two_shot"),
        ({"n": 1 << 20, "world": 8, "multicast": True, "op": "avg"}, "multicast"),
        (
            {"n": 1 << 20, "world": 8, "multicast": True, "op": "avg", "dtype": torch.float16},
            "two_shot",
        ),
        ({"n": 1 << 20, "world": 8, "kind": "reduce_scatter"}, "one_shot"),
    ],
)
def test_algorithm(arguments: dict, algorithm: str):
    assert plan(**arguments)[0] == algorithm


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_pieces_fit_their_slots(world: int, kind: str):
    for dtype in (torch.float32, torch.bfloat16):
        for n in (0, 1, 100, 4096, 65_537, 1 << 20, (1 << 26) + 3, 1 << 40):
            group = 128 if kind == "all_reduce_int8" else 0
            algorithm, blocks, threads, piece = plan(n, world, kind, dtype=dtype, group=group)
            shares = world if algorithm != "one_shot" or kind == "reduce_scatter" else 1
            size = 1 + 4 / group if group else dtype.itemsize
            assert 0 < piece * shares * size <= SLOT_BYTES
            assert piece * dtype.itemsize % 16 == 0 and (not group or piece % group == 0)
            assert 1 <= blocks <= BLOCKS and threads % 32 == 0 and 32 <= threads <= 512
            step = piece * (world if algorithm != "one_shot" else 1)
            assert n == 0 or (blocks - 1) * step < n, "a block without work"
