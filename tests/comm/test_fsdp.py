"""torch's fully_shard over a communicator."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from weft.distributed import Communicator, fsdp_collectives

from .ranks import run
from .test_layers import fresh, train


def sharded(rank: int, world: int, ours: bool) -> list[float]:
    torch.set_default_dtype(torch.float64)
    mesh = init_device_mesh("cpu", (world,))
    model = fresh()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    communicator = Communicator(dist.group.WORLD)
    if ours:
        fsdp_collectives(model, communicator)
    calls, into = [], communicator._into
    communicator._into = lambda *args: calls.append(args[1]) or into(*args)
    losses = train(model, slice(2 * rank, 2 * rank + 2))
    assert set(calls) == ({"all_gather", "reduce_scatter"} if ours else set())
    return losses


def test_fully_shard():
    ours, theirs = run(sharded, 2, True), run(sharded, 2, False)
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-12)


def check_another_group(rank: int, world: int) -> None:
    model = fully_shard(torch.nn.Linear(2, 2), mesh=init_device_mesh("cpu", (world,)))
    alone = [dist.new_group([r]) for r in range(world)][rank]
    fsdp_collectives(model, Communicator(alone))
    with pytest.raises(ValueError, match=r"expected those of the mesh, \[0, 1\]"):
        model(torch.ones(1, 2))


def test_a_communicator_of_another_group():
    run(check_another_group, 2)


def check_out(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
            out = torch.zeros(world, 5, dtype=dtype)
            out[rank] = rank + 1
            assert communicator.all_gather(out[rank], out=out) is out
            assert (out == torch.arange(1, world + 1)[:, None].to(dtype)).all()
        x, out = torch.ones(2 * world, 3), torch.empty(2, 3)
        assert communicator.reduce_scatter(x, "avg", out=out) is out and (out == 1).all()
        work = communicator.reduce_scatter(x, out=out, async_op=True)
        assert work.wait() is out and (out == world).all()
        with pytest.raises(ValueError, match=r"out has shape \[2, 3\] and x \[2, 3\]"):
            communicator.all_gather(x[:2], out=out)
        with pytest.raises(TypeError, match="out is torch.float32 on cpu and x torch.float64"):
            communicator.reduce_scatter(x.double(), out=out)
        with pytest.raises(RuntimeError, match="all_gather into out has no gradient"):
            communicator.all_gather(torch.ones(3, requires_grad=True), out=out)


def test_out():
    run(check_out, 2)
