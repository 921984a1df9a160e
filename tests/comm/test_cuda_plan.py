"""Which algorithm, how many blocks and pieces of what size the collectives take on the GPU."""

from __future__ import annotations

from collections.abc import Sequence

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
    table: Sequence[tuple[int, str]] = (),
) -> tuple[str, int, int, int]:
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    algorithm, blocks, threads, piece = torch.ops.weft_simulator_comm.plan(
        KINDS.index(kind), OPS.index(op), dtypes.index(dtype), n, group, world, nvlink, multicast,
        [size for size, _ in table], " ".join(algorithm for _, algorithm in table),
    )  # fmt: skip
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


@pytest.mark.parametrize(
    "table, arguments, algorithm",
    [
        ([(4096, "two_shot")], {"n": 2048}, "two_shot"),
        ([(4096, "two_shot")], {"n": 2049}, "one_shot"),  # weft's own rows come behind
        ([(4096, "two_shot")], {"n": 1 << 20}, "two_shot"),
        ([(4096, "one_shot"), (1 << 40, "two_shot")], {"n": 2048}, "one_shot"),
        ([(4096, "one_shot"), (1 << 40, "two_shot")], {"n": 2049}, "two_shot"),
        ([(1 << 40, "one_shot")], {"n": 1 << 30}, "one_shot"),
        ([(1 << 40, "multicast")], {"n": 7, "multicast": True}, "multicast"),
        # What the algorithm cannot do goes by the rows behind it.
        ([(1 << 40, "multicast")], {"n": 1 << 20}, "two_shot"),
        ([(1 << 40, "multicast")], {"n": 7, "multicast": True, "op": "max"}, "one_shot"),
        ([(4, "multicast"), (8, "two_shot")], {"n": 3, "multicast": True, "op": "max"}, "two_shot"),
        ([(1 << 40, "two_shot")], {"n": 1 << 20, "world": 2}, "one_shot"),
        ([(1 << 40, "multicast")], {"n": 7, "world": 2, "multicast": True}, "one_shot"),
        ([(1 << 40, "two_shot")], {"n": 1 << 20, "kind": "all_gather"}, "one_shot"),
    ],
)  # fmt: skip
def test_table(table: list, arguments: dict, algorithm: str):
    assert plan(**{"world": 4, **arguments}, table=table)[0] == algorithm


@pytest.mark.parametrize(
    "table, message",
    [
        ([(1, "fast")], "has fast, expected one_shot, two_shot or multicast"),
        ([(0, "one_shot")], "a row up to 0 bytes behind one up to 0, expected rows that grow"),
        ([(9, "one_shot"), (9, "two_shot")], "up to 9 bytes behind one up to 9"),
        ([(1, "one shot")], "has 1 sizes and 2 algorithms"),
        ([(1, "")], "has 1 sizes and 0 algorithms"),
        ([(n, "one_shot") for n in range(1, 18)], "17 algorithms, expected as many, up to 16"),
    ],
)
def test_no_table(table: list, message: str):
    with pytest.raises(RuntimeError, match=message):
        plan(1, 4, table=table)


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
