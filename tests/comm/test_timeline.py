"""A timeline holds what every rank did, in the order of time."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist

import weft
from weft.distributed import Communicator, Timeline, copy_linear

from .ranks import run


def record(rank: int, world: int, folder: str) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        x, weight = torch.ones(300, 64), torch.ones(4000, 64)
        with Timeline(communicator) as timeline:
            with timeline.span("mine"):
                weft.linear_all_reduce(x, weight, None, communicator)
            weft.all_gather_linear(x, weight, None, communicator)
            communicator.all_reduce_(torch.ones(5))
        communicator.all_reduce_(torch.ones(5))  # is not recorded
        assert {span.rank for span in timeline.spans} == set(range(world))
        calls = [span.name for span in timeline.spans if span.phase == "call" and span.rank == rank]
        assert calls == ["linear_all_reduce", "all_gather_linear", "all_reduce"]
        begins = [span.begin for span in timeline.spans]
        assert begins == sorted(begins) and begins[0] == 0
        assert all(span.end >= span.begin for span in timeline.spans)
        tiles = {s.piece for s in timeline.spans if s.phase == "product" and "all_reduce" in s.name}
        assert len(tiles) > 1
        for phase in ("product", "copy", "reduce", "wait", "mark"):
            assert timeline.seconds(phase) > 0
        assert timeline.seconds("product") + timeline.seconds("wait") < timeline.seconds("call")
        timeline.save(Path(folder, "trace.json"))
        timeline.plot(Path(folder, "plot.png"))
        with Timeline(communicator) as again:
            pass
        assert again.spans == []


def test_a_timeline(tmp_path: Path):
    run(record, 2, str(tmp_path))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    assert {"linear_all_reduce", "mine", "product", "wait"} <= {event["name"] for event in events}
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in events)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def record_two_shot(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD, table=[(1 << 40, True, 64 << 10)]) as communicator:
        x, weight = torch.ones(300, 8), torch.ones(8000, 8)
        with Timeline(communicator) as timeline:
            communicator.all_reduce_(torch.ones(100_000))
            weft.linear_all_reduce(x, weight, None, communicator)
    for name, first in (("all_reduce", "copy"), ("linear_all_reduce", "product")):
        mine = [span for span in timeline.spans if span.rank == rank and span.name == name]
        pieces = sorted(span.piece for span in mine if span.phase == first)
        assert pieces == list(range(len(pieces))) and len(pieces) > 2
        for phase in ("wait", "reduce"):  # for everybody's part, and for what they made of theirs
            twice = sorted(span.piece for span in mine if span.phase == phase)
            assert twice == sorted(2 * pieces), (name, phase)


def test_two_rounds_for_each_piece():
    run(record_two_shot, 3)


def record_products(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        for dtype, M, N, tiles in (
            (torch.float32, 50, 1100, (1, 1)),
            (torch.float32, 600, 8000, (8, 5)),
            (torch.bfloat16, 600, 8000, (4, 3)),
        ):
            x, weight = torch.ones(M, 8, dtype=dtype), torch.ones(N, 8, dtype=dtype)
            ops = (weft.linear_all_reduce, weft.linear_reduce_scatter)
            for op, count in zip(ops, tiles, strict=True):
                with Timeline(communicator) as timeline:
                    op(x, weight, None, communicator)
                phases = _pieces(timeline, rank)
                assert phases["product"] == phases["reduce"] == list(range(count))
                assert not phases["copy"]
        x, weight = (
            torch.ones(600, 8).bfloat16(),
            torch.ones(800, 8).bfloat16(),
        )  # 1 MB at most
        for needed in (False, True):
            with Timeline(communicator) as timeline:
                weft.linear_all_reduce(x.requires_grad_(needed), weight, None, communicator)
            phases = _pieces(timeline, rank)
            assert phases["product"] == ([0] if needed else [])
            assert phases["copy"] == phases["reduce"] == [0, 1, 2, 3]


def record_backward(rank: int, world: int) -> None:
    """The gradient of x is awaited when that of the weight has been computed."""
    with Communicator(dist.group.WORLD) as communicator:
        leaves = [torch.ones(40, 30, requires_grad=True), torch.ones(20, 30, requires_grad=True)]
        y = copy_linear(*leaves, None, communicator)
        with Timeline(communicator) as timeline:
            y.sum().backward()
        mine = [s.phase for s in timeline.spans if s.rank == rank and s.phase != "call"]
        assert mine == ["product", "product", "wait", "reduce"]


def _pieces(timeline: Timeline, rank: int) -> dict[str, list[int]]:
    return {
        phase: [s.piece for s in timeline.spans if s.rank == rank and s.phase == phase]
        for phase in ("product", "copy", "reduce")
    }


def test_products_in_tiles_and_whole():
    run(record_products, 2)


def test_a_backward():
    run(record_backward, 2)
