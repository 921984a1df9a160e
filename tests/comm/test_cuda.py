"""The collectives on GPUs: several ranks as streams of a process, as processes that share a GPU,
and as processes with a GPU each where there are several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist

import weft
from backends import NEEDS_GPU
from weft.distributed import Communicator, copy_linear

from .ranks import run
from .test_collectives import OPS, assert_within_int8, everyones, expected

pytestmark = NEEDS_GPU

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [0, 1, 7, 1000, 65_537, (1 << 20) + 3]


# ---- ranks as streams of this process

_next = 1 << 40  # handles that no communicator has


@contextmanager
def streams(world: int, timeout: float = 30.0, blocks: int = 8) -> Iterator[list]:
    """(handle, stream) of each rank."""
    global _next
    handles = [_next + r for r in range(world)]
    _next += world
    torch.ops.weft._comm_local(handles, timeout, blocks)
    try:
        yield [(handle, torch.cuda.Stream()) for handle in handles]
    finally:
        torch.cuda.synchronize()
        for handle in handles:
            torch.ops.weft._comm_leave(handle)


def call(ranks: list, op: str, xs: list[torch.Tensor], *arguments: object) -> list[torch.Tensor]:
    ys = []
    for (handle, stream), x in zip(ranks, xs, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            ys.append(getattr(torch.ops.weft, op)(x, handle, *arguments))
    torch.cuda.synchronize()
    return ys


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """A kernel is loaded when it is first launched, which may have to wait for those that run: for
    ranks that wait for it. So all are launched alone first."""
    with streams(1) as ranks:
        for dtype in DTYPES:
            x = [torch.zeros(256, dtype=dtype, device="cuda")]
            call(ranks, "all_reduce", x, "sum")
            call(ranks, "reduce_scatter", x, "sum")
            call(ranks, "all_reduce_int8", x, "sum", 64)
            call(ranks, "all_gather", x)
            call(ranks, "all_gather", [x[0][:255]])
        call(ranks, "all_gather", [torch.zeros(3, dtype=torch.uint8, device="cuda")])


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_streams(world: int):
    with streams(world, blocks=4) as ranks:
        for seed, n in enumerate(SIZES):
            for dtype in DTYPES:
                for op in OPS:
                    xs = everyones(seed, world, n, dtype)
                    want = expected(xs, op)
                    there = [x.cuda() for x in xs]
                    for y in call(ranks, "all_reduce", there, op):
                        assert torch.equal(y.cpu(), want), (n, dtype, op)
                for y in call(ranks, "all_gather", there):
                    assert torch.equal(y.cpu(), torch.cat(xs))
                ys = call(ranks, "all_reduce_int8", there, "sum", 128)
                assert_within_int8(ys[0].cpu(), xs, 128)
                assert all(torch.equal(y, ys[0]) for y in ys)
                parts = [torch.stack([x * (r + 1) for r in range(world)]) for x in xs]
                there = [part.cuda() for part in parts]
                for r, y in enumerate(call(ranks, "reduce_scatter", there, "avg")):
                    assert torch.equal(y.cpu(), expected([p[r : r + 1] for p in parts], "avg"))
        assert not any(torch.ops.weft._comm_failure(handle) for handle, _ in ranks)


@pytest.mark.parametrize("is_rms_norm", [False, True])
def test_norm_behind_all_reduce(is_rms_norm: bool):
    with streams(2) as ranks:
        xs = [x.view(7, 1000).cuda() for x in everyones(5, 2, 7000, torch.bfloat16)]
        residual = torch.randn(7, 1000, dtype=torch.bfloat16, device="cuda")
        weight, bias = torch.randn(2, 1000, dtype=torch.bfloat16, device="cuda")
        sums = call(ranks, "all_reduce", xs, "sum")
        want = weft.layer_norm_fn(
            sums[0], weight, bias, residual, eps=1e-5, prenorm=True, is_rms_norm=is_rms_norm
        )
        ys = []
        for (handle, stream), x in zip(ranks, xs, strict=True):
            with torch.cuda.stream(stream):
                ys.append(
                    torch.ops.weft.all_reduce_norm(
                        x, residual, weight, bias, handle, 1e-5, is_rms_norm, False, 0
                    )
                )
        torch.cuda.synchronize()
        for y, z in ys:
            assert torch.equal(y, want[0]) and torch.equal(z, want[1])


@pytest.mark.parametrize("biased", [False, True])
def test_linear(biased: bool):
    world, M, K, N = 2, 1026, 64, 1000
    xs = [torch.randn(M, K, device="cuda") for _ in range(world)]
    weights = [torch.randn(N, K, device="cuda") for _ in range(world)]
    bias = torch.randn(N, device="cuda") if biased else None
    want = sum(x @ w.t() for x, w in zip(xs, weights, strict=True)) + (bias if biased else 0)
    ops = torch.ops.weft
    with streams(world) as ranks:
        for name in ("linear_all_reduce", "linear_reduce_scatter", "all_gather_linear"):
            torch.cuda.synchronize()
            ys = []
            for (handle, stream), x, weight in zip(ranks, xs, weights, strict=True):
                with torch.cuda.stream(stream):
                    ys.append(getattr(ops, name)(x, weight, bias, handle))
            torch.cuda.synchronize()
            for r, y in enumerate(ys):
                if name == "all_gather_linear":
                    assert torch.equal(y[1], torch.cat(xs))
                    rows = torch.nn.functional.linear(torch.cat(xs), weights[r], bias)
                    torch.testing.assert_close(y[0], rows, rtol=1e-3, atol=1e-3)
                else:
                    rows = want if name == "linear_all_reduce" else want.chunk(world)[r]
                    torch.testing.assert_close(y, rows, rtol=1e-3, atol=1e-3)


def gradients(ranks: list, shards: bool) -> tuple[list, list]:
    """What linear_grads gives each rank, and what it should."""
    world, M, K, N = len(ranks), 512, 200, 1000
    dys = [torch.randn(world * M, N, device="cuda") for _ in ranks]
    xs = [torch.randn(M if shards else world * M, K, device="cuda") for _ in ranks]
    weights = [torch.randn(N, K, device="cuda") for _ in ranks]
    torch.cuda.synchronize()
    found = []
    for (handle, stream), dy, x, weight in zip(ranks, dys, xs, weights, strict=True):
        with torch.cuda.stream(stream):
            found.append(torch.ops.weft.linear_grads(dy, x, weight, handle, shards))
    torch.cuda.synchronize()
    dx = sum(dy @ weight for dy, weight in zip(dys, weights, strict=True))
    rows = [torch.cat(xs)] * world if shards else xs
    return found, [
        (dx.chunk(world)[r] if shards else dx, dy.t() @ rows[r]) for r, dy in enumerate(dys)
    ]


@pytest.mark.parametrize("shards", [False, True])
def test_gradients_of_linear(shards: bool):
    with streams(2) as ranks:
        for _ in range(3):
            for got, want in zip(*gradients(ranks, shards), strict=True):
                for a, b in zip(got, want, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


def test_int8_linear():
    world, M, K, N = 2, 514, 64, 1000
    xs = [torch.randint(-9, 10, (M, K), dtype=torch.int8, device="cuda") for _ in range(world)]
    weights = [torch.randint(-9, 10, (N, K), dtype=torch.int8, device="cuda") for _ in range(world)]
    x_scale, scale = torch.rand(M, 1, device="cuda"), torch.rand(N, device="cuda")
    packed = [weft.pack_int8_weight(weight) for weight in weights]
    parts = [
        weft.int8_linear(x, p, scale, x_scale=x_scale) for x, p in zip(xs, packed, strict=True)
    ]
    want = expected(parts, "sum")
    ops = torch.ops.weft
    with streams(world) as ranks:
        names = ("int8_linear_all_reduce", "int8_linear_reduce_scatter", "int8_all_gather_linear")
        for name in names:
            torch.cuda.synchronize()
            ys = []
            for (handle, stream), x, weight in zip(ranks, xs, packed, strict=True):
                with torch.cuda.stream(stream):
                    op = getattr(ops, name)
                    ys.append(op(x, x_scale, weight, scale, None, handle, torch.float32))
            torch.cuda.synchronize()
            for r, y in enumerate(ys):
                rows = want if name == "int8_linear_all_reduce" else want.chunk(world)[r]
                if name == "int8_all_gather_linear":
                    rows = torch.cat(
                        [weft.int8_linear(x, packed[r], scale, x_scale=x_scale) for x in xs]
                    )
                torch.testing.assert_close(y, rows)


def replays(ranks: list, xs: list[torch.Tensor], call: Callable, times: int) -> Iterator[tuple]:
    """What call(x, handle) gives each rank as a graph, at each replay i, in which x is i + rank."""
    graphs, results = [], []
    for (handle, stream), x in zip(ranks, xs, strict=True):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results.append(call(x, handle))
        graphs.append(graph)
    for i in range(times):
        for r, x in enumerate(xs):
            x.fill_(i + r)
        torch.cuda.synchronize()
        for graph, (_, stream) in zip(graphs, ranks, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        yield i, results


def test_a_graph_is_replayed():
    """The kernels count their events on the GPU: a graph goes on where the last call has ended."""
    with streams(2) as ranks:
        xs = [torch.zeros(3000, device="cuda") for _ in ranks]
        all_reduce = torch.ops.weft.all_reduce
        for i, ys in replays(ranks, xs, lambda x, handle: all_reduce(x, handle, "sum"), 50):
            assert all((y == 2 * i + 1).all() for y in ys)
            if i % 7 == 0:
                call(ranks, "all_reduce", xs, "max")


def test_a_graph_of_a_layers_gradients():
    """The stream beside it comes into the graph, and back."""
    with streams(2) as ranks:
        dys = [torch.zeros(600, 300, device="cuda") for _ in ranks]
        x, weight = torch.ones(600, 200, device="cuda"), torch.ones(300, 200, device="cuda")

        def grads(dy: torch.Tensor, handle: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ops.weft.linear_grads(dy, x, weight, handle, False)

        for (handle, stream), dy in zip(ranks, dys, strict=True):  # cuBLAS takes its memory
            with torch.cuda.stream(stream):
                grads(dy, handle)
        torch.cuda.synchronize()
        for i, results in replays(ranks, dys, grads, 10):
            for r, (dx, dweight) in enumerate(results):
                assert (dx == 300 * (2 * i + 1)).all()
                assert (dweight == 600 * (i + r)).all()


def test_a_rank_that_does_not_come():
    with streams(2, timeout=0.2) as ranks:
        handle, stream = ranks[0]
        with torch.cuda.stream(stream):
            x = torch.ones(64, device="cuda")
            for _ in range(20):
                torch.ops.weft.all_reduce_(x, handle, "sum")
        torch.cuda.synchronize()
        assert "rank 1 did not come within 0.2 s (call 1" in torch.ops.weft._comm_failure(handle)
        with pytest.raises(RuntimeError, match="rank 1 did not come"):
            torch.ops.weft.all_reduce(x, handle, "sum")


def test_a_rank_that_calls_something_else():
    with streams(2) as ranks:
        call(
            ranks,
            "all_reduce",
            [torch.ones(64, device="cuda"), torch.ones(9000, device="cuda")],
            "sum",
        )
        failures = [torch.ops.weft._comm_failure(handle) for handle, _ in ranks]
        assert all(failures)
        assert any("calls all_reduce(9000 elements of float32, sum)" in text for text in failures)


# ---- ranks as processes


def check_processes(rank: int, world: int) -> None:
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    with Communicator(dist.group.WORLD) as communicator:
        for seed, n in enumerate((1, 1000, 300_001)):
            for dtype in DTYPES:
                xs = everyones(seed, world, n, dtype)
                want = expected(xs, "sum")
                x = xs[rank].to(device)
                assert torch.equal(communicator.all_reduce(x).cpu(), want)
                assert torch.equal(communicator.all_gather(x).cpu(), torch.cat(xs))
                work = communicator.all_reduce_(x, async_op=True)
                assert torch.equal(work.wait().cpu(), want)
                assert torch.equal(communicator.all_reduce(xs[rank]), want)  # the CPU's, between
        x = torch.ones(10, device=device, requires_grad=True)
        communicator.all_reduce(x).sum().backward()
        assert (x.grad == world).all()
        for layer in (copy_linear, weft.all_gather_linear):
            x, w, b = (torch.randn(*shape, device=device) for shape in ((8, 6), (4, 6), (4,)))
            leaves = [t.requires_grad_() for t in (x, w, b)]
            loss = layer(*leaves, communicator).square().sum()
            one_by_one = torch.autograd.grad(loss, leaves, create_graph=True)
            at_once = torch.autograd.grad(loss, leaves)
            for got, want in zip(at_once, one_by_one, strict=True):
                torch.testing.assert_close(got, want.detach(), rtol=1e-4, atol=1e-4)
        with pytest.raises(RuntimeError, match="is on cuda"):
            communicator.connect_cuda(device)
        assert not communicator.failure


@pytest.mark.parametrize("world", [2, 3])
def test_processes(world: int):
    run(check_processes, world, start="spawn")


def check_a_death(rank: int, world: int) -> None:
    torch.cuda.set_device(rank % torch.cuda.device_count())
    communicator = Communicator(dist.group.WORLD, timeout=10.0)
    x = torch.ones(100, device="cuda")
    communicator.all_reduce_(x)
    torch.cuda.synchronize()
    if rank == 1:
        return
    communicator.all_reduce_(x)
    torch.cuda.synchronize()
    assert "rank 1 did not come within 10 s (call" in communicator.failure
    with pytest.raises(RuntimeError, match="rank 1 did not come"):
        communicator.all_reduce_(x)
    communicator.close()


def test_a_rank_that_dies():
    run(check_a_death, 2, start="spawn")
