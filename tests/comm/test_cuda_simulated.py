"""The collectives' CUDA kernels on the simulator: ranks as streams that run side by side. Every
rank gets the bits of a sum in the ranks' order, rounded once, or learns in time what is wrong."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from backends import SIMULATED_OPS

from .test_collectives import assert_within_int8, everyones, expected

if not SIMULATED_OPS.exists():
    pytest.skip("the simulator is not built: make build/simulator/.built", allow_module_level=True)
torch.ops.load_library(SIMULATED_OPS)
simulated = torch.ops.weft_simulator_comm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [0, 1, 7, 64, 1000, 4099]
OPS = ["sum", "avg", "max"]


class Ranks:
    """The ranks of a communicator, all in this process. Slots are small: a message of some thousand
    elements goes in several pieces."""

    def __init__(
        self,
        world: int,
        blocks: Sequence[int] = (),
        slot: int = 1024,
        timeout: float = 0.2,
        nvlink: bool = True,
        multicast: bool = False,
        table: Sequence[tuple[int, str]] = (),
    ) -> None:
        sizes, algorithms = [size for size, _ in table], " ".join(name for _, name in table)
        self.handles = simulated.create(
            blocks or [2] * world, slot, timeout, nvlink, multicast, sizes, algorithms
        )

    def call(self, op: str, xs: list[torch.Tensor], *arguments: object) -> list[torch.Tensor]:
        """Every rank's result of a call."""
        return self.calls([lambda r: getattr(simulated, op)(xs[r], self.handles[r], *arguments)])[0]

    def calls(self, calls: list[Callable[[int], torch.Tensor]]) -> list[list[torch.Tensor]]:
        """The same for several calls, one after the other on each rank."""
        simulated.begin()
        results = [[call(r) for r in range(len(self.handles))] for call in calls]
        simulated.run(True)
        assert not any(self.failures())
        return results

    def fail(self, calls: dict[int, Callable[[int], object]]) -> list[str]:
        """What the ranks know after calls of some of them, by rank, that cannot succeed."""
        simulated.begin()
        for r, call in calls.items():
            call(self.handles[r])
        simulated.run(False)
        return self.failures()

    def failures(self) -> list[str]:
        return [simulated.failure(handle) for handle in self.handles]


@contextmanager
def ranks(world: int, **options: object) -> Iterator[Ranks]:
    made = Ranks(world, **options)
    try:
        yield made
    finally:
        simulated.begin()  # a round that a refusal has left open
        simulated.run(False)
        simulated.destroy(made.handles)


@pytest.fixture(autouse=True, params=["in turn", "drawn"])
def order(request: pytest.FixtureRequest) -> Iterator[None]:
    """The order of threads: in turn, or one of the test's own."""
    seed = zlib.crc32(request.node.name.encode()) if request.param == "drawn" else 0
    torch.ops.weft_simulator.configure(seed, False, True)
    yield
    torch.ops.weft_simulator.configure(0, False, True)


# ---- results


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_one_shot(world: int, dtype: torch.dtype):
    with ranks(world) as group:
        for seed, n in enumerate(SIZES):
            for op in OPS:
                xs = everyones(seed, world, n, dtype)
                want = expected(xs, op)
                for y in group.call("all_reduce", xs, op):
                    assert torch.equal(y, want), (n, op)


# Messages beyond 64 KiB, which without NVLink take two rounds.
LARGE = 64 << 10


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "world, dtype", [(3, torch.float32), (4, torch.bfloat16), (5, torch.float16)]
)
def test_two_shot(world: int, dtype: torch.dtype, op: str):
    xs = everyones(world, world, LARGE // dtype.itemsize + 3, dtype)
    want = expected(xs, op)
    with ranks(world, slot=16 << 10, nvlink=False) as group:
        for y in group.call("all_reduce", xs, op):
            assert torch.equal(y, want)


@pytest.mark.parametrize(
    "world, dtype, op",
    [(3, torch.float32, "sum"), (4, torch.bfloat16, "avg"), (4, torch.float16, "sum")],
)
def test_multicast(world: int, dtype: torch.dtype, op: str):
    # Small integers: their sums are exact in any order.
    xs = [x.round() for x in everyones(world, world, LARGE // dtype.itemsize + 5, dtype)]
    want = expected(xs, op)
    with ranks(world, slot=16 << 10, multicast=True) as group:
        for y in group.call("all_reduce", xs, op):
            assert torch.equal(y, want)


@pytest.mark.parametrize("algorithm", ["one_shot", "two_shot", "multicast"])
def test_a_table_says_the_algorithm(algorithm: str):
    """Up to 512 bytes; beyond that, at these sizes, one_shot."""
    table = [(512, algorithm)]
    with ranks(3, slot=16 << 10, multicast=True, table=table) as group:
        for n in (5, 128, 129):
            xs = [x.round() for x in everyones(n, 3, n, torch.float32)]
            assert all(
                torch.equal(y, expected(xs, "sum")) for y in group.call("all_reduce", xs, "sum")
            )
    for n, name in ((128, algorithm), (129, "one_shot")):
        with ranks(3, timeout=1e9, multicast=True, table=table) as group:
            # The message names the kernel that waits for the other ranks.
            with pytest.raises(RuntimeError, match=rf"deadlock\n  in .*::{name}_kernel<float>"):
                group.fail({0: all_reduce(n)})


@pytest.mark.parametrize(
    "world, dtype", [(2, torch.float32), (3, torch.bfloat16), (8, torch.float16)]
)
def test_reduce_scatter(world: int, dtype: torch.dtype):
    with ranks(world) as group:
        for seed, n in enumerate(SIZES[1:]):
            for op in OPS:
                xs = [x.view(world, n) for x in everyones(seed, world, world * n, dtype)]
                want = expected(xs, op)
                for r, y in enumerate(group.call("reduce_scatter", xs, op)):
                    assert torch.equal(y, want[r : r + 1]), (n, op)


@pytest.mark.parametrize(
    "world, dtype", [(2, torch.int64), (3, torch.bfloat16), (8, torch.int8), (4, torch.float64)]
)
def test_all_gather(world: int, dtype: torch.dtype):
    with ranks(world) as group:
        for n in SIZES[1:]:
            xs = [torch.randint(-100, 100, (n,)).to(dtype) for _ in range(world)]
            for y in group.call("all_gather", xs):
                assert torch.equal(y, torch.cat(xs)), n


@pytest.mark.parametrize(
    "world, dtype", [(2, torch.float32), (3, torch.bfloat16), (8, torch.float16)]
)
def test_int8(world: int, dtype: torch.dtype):
    with ranks(world) as group:
        for n in SIZES:
            for size in (64, 256):
                xs = everyones(n, world, n, dtype)
                ys = group.call("all_reduce_int8", xs, "sum", size)
                assert_within_int8(ys[0], xs, size)
                assert all(torch.equal(y, ys[0]) for y in ys)
        xs = [torch.ones(256, dtype=dtype) for _ in range(world)]
        xs[0][3], xs[1][200] = torch.nan, torch.inf
        for y in group.call("all_reduce_int8", xs, "avg", 64):
            assert y[:64].isnan().all() and y[192:].isnan().all()
            assert torch.allclose(y[64:192].float(), torch.ones(128), rtol=1e-2)
        zeros = group.call("all_reduce_int8", [torch.zeros(99, dtype=dtype)] * world, "sum", 64)
        assert all((y == 0).all() for y in zeros)


def test_in_place_and_unaligned():
    with ranks(3) as group:
        for offset in (0, 1, 4):
            for name, extra in (("all_reduce_", ()), ("all_reduce_int8_", (64,))):
                wide = everyones(offset, 3, 1500, torch.bfloat16)
                xs = [x[offset:] for x in wide]
                want = expected(xs, "sum")
                before = [x.clone() for x in xs]
                group.call(name, xs, "sum", *extra)
                for x in xs:
                    if extra:
                        assert_within_int8(x, before, 64)
                    else:
                        assert torch.equal(x, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_rms_norm", [False, True])
def test_norm_behind_all_reduce(is_rms_norm: bool, dtype: torch.dtype):
    """In the stream of its rank: to the bit what the norm's kernel makes of the sums."""
    world, shape = 3, (5, 200)
    weight, bias = torch.randn(2, 200).to(dtype)
    residual = torch.randn(shape).to(dtype)
    options = (1e-5, is_rms_norm, False)
    with ranks(world) as group:
        xs = [x.view(shape) for x in everyones(3, world, 1000, dtype)]
        sums = expected(xs, "sum")
        z = (sums.float() + residual.float()).to(dtype)
        arguments = (residual, weight, bias)

        def call(r: int, size: int = 0) -> torch.Tensor:
            return simulated.all_reduce_norm(xs[r], *arguments, group.handles[r], *options, size)

        norm = torch.nn.functional.rms_norm if is_rms_norm else torch.nn.functional.layer_norm
        more = () if is_rms_norm else (bias.double(),)
        want = norm(z.double(), (200,), weight.double(), *more, 1e-5)
        want = want + bias.double() if is_rms_norm else want
        first, second = group.calls([call, call])
        for y, rounded in first:
            assert torch.equal(rounded, z)
            torch.testing.assert_close(y.double(), want, rtol=1e-2, atol=1e-2)
            assert torch.equal(y, second[0][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(bias: bool, dtype: torch.dtype):
    """Products of torch's, summed up with a bias and rounded once; in several pieces."""
    world, M, K, N = 3, 270, 16, 1303
    with ranks(world, slot=16 << 10, nvlink=False) as group:
        xs = [torch.randn(M, K).to(dtype) for _ in range(world)]
        weights = [torch.randn(N, K).to(dtype) for _ in range(world)]
        b = torch.randn(N).to(dtype) if bias else None
        total = torch.zeros(M, N)
        for x, weight in zip(xs, weights, strict=True):
            total = total + (x @ weight.t()).float()
        want = (total + b.float() if bias else total).to(dtype)
        ops = [simulated.linear_all_reduce, simulated.linear_reduce_scatter]
        reduced, scattered, gathered = group.calls(
            [
                lambda r, op=op: op(xs[r], weights[r], b, group.handles[r])
                for op in (*ops, simulated.all_gather_linear)
            ]
        )
        near = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
        for r in range(world):
            assert torch.equal(reduced[r], reduced[0])
            torch.testing.assert_close(reduced[r], want, **near)
            share = slice(r * M // world, (r + 1) * M // world)
            torch.testing.assert_close(scattered[r], want[share], **near)
            y, rows = gathered[r]
            assert torch.equal(rows, torch.cat(xs))
            # Products are computed at once: of the own rows, which wait for nobody.
            mine = torch.nn.functional.linear(xs[r], weights[r], b)
            torch.testing.assert_close(y[r * M : (r + 1) * M], mine, **near)


@pytest.mark.parametrize("shards", [False, True])
def test_gradients_of_linear(shards: bool):
    """Of small integers: all is exact."""
    world, M, K, N = 3, 6, 40, 50
    dys = [torch.randint(-3, 4, (2, world * M, N)).float() for _ in range(world)]
    if shards:
        dys = [dy.flatten(0, 1) for dy in dys]
    rows = [dy.shape[0] // world if shards else dy.shape[0] for dy in dys]
    xs = [
        torch.randint(-3, 4, (n, *dy.shape[1:-1], K)).float()
        for n, dy in zip(rows, dys, strict=True)
    ]
    weights = [torch.randint(-3, 4, (K, N)).float().t() for _ in range(world)]
    want = sum(dy @ weight for dy, weight in zip(dys, weights, strict=True))
    with ranks(world) as group:
        call = simulated.linear_grads
        results = group.calls([lambda r: call(dys[r], xs[r], weights[r], group.handles[r], shards)])
        for r, (dx, dweight) in enumerate(results[0]):
            assert torch.equal(dx, want.chunk(world)[r] if shards else want)
            if not shards:  # products are computed at once: before the others' rows have come
                assert torch.equal(dweight, dys[r].flatten(0, 1).t() @ xs[r].flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_linear(dtype: torch.dtype):
    """Scales are powers of two, and sums small: all is exact."""
    world, M, K, N = 3, 12, 64, 40
    xs = [torch.randint(-1, 2, (M, K), dtype=torch.int8) for _ in range(world)]
    weights = [torch.randint(-1, 2, (N, K), dtype=torch.int8) for _ in range(world)]
    x_scale, scale = torch.full((M, 1), 0.5), torch.full((N,), 0.25)
    bias = torch.randint(-4, 5, (N,)).to(dtype)
    parts = [(x.float() @ w.float().t() / 8).to(dtype) for x, w in zip(xs, weights, strict=True)]
    want = expected([*parts, bias.expand(M, N)], "sum")
    packed = [torch.ops.weft_simulator.int8_pack(w, 8) for w in weights]
    ops = [simulated.int8_linear_all_reduce, simulated.int8_linear_reduce_scatter]
    with ranks(world, slot=256, nvlink=False) as group:
        reduced, scattered, gathered = group.calls(
            [
                lambda r, op=op: op(xs[r], x_scale, packed[r], scale, bias, group.handles[r], dtype)
                for op in (*ops, simulated.int8_all_gather_linear)
            ]
        )
        for r in range(world):
            assert torch.equal(reduced[r], want)
            assert torch.equal(scattered[r], want[r * M // world : (r + 1) * M // world])
            mine = expected([parts[r], bias.expand(M, N)], "sum")
            assert torch.equal(gathered[r][r * M : (r + 1) * M], mine)
        floats = [x.to(dtype) for x in xs]  # quantised by row, to themselves
        total = 2 * sum(part.float() for part in parts)
        coded = simulated.int8_linear_all_reduce
        for y in group.calls(
            [lambda r: coded(floats[r], None, packed[r], scale, None, group.handles[r], dtype)]
        )[0]:
            torch.testing.assert_close(y.float(), total, rtol=1e-2, atol=1e-2)


def test_nan_stays_in_max():
    with ranks(2) as group:
        for y in group.call("all_reduce", [torch.zeros(2), torch.tensor([torch.nan, 1.0])], "max"):
            assert y[0].isnan() and y[1] == 1


# ---- calls that follow each other


@pytest.mark.parametrize("world, rounds", [(2, 500), (3, 100)])
def test_calls_back_to_back(world: int, rounds: int):
    """Ranks run ahead of each other by as much as the protocol allows, and counters wrap. What
    differs from call to call: kind, size, number of blocks and of rounds."""
    with ranks(world, slot=128) as group:
        for i in range(rounds):
            xs = everyones(i, world, 48, torch.float32)
            sizes = (1, 40, 48, 7)
            calls = [
                lambda r, n=n, k=k, xs=xs: (
                    simulated.all_gather(xs[r][:n], group.handles[r])
                    if k == 3
                    else simulated.all_reduce(xs[r][:n], group.handles[r], "sum")
                )
                for k, n in enumerate(sizes)
            ]
            results = group.calls(calls)
            for n, result in zip(sizes[:3], results[:3], strict=True):
                want = expected([x[:n] for x in xs], "sum")
                assert all(torch.equal(y, want) for y in result)
            gathered = torch.cat([x[: sizes[3]] for x in xs])
            assert all(torch.equal(y, gathered) for y in results[3])


def test_algorithms_follow_each_other():
    large = LARGE // 4 + 16
    cases = [("sum", large), ("max", large), ("sum", 5), ("avg", large)]
    xs = [x.round() for x in everyones(1, 4, large, torch.float32)]
    with ranks(4, slot=16 << 10, multicast=True) as group:
        calls = [
            lambda r, op=op, n=n: simulated.all_reduce(xs[r][:n], group.handles[r], op)
            for op, n in cases
        ]
        results = group.calls(calls)
    for (op, n), result in zip(cases, results, strict=True):
        want = expected([x[:n] for x in xs], op)
        assert all(torch.equal(y, want) for y in result)


# ---- what goes wrong


def all_reduce(n: int = 64, dtype: torch.dtype = torch.float32, op: str = "sum"):
    x = torch.ones(n, dtype=dtype)
    return lambda handle: simulated.all_reduce_(x, handle, op)


def test_a_rank_that_does_not_come():
    with ranks(3, timeout=0.1) as group:
        group.call("all_reduce", [torch.ones(64)] * 3, "sum")
        failures = group.fail({0: all_reduce(), 2: all_reduce()})
        late = [
            f"weft.all_reduce: rank 1 did not come within 0.1 s (call 2 of the communicator, on "
            f"CUDA, seen from rank {r} of 3)"
            for r in range(3)
        ]
        told = "weft.all_reduce: rank {} has given up, because of rank 1 (call 2"
        assert failures[0] == late[0] or failures[0].startswith(told.format(2))
        assert failures[2] == late[2] or failures[2].startswith(told.format(0))
        assert late[0] == failures[0] or late[2] == failures[2]
        # Who comes later learns that the others have gone.
        assert "has given up, because of rank 1 (call 2" in group.fail({1: all_reduce()})[1]
        for handle, failure in zip(group.handles, group.failures(), strict=True):
            simulated.begin()
            with pytest.raises(RuntimeError) as error:
                simulated.all_reduce_(torch.ones(64), handle, "sum")
            assert str(error.value) == failure


def test_a_block_that_nobody_meets():
    """Ranks that take different numbers of blocks, which connect_cuda refuses: the first block is
    met, the second waits in vain, and says so."""
    with ranks(2, blocks=[2, 1], slot=2048) as group:
        failures = group.fail({r: all_reduce(1024) for r in range(2)})
        assert "(call 1 of block 1, on CUDA, seen from rank 0 of 2)" in failures[0]
        assert "(call 1 of the communicator, on CUDA, seen from rank 1 of 2)" in failures[1]
        assert all("did not come within 0.2 s" in f or "given up" in f for f in failures)


def test_a_rank_that_has_closed():
    with ranks(3) as group:
        group.call("all_reduce", [torch.ones(64)] * 3, "sum")
        simulated.close(group.handles[2])
        failures = group.fail({0: all_reduce(), 1: all_reduce()})
        assert all("because of rank 2" in f or "rank 2 has closed" in f for f in failures[:2])
        assert any("rank 2 has closed its communicator (call 2" in f for f in failures[:2])


def test_a_failed_rank_leaves_at_once():
    """Calls that were in the stream already when the first one failed: none waits for its deadline
    again, and none does anything."""
    with ranks(2, timeout=0.5) as group:
        y = torch.full((64,), 3.0)
        simulated.begin()
        for _ in range(20):  # 10 s, if each waited
            simulated.all_reduce_(y, group.handles[0], "sum")
        simulated.run(False)
        assert "did not come within 0.5 s (call 1 of" in group.failures()[0]
        assert (y == 3).all()


@pytest.mark.parametrize(
    "other, words",
    [
        (all_reduce(65), "all_reduce(65 elements of float32, sum)"),
        (all_reduce(9000), "all_reduce(9000 elements of float32, sum)"),  # in more blocks
        (all_reduce(0), "all_reduce(0 elements of float32, sum)"),
        (all_reduce(64, torch.bfloat16), "all_reduce(64 elements of bfloat16, sum)"),
        (all_reduce(64, op="max"), "all_reduce(64 elements of float32, max)"),
        (
            lambda handle: simulated.all_gather(torch.ones(64), handle),
            "all_gather(64 elements of float32)",
        ),
    ],
    ids=["size", "blocks", "empty", "dtype", "op", "kind"],
)
def test_a_rank_that_calls_something_else(other: Callable[[int], object], words: str):
    with ranks(2) as group:
        failures = group.fail({0: all_reduce(), 1: other})
        mine = "all_reduce(64 elements of float32, sum)"
        assert all(failures)
        assert any(
            f"rank {1 - r} calls {theirs}, rank {r} calls {own} (call 1" in failures[r]
            for r, theirs, own in ((0, words, mine), (1, mine, words))
        )


def test_refusals():
    with ranks(2) as group:
        handle = group.handles[0]
        for dtype in (torch.float64, torch.int32):
            with pytest.raises(
                RuntimeError, match=r"expected float32, bfloat16 or float16 \(on CUDA"
            ):
                simulated.all_reduce(torch.ones(4).to(dtype), handle, "sum")
        with pytest.raises(RuntimeError, match="is no communicator"):
            simulated.all_reduce(torch.ones(4), -1, "sum")
        for arguments, message in (
            ((torch.ones(6, 4), torch.ones(3, 5), torch.ones(3, 5)), r"weight has shape \[3, 5\]"),
            ((torch.ones(5, 4), torch.ones(3, 5), torch.ones(4, 5)), "that the 2 ranks divide"),
            ((torch.ones(6, 4), torch.ones(6, 5), torch.ones(4, 5)), r"expected float32 \[3, 5\]"),
        ):
            with pytest.raises(RuntimeError, match=message):
                simulated.linear_grads(*arguments, handle, True)
        with pytest.raises(RuntimeError, match="group_size is 1024, and a slot has 1024 bytes"):
            simulated.begin()
            simulated.all_reduce_int8(torch.ones(4), handle, "sum", 1024)
    with pytest.raises(RuntimeError, match="9 ranks on CUDA, expected 1 to 8"):
        ranks(9).__enter__()
