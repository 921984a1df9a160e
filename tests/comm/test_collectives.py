"""Every rank gets the same bits: those of a sum in the order of the ranks, rounded once."""

from __future__ import annotations

import os
import random
import time

import pytest
import torch
import torch.distributed as dist

import weft
from weft import _C
from weft.distributed import Communicator
from weft.distributed._work import Worker

from .ranks import run

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = [0, 1, 63, 64, 65, 1000, 16_384, 32_771, 65_537, 200_003]
OPS = ["sum", "avg", "max"]


def values(seed: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator).to(dtype)


def everyones(seed: int, world: int, n: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [values(seed * 64 + r, n, dtype) for r in range(world)]


def expected(xs: list[torch.Tensor], op: str) -> torch.Tensor:
    dtype = xs[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    total = xs[0].to(wide)
    for x in xs[1:]:
        total = torch.maximum(total, x.to(wide)) if op == "max" else total + x.to(wide)
    return (total / len(xs) if op == "avg" else total).to(dtype)


def check_collectives(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        seed = 0
        for dtype in DTYPES:
            for n in SIZES:
                for op in OPS:
                    seed += 1
                    xs = everyones(seed, world, n, dtype)
                    mine, want = xs[rank].clone(), expected(xs, op)
                    what = f"{dtype} {n} {op}"
                    assert torch.equal(communicator.all_reduce(mine, op), want), what
                    assert torch.equal(mine, xs[rank]), what
                    parts = torch.stack(xs)  # [W, n]: a part for each rank
                    scattered = communicator.reduce_scatter(parts * (rank + 1), op)
                    shares = [parts[rank : rank + 1] * (r + 1) for r in range(world)]
                    assert torch.equal(scattered, expected(shares, op)), what
                    assert torch.equal(communicator.all_gather(mine), torch.cat(xs)), what
                    assert communicator.all_reduce_(mine, op) is mine
                    assert torch.equal(mine, want), what


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_every_rank_gets_the_sum_in_their_order(world: int):
    run(check_collectives, world)


def check_threads(rank: int, world: int, two_shot: bool) -> None:
    os.sched_getaffinity = lambda process: set(range(8))  # as if each rank had several CPUs
    torch.set_num_threads(2)
    table = [(1 << 40, two_shot, 256 << 10)]
    with Communicator(dist.group.WORLD, table=table) as communicator:
        for dtype in DTYPES:
            xs = everyones(1, world, 200_003, dtype)
            parts = torch.stack(xs)
            assert torch.equal(communicator.all_reduce(xs[rank]), expected(xs, "sum"))
            assert torch.equal(communicator.all_gather(xs[rank]), torch.cat(xs))
            scattered = communicator.reduce_scatter(parts)
            assert torch.equal(scattered, expected([parts[rank : rank + 1]] * world, "sum"))
            coded = communicator.all_reduce(xs[rank], compression="int8")
            assert_within_int8(coded, xs, 128)


@pytest.mark.parametrize("two_shot", [False, True])
def test_several_threads_a_rank(two_shot: bool):
    run(check_threads, 2, two_shot)


def check_levels(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        for level in [name for name, available in _C.isa_levels().items() if available]:
            _C.force_isa(level)
            for seed, dtype in enumerate(DTYPES):
                for op in OPS:
                    xs = everyones(seed, world, 1091, dtype)
                    assert torch.equal(communicator.all_reduce(xs[rank], op), expected(xs, op))
                xs = everyones(seed, world, 1091, dtype)
                coded = communicator.all_reduce(xs[rank], compression="int8")
                assert_within_int8(coded, xs, 128)


def test_every_level_gives_the_same_bits():
    run(check_levels, 2)


def assert_within_int8(y: torch.Tensor, xs: list[torch.Tensor], group: int) -> None:
    """|error| <= Σ s / 2 and the rounding to y's dtype."""
    n = y.numel()
    padded = [torch.nn.functional.pad(x.double(), (0, -n % group)).view(-1, group) for x in xs]
    steps = sum(x.abs().amax(1, keepdim=True) / 127 for x in padded).expand(-1, group)
    exact = sum(x.double() for x in xs)
    bound = steps.reshape(-1)[:n] * 0.5001 + exact.abs() * torch.finfo(y.dtype).eps + 1e-7
    assert ((y.double() - exact).abs() <= bound).all()


def check_int8(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        for n in SIZES:
            for dtype in DTYPES:
                for group in (64, 128, 32_768):
                    xs = everyones(n + 1, world, n, dtype)
                    y = communicator.all_reduce(xs[rank], compression="int8", group_size=group)
                    assert_within_int8(y, xs, group)
                    for other in communicator.all_gather(y[None]):
                        assert torch.equal(other, y)
                    x = xs[rank].clone()
                    communicator.all_reduce_(x, compression="int8", group_size=group)
                    assert torch.equal(x, y)
        x = torch.ones(256)
        x[3] = torch.nan if rank == 0 else 1
        x[200] = torch.inf if rank == 1 else 1
        y = communicator.all_reduce(x, compression="int8", group_size=64)
        assert y[:64].isnan().all() and y[192:].isnan().all()
        assert torch.allclose(y[64:192], torch.full((128,), float(world)))
        assert torch.equal(
            communicator.all_reduce(torch.zeros(99), compression="int8"), torch.zeros(99)
        )
        for group in (0, 32, 96, 65_536):
            with pytest.raises(RuntimeError, match="group_size is"):
                communicator.all_reduce(x, compression="int8", group_size=group)
        with pytest.raises(ValueError, match="compression is 'int4'"):
            communicator.all_reduce(x, compression="int4")


@pytest.mark.parametrize("world", [2, 3])
def test_int8_stays_within_half_a_step_of_every_rank(world: int):
    run(check_int8, world)


def check_large(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        for n in (16 << 20, (16 << 20) - 61) if world == 2 else ((16 << 20) - 61,):
            x = torch.arange(n, dtype=torch.float32) % 1021 + rank
            want = torch.arange(n, dtype=torch.float32) % 1021 * world + sum(range(world))
            assert torch.equal(communicator.all_reduce_(x), want)


@pytest.mark.parametrize("world", [2, 3])
def test_sixty_four_megabytes(world: int):
    run(check_large, world)


def check_shapes(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        x = torch.full((6, 5), float(rank)).t()
        assert communicator.all_reduce_(x) is x
        assert torch.equal(x, torch.full((5, 6), float(sum(range(world)))))
        every_other = torch.ones(10)[::2]
        communicator.all_reduce_(every_other, compression="int8")
        assert torch.equal(every_other, torch.full((5,), float(world)))
        negative = torch._neg_view(torch.full((3,), rank + 1.0))
        assert communicator.all_reduce_(negative, "max") is negative
        assert (negative == -1).all()
        y = communicator.all_reduce(torch.ones(4, 6).t())
        assert y.shape == (6, 4) and (y == world).all()
        assert communicator.all_reduce(torch.tensor(1.5)).item() == 1.5 * world
        for dtype in (torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool):
            mine = torch.tensor([[rank % 2, 1]]).to(dtype)
            want = torch.tensor([[r % 2, 1] for r in range(world)]).to(dtype)
            assert torch.equal(communicator.all_gather(mine), want)
        y = communicator.all_reduce(
            torch.tensor([torch.nan, 1.0]) if rank else torch.zeros(2), "max"
        )
        assert y[0].isnan() and y[1] == 1
        assert (communicator.all_reduce(torch.ones(3), dist.ReduceOp.AVG) == 1).all()


def test_shapes_strides_and_dtypes():
    run(check_shapes, 2)


def check_refusals(rank: int, world: int) -> None:
    communicator = Communicator(dist.group.WORLD)
    x = torch.ones(5)
    with pytest.raises(ValueError, match="op is 'prod', expected 'sum', 'avg' or 'max'"):
        communicator.all_reduce(x, "prod")
    with pytest.raises(
        RuntimeError, match="weft.all_reduce: op is 'prod', expected sum, avg or max"
    ):
        torch.ops.weft.all_reduce(x, communicator.handle, "prod")
    with pytest.raises(RuntimeError, match="x has dtype int64, expected float32"):
        communicator.all_reduce(torch.ones(5, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"x has shape \[5\], expected a first dimension that"):
        communicator.reduce_scatter(x)
    with pytest.raises(RuntimeError, match="x has no dimensions"):
        communicator.all_gather(torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="x is not contiguous"):
        torch.ops.weft.all_reduce(torch.ones(4, 4).t(), communicator.handle, "sum")
    with pytest.raises(RuntimeError, match="9999 is no communicator"):
        torch.ops.weft.all_reduce(x, 9999, "sum")
    with pytest.raises(RuntimeError, match="all_reduce in place has no gradient"):
        communicator.all_reduce_(torch.ones(5, requires_grad=True))
    # Nothing of that reached the peers.
    assert (communicator.all_reduce(x) == world).all()
    communicator.close()
    communicator.close()
    with pytest.raises(RuntimeError, match="weft.all_reduce: the communicator is closed"):
        communicator.all_reduce(x)
    with pytest.raises(TypeError, match="group is None, expected a ProcessGroup"):
        Communicator(None)
    with pytest.raises(ValueError, match="timeout is 0"):
        Communicator(dist.group.WORLD, timeout=0)


def test_what_is_refused_reaches_nobody():
    run(check_refusals, 2)


def check_many_calls(rank: int, world: int, calls: int) -> None:
    random_sizes, stragglers = random.Random(7), random.Random(rank)
    with Communicator(dist.group.WORLD) as communicator:
        for call in range(calls):
            n = random_sizes.choice([1, 17, 256, 1000, 5000, 40_000, 150_000])
            kind = random_sizes.randrange(4)
            x = torch.full((n,), float(rank + call % 1000))
            total = float(sum(range(world)) + world * (call % 1000))
            if stragglers.random() < 0.01:
                time.sleep(stragglers.random() * 0.01)
            if kind == 0:
                ok = (communicator.all_reduce_(x) == total).all()
            elif kind == 1:
                ok = (communicator.all_reduce(x) == total).all()
            elif kind == 2:
                ok = (communicator.reduce_scatter(x.expand(world, n)) == total).all()
            else:
                ok = communicator.all_gather(x).view(world, n)[:, -1].sum() == total
            assert ok, (call, kind, n)


@pytest.mark.parametrize("world, calls", [(2, 4000), (4, 1000), (8, 250)])
def test_thousands_of_calls_that_differ(world: int, calls: int):
    run(check_many_calls, world, calls)


def check_groups(rank: int, world: int) -> None:
    """Two groups of half the ranks each, the whole, and the pairs across, all at once."""
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    across = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    if rank < 2:
        with pytest.raises(TypeError, match="no group that this process is in"):
            Communicator(halves[1])
    whole = Communicator(dist.group.WORLD)
    half = Communicator(halves[rank // 2])
    pair = Communicator(across[rank % 2])
    assert (half.rank, pair.rank, whole.world_size) == (rank % 2, rank // 2, 4)
    for call in range(200):
        x = torch.full((call * 37,), float(rank))
        started = [whole.all_reduce(x, async_op=True), pair.all_reduce(x, async_op=True)]
        assert (half.all_reduce(x) == (1.0 if rank < 2 else 5.0)).all()
        assert (started[1].wait() == (2.0 if rank % 2 == 0 else 4.0)).all()
        assert (started[0].wait() == 6.0).all()
    for communicator in (pair, half, whole):
        communicator.close()


def test_groups_at_once():
    run(check_groups, 4)


def check_async(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        works = []
        for i in range(50):
            x = torch.full((1000 * i,), float(i + rank))
            works.append(communicator.all_reduce_(x, "avg", async_op=True))
            if i % 7 == 0:  # keeps its place
                y = communicator.all_reduce(torch.tensor([float(i)]), "max")
                assert y.item() == i
        for i, work in enumerate(works):
            assert (work.wait() == i + (world - 1) / 2).all()
            assert work.is_completed()
        future = communicator.all_gather(torch.tensor([rank]), async_op=True).get_future()
        total = future.then(lambda done: done.value().sum())
        assert total.wait().item() == sum(range(world))
        with pytest.raises(RuntimeError, match="x has dtype int64"):
            communicator.all_reduce(torch.ones(3, dtype=torch.int64), async_op=True).wait()


@pytest.mark.parametrize("world", [2, 3])
def test_async_works_end_in_order(world: int):
    run(check_async, world)


def check_callbacks(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        x, handle = torch.ones(1), communicator.handle
        if rank == 0:
            first = communicator.all_reduce(x, async_op=True).get_future()
            waits = first.then(lambda done: communicator.all_reduce(x))
            raw = first.then(lambda done: torch.ops.weft.all_reduce(x, handle, "sum"))
            closes = first.then(lambda done: communicator.close())
            asks = first.then(lambda done: communicator.all_reduce(x, async_op=True))
            second = communicator.all_reduce(x, "max", async_op=True)
            dist.barrier()
            with pytest.raises(RuntimeError, match="async_op=True"):
                waits.wait()
            with pytest.raises(RuntimeError, match="would overtake those behind it"):
                raw.wait()
            with pytest.raises(RuntimeError, match="would wait for itself"):
                closes.wait()
            assert second.wait().item() == 1
            assert asks.wait().wait().item() == world
        else:
            dist.barrier()
            for op in ("sum", "max", "sum"):
                communicator.all_reduce(x, op)


def test_callbacks_do_not_wait_for_themselves():
    run(check_callbacks, 2)


def check_ops_behind_works(rank: int, world: int) -> None:
    """An op of torch.ops, as a compiled graph calls it, comes behind the works that go on."""
    with Communicator(dist.group.WORLD) as communicator:
        for call in range(20):
            x = torch.full((200_000,), float(call))
            work = communicator.all_reduce(x, async_op=True)
            y = torch.ops.weft.all_reduce(x[:7], communicator.handle, "max")
            assert (work.wait() == world * call).all()
            assert (y == call).all()


def test_ops_keep_their_place_behind_works():
    run(check_ops_behind_works, 2)


def check_order_of_backward(rank: int, world: int) -> None:
    """Behind a work that goes on, too, autograd sees collectives in the order they are called in:
    backward is then the same on every rank."""
    with Communicator(dist.group.WORLD) as communicator:
        x, out = torch.ones(3, requires_grad=True), torch.empty(world)
        for _ in range(20):
            work = communicator.all_reduce(torch.ones(1)) if rank else None
            if not rank:
                work = communicator.all_reduce(torch.ones(1), async_op=True)
            results = [x * 2, communicator.all_reduce(x), x * 3]
            assert communicator.all_gather(torch.ones(1), out=out) is out and (out == 1).all()
            numbers = [y.grad_fn._sequence_nr() for y in results]
            assert numbers == sorted(numbers)
            assert (work if rank else work.wait()).item() == world
        results[1].sum().backward()
        assert (x.grad == world).all()


def test_autograd_sees_the_order_of_calls():
    run(check_order_of_backward, 2)


def check_versions(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        for options in ({}, {"async_op": True}, {"compression": "int8"}):
            x = torch.ones(3, requires_grad=True)
            y = x * 2
            z = y * y
            with torch.no_grad():
                done = communicator.all_reduce_(y.detach(), **options)
            if "async_op" in options:
                done.wait()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                z.sum().backward()
        with torch.inference_mode():
            x = torch.ones(3)
            assert communicator.all_reduce_(x, async_op=True).wait() is x


def test_autograd_knows_what_is_written():
    run(check_versions, 2)


def test_no_work_comes_after_the_last():
    worker = Worker("test", _C.Communicator("", 0, 1, 1.0, 1, []))
    assert worker.submit(lambda: torch.ones(1)).wait() == 1
    worker.stop()
    with pytest.raises(RuntimeError, match="the communicator is closed"):
        worker.submit(lambda: torch.ones(1)).wait()


def check_start(rank: int, world: int) -> float:
    with Communicator(dist.group.WORLD) as communicator:
        return communicator.all_reduce(torch.tensor([float(rank)])).item()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_of_either_kind(start: str):
    assert run(check_start, 2, start=start) == [1.0, 1.0]


def check_gradients(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        weight = torch.arange(6, dtype=torch.float64) + rank
        for op, factor in (("sum", 1.0), ("avg", 1 / world)):
            x = torch.ones(6, dtype=torch.float64, requires_grad=True)
            (communicator.all_reduce(x, op) * weight).sum().backward()
            everyone = sum(torch.arange(6, dtype=torch.float64) + r for r in range(world))
            assert torch.allclose(x.grad, everyone * factor)

            x = torch.ones(2 * world, 3, dtype=torch.float64, requires_grad=True)
            y = communicator.reduce_scatter(x, op)
            (y * weight.view(2, 3)).sum().backward()
            all_weights = torch.cat(
                [(torch.arange(6, dtype=torch.float64) + r).view(2, 3) for r in range(world)]
            )
            assert torch.allclose(x.grad, all_weights * factor)
        x = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
        y = communicator.all_gather(x)
        (y * torch.arange(3 * world, dtype=torch.float64).view(world, 3)).sum().backward()
        assert torch.allclose(x.grad[0], (torch.arange(3.0).double() + 3 * rank) * world)
        x = torch.ones(3, requires_grad=True)
        with pytest.raises(NotImplementedError, match="op='max' has no gradient"):
            communicator.all_reduce(x, "max").sum().backward()


def test_gradients_are_the_transposed_collectives():
    run(check_gradients, 2)


def check_torch(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        handle, x = communicator.handle, torch.randn(4 * world, 3)
        ops = torch.ops.weft
        for op, args in (
            (ops.all_reduce, (x, handle, "sum")),
            (ops.all_reduce_, (x.clone(), handle, "avg")),
            (ops.all_reduce_int8, (x, handle, "sum", 64)),
            (ops.all_reduce_int8_, (x.clone(), handle, "sum", 64)),
            (ops.reduce_scatter, (x, handle, "sum")),
            (ops.all_gather, (x, handle)),
        ):
            torch.library.opcheck(op.default, args)

        def model(x: torch.Tensor) -> torch.Tensor:
            y = communicator.all_reduce(x * 2, "sum").relu()
            return communicator.all_gather(communicator.reduce_scatter(y))

        compiled = torch.compile(model, backend="aot_eager")
        assert torch.equal(compiled(x), model(x))


def test_opcheck_and_compile():
    run(check_torch, 2)


def test_the_package_names_it():
    assert weft.distributed.Communicator is Communicator
    assert weft.linear_all_reduce is weft.distributed.linear_all_reduce
    assert "linear_all_reduce" in vars(weft)  # found once
