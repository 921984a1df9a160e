"""Training over the hook gives what training in one process gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from weft.distributed import Communicator, Work, ddp_hook
from weft.distributed.ddp import _on_int8_grid

from .ranks import run

STEPS, BATCH, WIDTH = 8, 8, 24


def model() -> torch.nn.Module:
    torch.manual_seed(3)
    layer = torch.nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True)
    return torch.nn.Sequential(torch.nn.Linear(5, WIDTH), layer, torch.nn.Linear(WIDTH, 3))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 6, 5, generator=generator), torch.randn(
        BATCH, 6, 3, generator=generator
    )


def train(net: torch.nn.Module, shard: slice, steps: int = STEPS) -> list[torch.Tensor]:
    """The gradients of every step, one after the other in a vector each."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    gradients = []
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(x[shard]), y[shard]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        optimizer.step()
    return gradients


def over_hook(rank: int, world: int, compression: str | None) -> list[torch.Tensor]:
    share = BATCH // world
    with Communicator(dist.group.WORLD) as communicator:
        net = DistributedDataParallel(model(), bucket_cap_mb=0.01)
        net.register_comm_hook(None, ddp_hook(communicator, compression, group_size=64))
        gradients = train(net, slice(rank * share, (rank + 1) * share))
        everyones = communicator.all_gather(torch.stack(gradients)[None])
        assert all(torch.equal(theirs, everyones[0]) for theirs in everyones)
        return gradients


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("compression, bound", [(None, 1e-5), ("bf16", 1e-2), ("int8", 3e-2)])
def test_the_gradients_of_one_process(world: int, compression: str | None, bound: float):
    alone = train(model(), slice(None))
    for ours in run(over_hook, world, compression):
        assert distance(ours, alone) < bound


def over_torch(rank: int, world: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    plain = train(DistributedDataParallel(model(), bucket_cap_mb=0.01), share)
    return plain, over_hook(rank, world, None)


def test_the_same_bits_as_torch_between_two():
    """A sum of two has one order, and the average of two is exact."""
    for theirs, ours in run(over_torch, 2):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def feedback(rank: int, world: int, overflows: bool) -> float:
    """The same gradient at every step, most of it below half a step of its group's scale."""
    with Communicator(dist.group.WORLD) as communicator:
        net = torch.nn.Linear(64, 1, bias=False)
        torch.nn.init.zeros_(net.weight)
        parallel = DistributedDataParallel(net)
        parallel.register_comm_hook(None, ddp_hook(communicator, "int8", group_size=64))
        x = torch.full((1, 64), 0.001)
        x[0, 0] = 1
        total = torch.zeros(64)
        for step in range(100):
            net.zero_grad()
            if overflows and step == 50 and rank == 0:
                (parallel(x).sum() * torch.inf).backward()
            else:
                parallel(x).sum().backward()
            if not overflows or step != 50:
                total += net.weight.grad[0]
        steps = 99 if overflows else 100
        return float((total / steps - x[0]).abs().max())


def test_error_feedback_loses_nothing():
    for error in run(feedback, 2, False):
        assert error < 1 / 127 / 100  # less than a step, over 100 steps


def test_an_overflow_is_forgotten():
    for error in run(feedback, 2, True):
        assert error < 2 / 127 / 100  # it takes what the step before had lost with it


class Peers:
    """In a communicator's place: what the peers get of what is sent."""

    def __init__(self) -> None:
        self.got: list[torch.Tensor] = []

    def all_reduce_(self, x: torch.Tensor, *args: object, **options: object) -> Work:
        self.got.append(_on_int8_grid(x.float(), 64))
        work = Work()
        work.get_future().set_result(x)
        return work


def bucket(gradients: torch.Tensor, parameter: object) -> SimpleNamespace:
    return SimpleNamespace(buffer=gradients.clone, index=lambda: 0, parameters=lambda: [parameter])


def test_feedback_knows_what_the_peers_get_of_bfloat16():
    gradients = torch.linspace(-1, 1, 64).bfloat16()
    peers, parameter = Peers(), object()
    hook = ddp_hook(peers, "int8", group_size=64)
    for _ in range(100):
        hook(None, bucket(gradients, parameter)).wait()
    error = torch.stack(peers.got).mean(0) - gradients.float()
    assert error.abs().max() < 1 / 127 / 100


def test_feedback_is_of_the_same_parameters():
    gradients = torch.linspace(-1, 1, 64)
    peers = Peers()
    hook = ddp_hook(peers, "int8", group_size=64)
    parameters = object(), object()
    for parameter in parameters:
        hook(None, bucket(gradients, parameter)).wait()
    hook(None, bucket(gradients, parameters[1])).wait()
    assert torch.equal(peers.got[0], peers.got[1])
    assert not torch.equal(peers.got[1], peers.got[2])


def test_what_is_refused():
    with pytest.raises(ValueError, match="compression is 'int4', expected None, 'bf16' or 'int8'"):
        ddp_hook(None, "int4")
