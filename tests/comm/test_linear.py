"""Linear layers with their collective inside: what the two give one after the other, and their
gradients."""

from __future__ import annotations

import math
import random
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.nn import functional as F

import weft
from weft import _C
from weft.distributed import Communicator, communicator_of, copy_linear, regions

from .ranks import run
from .test_collectives import DTYPES, expected

SIZES = [
    (0, 5, 3),
    (1, 1000, 64),
    (6, 33, 5),
    (150, 1100, 40),
    (5, 20_001, 1),
    (6, 7, 0),
    (160, 9001, 2),
]


def whole_numbers(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """-1, 0 and 1: products of few of them are exact, however they are added up."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, shape, generator=generator).to(dtype)


def check_products(rank: int, world: int, two_shot: bool) -> None:
    with Communicator(dist.group.WORLD, table=[(1 << 40, two_shot, 256 << 10)]) as communicator:
        for dtype in DTYPES:
            for M, N, K in SIZES:
                what = f"{dtype} {M}×{N}×{K}"
                xs = [whole_numbers(r, M * world, K, dtype=dtype) for r in range(world)]
                ws = [whole_numbers(64 + r, N, K, dtype=dtype) for r in range(world)]
                bias = whole_numbers(3, N, dtype=dtype)
                parts = [F.linear(x, w) for x, w in zip(xs, ws, strict=True)]
                x, w = xs[rank], ws[rank]
                for b in (None, bias):
                    want = expected(parts if b is None else [*parts, b.expand_as(parts[0])], "sum")
                    assert torch.equal(weft.linear_all_reduce(x, w, b, communicator), want), what
                    mine = weft.linear_reduce_scatter(x, w, b, communicator)
                    assert torch.equal(mine, want[rank * M : (rank + 1) * M]), what
                    y, rows = weft.all_gather_linear(
                        x[:M], w, b, communicator, return_gathered=True
                    )
                    assert torch.equal(rows, torch.cat([x[:M] for x in xs])), what
                    assert torch.equal(y, F.linear(rows, w, b)), what
        x = whole_numbers(rank, 3, 2 * world, 7, dtype=torch.float32)
        w = whole_numbers(rank, 5, 7, dtype=torch.float32).t().contiguous().t()
        y = weft.linear_all_reduce(x.transpose(0, 1), w, None, communicator)
        assert torch.equal(y, communicator.all_reduce(F.linear(x.transpose(0, 1), w)))
        scattered = weft.linear_reduce_scatter(x.transpose(0, 1), w, None, communicator)
        assert torch.equal(scattered, y[2 * rank : 2 * rank + 2])
        assert weft.linear_all_reduce(x[0, 0], w, None, communicator).shape == (5,)


@pytest.mark.parametrize("world, two_shot", [(1, False), (2, False), (3, False), (3, True)])
def test_a_product_and_its_collective(world: int, two_shot: bool):
    run(check_products, world, two_shot)


def check_rounding(rank: int, world: int) -> None:
    """Random numbers: as near to the truth as a product and an all-reduce of torch's, twice that at
    most, with the same bits everywhere and every time."""
    generator = torch.Generator().manual_seed(0)
    with Communicator(dist.group.WORLD) as communicator:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(world, 130, 300, generator=generator).to(dtype)
            w = torch.randn(world, 2080, 300, generator=generator).to(dtype)
            truth = torch.einsum("wmk,wnk->mn", x.double(), w.double())
            plain = expected([F.linear(a, b) for a, b in zip(x, w, strict=True)], "sum")
            y = weft.linear_all_reduce(x[rank], w[rank], None, communicator)
            error, theirs = ((t.double() - truth).abs().max() for t in (y, plain))
            assert error <= 2 * theirs + 1e-6
            assert torch.equal(y, weft.linear_all_reduce(x[rank], w[rank], None, communicator))
            for other in communicator.all_gather(y[None]):
                assert torch.equal(other, y)


def test_rounding():
    run(check_rounding, 2)


def check_int8(rank: int, world: int, two_shot: bool) -> None:
    with Communicator(dist.group.WORLD, table=[(1 << 40, two_shot, 256 << 10)]) as communicator:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for M, N, K in [(0, 5, 3), (1, 1000, 64), (150, 700, 100), (610, 900, 20)]:
                what = f"{dtype} {M}×{N}×{K}"
                generator = torch.Generator().manual_seed(M)
                xs = torch.randn(world, M * world, K, generator=generator).to(dtype)
                weight = torch.randint(-127, 128, (N, K), generator=generator).to(torch.int8)
                scale = torch.rand(N, generator=generator) + 0.5
                bias = torch.randn(N, generator=generator).to(dtype)
                packed = weft.pack_int8_weight(weight)
                parts = [weft.int8_linear(x, packed, scale) for x in xs]
                want = expected([*parts, bias.expand_as(parts[0])], "sum")
                options = (packed, scale, bias, communicator)
                assert torch.equal(weft.int8_linear_all_reduce(xs[rank], *options), want), what
                mine = weft.int8_linear_reduce_scatter(xs[rank], *options)
                assert torch.equal(mine, want[rank * M : (rank + 1) * M]), what
                rows = torch.cat([x[:M] for x in xs])
                y = weft.int8_all_gather_linear(xs[rank][:M], *options)
                assert torch.equal(y, weft.int8_linear(rows, packed, scale, bias)), what
        x_scale = torch.tensor([0.1])
        x = torch.full((3, K), 5, dtype=torch.int8)
        y = weft.int8_linear_all_reduce(x, packed, scale, None, communicator, x_scale=x_scale)
        assert y.dtype == torch.float32
        part = weft.int8_linear(x, packed, scale, x_scale=x_scale)
        assert torch.equal(y, expected([part] * world, "sum"))
        static = weft.int8_linear_all_reduce(
            x.float() / 10, packed, scale, None, communicator, x_scale=x_scale
        )
        assert torch.equal(static, y)
        everyones = weft.int8_all_gather_linear(
            x, packed, scale, None, communicator, x_scale=x_scale
        )
        assert torch.equal(everyones, part.repeat(world, 1))
        with pytest.raises(ValueError, match="x is int8, so x_scale is needed"):
            weft.int8_linear_all_reduce(x, packed, scale, None, communicator)
        with pytest.raises(ValueError, match=r"x_scale has shape \[3\], expected one element"):
            weft.int8_linear_all_reduce(
                x.float(), packed, scale, None, communicator, x_scale=torch.ones(3)
            )
        with pytest.raises(NotImplementedError, match="int8_linear_all_reduce: it has no gradient"):
            weft.int8_linear_all_reduce(xs[0].requires_grad_(), packed, scale, None, communicator)


@pytest.mark.parametrize("world, two_shot", [(2, False), (3, True)])
def test_int8(world: int, two_shot: bool):
    run(check_int8, world, two_shot)


def check_levels(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        x = whole_numbers(rank, 20, 9, dtype=torch.float32)
        w = whole_numbers(rank, 130, 9, dtype=torch.int8)
        want = communicator.all_reduce(F.linear(x, w.float()))
        for level in [name for name, available in _C.isa_levels().items() if available]:
            _C.force_isa(level)
            assert torch.equal(weft.linear_all_reduce(x, w.float(), None, communicator), want)
            coded = weft.int8_linear_all_reduce(
                x, weft.pack_int8_weight(w), torch.ones(130), None, communicator,
                x_scale=torch.ones(1),
            )  # fmt: skip
            assert torch.equal(coded, want)


def test_every_level():
    run(check_levels, 2)


def layouts(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same weight by rows, by columns, and with gaps between its elements."""
    spaced = torch.full((*weight.shape, 2), math.nan, dtype=weight.dtype)
    spaced[..., 0] = weight
    return {"rows": weight, "columns": weight.t().contiguous().t(), "gaps": spaced[..., 0]}


def check_own_products(rank: int, world: int, level: str) -> None:
    """Of one rank, so that y is the product: exact, as all sums of such integers are, off every
    boundary of tiles, panels, sections and tasks."""
    _C.force_isa(level)
    draw = random.Random(level)
    cases = [(2, 1, 1), (5, 17, 511), (6, 64, 512), (7, 65, 513), (96, 16, 2048), (97, 63, 2050)]
    cases += [(769, 130, 18), (90, 1, 2), (1537, 70, 1026)]
    for _ in range(12):
        M = draw.choice([draw.randint(1, 40), draw.randint(90, 260)])
        cases.append((M, draw.randint(1, 300), draw.randint(1, 5000)))
    with Communicator(dist.group.WORLD) as communicator:
        for dtype in (torch.float32, torch.bfloat16):
            for case, (M, N, K) in enumerate(cases):
                torch.set_num_threads(1 + case % 4)
                x = whole_numbers(case, M, K, dtype=dtype)
                w = whole_numbers(99 + case, N, K, dtype=dtype)
                want = (x.double() @ w.double().t()).to(dtype)
                bias = whole_numbers(7, N, dtype=dtype)
                for layout, weight in layouts(w).items():
                    what = f"{dtype} {M}×{N}×{K} {layout}"
                    y = weft.linear_all_reduce(x, weight, None, communicator)
                    assert torch.equal(y, want), what
                    y = weft.all_gather_linear(x, weight, bias, communicator)
                    assert torch.equal(y, want + bias), what
                    y = weft.all_gather_linear(x, weight, bias[:1].expand(N), communicator)
                    assert torch.equal(y, want + bias[:1]), what


@pytest.mark.parametrize("level", [n for n, available in _C.isa_levels().items() if available])
def test_own_products(level: str):
    run(check_own_products, 1, level)


def check_no_numbers(rank: int, world: int) -> None:
    """NaN and infinity stay in their row and their column."""
    with Communicator(dist.group.WORLD) as communicator:
        for dtype in (torch.float32, torch.bfloat16):
            for K in (128, 129):
                x, w = torch.ones(101, K, dtype=dtype), torch.ones(70, K, dtype=dtype)
                x[97, 0], w[69, 1], w[3, 0] = math.inf, math.nan, -math.inf
                want = torch.full((101, 70), float(K), dtype=dtype)
                want[97], want[:, 3], want[:, 69] = math.inf, -math.inf, math.nan
                y = weft.linear_all_reduce(x, w, None, communicator)
                assert torch.equal(y.isnan(), want.isnan())
                assert torch.equal(y.nan_to_num(), want.nan_to_num())


def test_no_numbers():
    run(check_no_numbers, 1)


def check_gradients(rank: int, world: int) -> None:
    """Of one loss that the ranks compute together, beside those of one process."""
    dtype, M, N, K = torch.float64, 6, 4, 10
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x, w, b, dy = drawn(M, K), drawn(N, K), drawn(N), drawn(M, N)
    own_rows = slice(rank * M // world, (rank + 1) * M // world)
    columns = slice(rank * K // world, (rank + 1) * K // world)
    outputs = slice(rank * N // world, (rank + 1) * N // world)

    def leaf(t: torch.Tensor) -> torch.Tensor:
        return t.clone().requires_grad_()

    whole = [leaf(t) for t in (x, w, b)]
    F.linear(*whole).backward(dy)
    dx, dw, db = (t.grad for t in whole)
    with Communicator(dist.group.WORLD) as communicator:
        mine = [leaf(t) for t in (x[:, columns], w[:, columns], b)]
        weft.linear_all_reduce(*mine, communicator).backward(dy)
        for got, want in zip(mine, (dx[:, columns], dw[:, columns], db), strict=True):
            assert torch.allclose(got.grad, want)

        mine = [leaf(t) for t in (x[:, columns], w[:, columns], b)]
        weft.linear_reduce_scatter(*mine, communicator).backward(dy[own_rows])
        for got, want in zip(mine, (dx[:, columns], dw[:, columns], db), strict=True):
            assert torch.allclose(got.grad, want)

        mine = [leaf(t) for t in (x[own_rows], w[outputs], b[outputs])]
        y, rows = weft.all_gather_linear(*mine, communicator, return_gathered=True)
        torch.autograd.backward([y, rows], [dy[:, outputs], torch.ones_like(rows)])
        ones = torch.full_like(dx[own_rows], world)
        for got, want in zip(mine, (dx[own_rows] + ones, dw[outputs], db[outputs]), strict=True):
            assert torch.allclose(got.grad, want)

        mine = [leaf(t) for t in (x, w[outputs], b[outputs])]
        copy_linear(*mine, communicator).backward(dy[:, outputs])
        for got, want in zip(mine, (dx, dw[outputs], db[outputs]), strict=True):
            assert torch.allclose(got.grad, want)

        frozen = w[outputs].clone()  # without a gradient of its own
        mine = leaf(x[own_rows])
        weft.all_gather_linear(mine, frozen, None, communicator).backward(dy[:, outputs])
        assert torch.allclose(mine.grad, dx[own_rows])


def check_empty_gradients(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        for N, K in ((0, 3), (4, 0)):
            for op in (weft.linear_all_reduce, weft.linear_reduce_scatter, copy_linear):
                x, w = torch.ones(world, 2, K), torch.ones(N, K)
                leaves = [t.requires_grad_() for t in (x, w, torch.ones(N))]
                op(*leaves, communicator).sum().backward()
                assert [t.grad.shape for t in leaves] == [t.shape for t in leaves]
        empty = torch.ones(2, 0, requires_grad=True)
        assert regions.gather(empty, communicator, 0).shape == (2 * world, 0)


def test_gradients_of_nothing():
    run(check_empty_gradients, 2)


def test_gradients():
    run(check_gradients, 2)


def check_gradients_at_once(rank: int, world: int, two_shot: bool) -> None:
    """Of small integers, exact; of several tiles, with other products in between."""
    op = torch.ops.weft.linear_grads
    with Communicator(dist.group.WORLD, table=[(1 << 40, two_shot, 256 << 10)]) as communicator:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for M, N, K in ((0, 4, 5), (7, 30, 20), (170, 12, 9001)):
                dys = [whole_numbers(r, world * M, N, dtype=dtype) for r in range(world)]
                xs = [whole_numbers(r, world * M, K, dtype=dtype) for r in range(world)]
                ws = [whole_numbers(9 + r, K, N, dtype=dtype).t() for r in range(world)]
                want = expected([dy @ w for dy, w in zip(dys, ws, strict=True)], "sum")
                for shards in (False, True):
                    own = slice(rank * M, (rank + 1) * M) if shards else slice(None)
                    x = xs[0][own] if shards else xs[rank]
                    dx, dweight = op(dys[rank], x, ws[rank], communicator.handle, shards)
                    assert torch.equal(dx, want[own])
                    assert torch.equal(dweight, dys[rank].t() @ (xs[0] if shards else x))
        with pytest.raises(RuntimeError, match=r"x is float32 \[3, 5\], expected float32 \[4, 5\]"):
            op(torch.ones(4, 2), torch.ones(3, 5), torch.ones(2, 5), communicator.handle, False)


@pytest.mark.parametrize("world, two_shot", [(1, False), (2, False), (3, True)])
def test_gradients_at_once(world: int, two_shot: bool):
    run(check_gradients_at_once, world, two_shot)


def check_rooms(rank: int, world: int, two_shot: bool) -> None:
    """Calls whose tiles come into the rooms of calls before, while ranks are ahead or late."""
    pause = random.Random(rank)
    with Communicator(dist.group.WORLD, table=[(1 << 40, two_shot, 256 << 10)]) as communicator:
        for call in range(100):
            M, N = (3, 40) if call % 3 else (257, 9001) if call % 9 == 0 else (64, 3000)
            ws = [whole_numbers(99 * call + r, N, 2, dtype=torch.float32) for r in range(world)]
            want = expected([torch.ones(M, 2) @ w.t() for w in ws], "sum")
            if call % 5 == 0:
                time.sleep(pause.random() / 200)
            y = weft.linear_all_reduce(torch.ones(M, 2), ws[rank], None, communicator)
            assert torch.equal(y, want), call


@pytest.mark.parametrize("world, two_shot", [(2, False), (3, False), (4, True)])
def test_rooms_are_used_again(world: int, two_shot: bool):
    run(check_rooms, world, two_shot)


def check_either_way(rank: int, world: int) -> None:
    """What is small goes past torch's dispatcher where it can: by rank, as one may want a gradient,
    or a graph, and the others not."""
    with Communicator(dist.group.WORLD) as communicator:
        for dtype in (torch.bfloat16, torch.float16):
            for shape, N in (((6, 40), 30), ((2, 3, 8), 1), ((5,), 7), ((4, 8), 0)):
                xs = [whole_numbers(r, *shape, dtype=dtype) for r in range(world)]
                ws = [whole_numbers(9 + r, N, shape[-1], dtype=dtype) for r in range(world)]
                bias = whole_numbers(3, N, dtype=dtype)
                parts = [F.linear(x, w) for x, w in zip(xs, ws, strict=True)]
                for b in (None, bias):
                    want = expected(parts if b is None else [*parts, b.expand_as(parts[0])], "sum")
                    x, w = xs[rank], ws[rank]
                    for other in range(world):
                        leaf = x.clone().requires_grad_(rank == other)
                        y = weft.linear_all_reduce(leaf, w, b, communicator)
                        assert y.requires_grad == (rank == other)
                        assert torch.equal(y, want)
                    module = torch.nn.Linear(shape[-1], N, bias=b is not None, dtype=dtype)
                    with torch.no_grad():
                        module.weight.copy_(w)
                        y = weft.linear_all_reduce(x, module.weight, b, communicator)
                    assert torch.equal(y, want) and not y.requires_grad
                    works = [communicator.all_reduce(parts[rank], async_op=True) for _ in range(3)]
                    assert torch.equal(weft.linear_all_reduce(x, w, b, communicator), want)
                    for work in works:
                        work.wait()
        x, w = torch.ones(3, 2, 8).bfloat16(), torch.ones(5, 8).bfloat16()
        turned = weft.linear_all_reduce(x.transpose(0, 1), w, None, communicator)
        assert torch.equal(turned, torch.full((2, 3, 5), 8.0 * world).bfloat16())
        with pytest.raises(RuntimeError, match="x has no dimensions, expected rows"):
            weft.linear_all_reduce(x[0, 0, 0], w, None, communicator)
        no_rule = pytest.raises(NotImplementedError, match="no rule for forward-mode AD")
        with forward_ad.dual_level(), no_rule:
            weft.linear_all_reduce(forward_ad.make_dual(x, x), w, None, communicator)
        with torch.autocast("cpu", torch.bfloat16):
            y = weft.linear_all_reduce(x, w, None, communicator)
        assert torch.equal(y, weft.linear_all_reduce(x, w, None, communicator))


def test_either_way():
    run(check_either_way, 3)


def check_frozen(rank: int, world: int) -> None:
    """Ranks of which some want the weight's gradient, some graphs of gradients, some neither."""
    with Communicator(dist.group.WORLD) as communicator:
        for dtype in (torch.bfloat16, torch.float32):
            xs = [whole_numbers(r, 6, 8, dtype=dtype) for r in range(world)]
            ws = [whole_numbers(9 + r, 5, 8, dtype=dtype) for r in range(world)]
            dys = [whole_numbers(99 + r, 6, 5, dtype=dtype) for r in range(world)]
            want = expected([dy @ w for dy, w in zip(dys, ws, strict=True)], "sum")
            for frozen in range(world):
                for graph in (False, True):
                    x = xs[rank].clone().requires_grad_()
                    w = ws[rank].clone().requires_grad_(rank != frozen)
                    y = copy_linear(x, w, None, communicator)
                    y.backward(dys[rank], create_graph=graph and rank == frozen)
                    assert torch.equal(x.grad, want)


def test_ranks_that_want_other_gradients():
    run(check_frozen, 2)


def check_past_the_dispatcher(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        x, w, b = torch.ones(4, 8).bfloat16(), torch.ones(6, 8).bfloat16(), torch.ones(6).bfloat16()

        def call(x: torch.Tensor) -> torch.Tensor:
            return weft.linear_all_reduce(x, w, b, communicator)

        for given, past in ((x, True), (x.clone().requires_grad_(), False), (x[:0], True)):
            goes_by_op = any(f.endswith("ops/_grad.py") for f in files_of_call(call, given))
            assert goes_by_op != past
        assert torch.equal(call(x), torch.full((4, 6), 8.0 * world + 1).bfloat16())
        negative = weft.linear_all_reduce(x, w, torch._neg_view(b), communicator)
        assert torch.equal(negative, torch.full((4, 6), 8.0 * world - 1).bfloat16())
        traced = torch.jit.trace(call, x, check_trace=False)
        assert torch.equal(traced(2 * x), torch.full((4, 6), 16.0 * world + 1).bfloat16())


def test_past_the_dispatcher():
    run(check_past_the_dispatcher, 2)


def check_torch(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        handle, ops = communicator.handle, torch.ops.weft
        x, w, b = torch.randn(2 * world, 3), torch.randn(5, 3), torch.randn(5)
        packed = weft.pack_int8_weight(torch.ones(5, 3, dtype=torch.int8))
        q, ones = torch.ones(2 * world, 3, dtype=torch.int8), torch.ones(2 * world, 1)
        coded = (q, ones, packed, torch.ones(5), b, handle, torch.float32)
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        for op, args in (
            (ops.linear_all_reduce, (*leaves, handle)),
            (ops.linear_reduce_scatter, (*leaves, handle)),
            (ops.all_gather_linear, (*leaves, handle)),
            (ops.int8_linear_all_reduce, coded),
            (ops.int8_linear_reduce_scatter, coded),
            (ops.int8_all_gather_linear, coded),
        ):
            torch.library.opcheck(op.default, args)
        for rows, shards in ((x, False), (x[:2].clone(), True)):
            torch.library.opcheck(
                ops.linear_grads.default, (torch.ones(2 * world, 5), rows, w, handle, shards)
            )


def test_opcheck():
    run(check_torch, 2)


def check_compile(rank: int, world: int) -> None:
    """Whole graphs: the ops stand in them as they are, and so do their gradients."""
    with Communicator(dist.group.WORLD) as group:
        x, w, v = torch.randn(2 * world, 8), torch.randn(6, 8), torch.randn(8, 6)
        packed, scale = weft.pack_int8_weight(torch.ones(6, 8, dtype=torch.int8)), torch.ones(6)

        def floats(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            y = weft.linear_all_reduce(x, w, None, group).relu()
            y = weft.linear_reduce_scatter(y, v, None, group)
            y = weft.all_gather_linear(y, w, None, group)
            return copy_linear(y, v, None, group)

        def norms(x: torch.Tensor) -> torch.Tensor:
            y, z = weft.all_reduce_rms_norm(x, None, x, 1e-6, group)
            y, z = weft.all_reduce_layer_norm(y, None, None, z, 1e-5, group)
            return weft.all_reduce_rms_norm_int8(y, None, z, 1e-6, group).values

        def coded(x: torch.Tensor) -> torch.Tensor:
            y = weft.int8_linear_all_reduce(x, packed, scale, None, group)
            y = weft.int8_linear_reduce_scatter(x + y.sum(), packed, scale, None, group)
            return weft.int8_all_gather_linear(x[: len(y)] + y.sum(), packed, scale, None, group)

        for model, args in ((floats, (x, w, v)), (norms, (x,)), (coded, (x,))):
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
            with torch.no_grad():
                assert torch.equal(compiled(*args), model(*args)), model
        compiled = torch.compile(floats, backend="aot_eager", fullgraph=True)
        halves = [t.bfloat16() for t in (x, w, v)]
        with torch.no_grad():
            torch.testing.assert_close(compiled(*halves), floats(*halves), rtol=0.1, atol=0.5)
        gradients = []
        for f in (floats, compiled):
            leaves = [t.clone().requires_grad_() for t in (x, w, v)]
            f(*leaves).square().sum().backward()
            gradients.append([t.grad for t in leaves])
        for got, want in zip(*gradients, strict=True):
            assert torch.allclose(got, want)


def test_compile():
    run(check_compile, 2)


def files_of_call(op, x: torch.Tensor) -> set[str]:
    """Of the functions in Python that it goes through."""
    files = set()
    sys.setprofile(lambda frame, event, argument: files.add(frame.f_code.co_filename))
    try:
        op(x)
    finally:
        sys.setprofile(None)
    return files


def check_inference(rank: int, world: int) -> None:
    """Where nobody asks for a gradient, autograd is not asked either."""
    with Communicator(dist.group.WORLD) as group:
        x, w = torch.ones(2 * world, 3), torch.ones(4, 3)
        for op in (
            lambda x: weft.linear_all_reduce(x, w, None, group),
            lambda x: weft.linear_reduce_scatter(x, w, None, group),
            lambda x: weft.all_gather_linear(x, w, None, group),
            group.all_reduce,
            group.reduce_scatter,
            group.all_gather,
        ):
            for needs in (False, True):
                files = files_of_call(op, x.clone().requires_grad_(needs))
                assert any(name.endswith("_library/autograd.py") for name in files) == needs
            no_rule = pytest.raises(NotImplementedError, match="no rule for forward-mode AD")
            with forward_ad.dual_level(), no_rule:
                op(forward_ad.make_dual(x, x))


def test_inference_passes_autograd_by():
    run(check_inference, 2)


def check_refusals(rank: int, world: int) -> None:
    communicator = Communicator(dist.group.WORLD)
    handle, ops = communicator.handle, torch.ops.weft
    x, w = torch.ones(5, 3), torch.ones(4, 3)
    for op, args, message in (
        (
            ops.linear_all_reduce,
            (x, w.double(), None, handle),
            "weight has dtype float64, expected",
        ),
        (
            ops.linear_all_reduce,
            (x, torch.ones(4, 2), None, handle),
            r"shape \[4, 2\], expected \[N",
        ),
        (
            ops.linear_all_reduce,
            (x, w, torch.ones(3), handle),
            r"bias has shape \[3\], expected \[4",
        ),
        (ops.linear_all_reduce, (x, w, w[0].double(), handle), "bias has dtype float64, expected"),
        (ops.linear_all_reduce, (x.int(), w.int(), None, handle), "x has dtype int32, expected"),
        (ops.linear_all_reduce, (x.t(), w, None, handle), "x is not contiguous"),
        (ops.linear_all_reduce, (x, w, None, 9999), "9999 is no communicator"),
        (
            ops.linear_reduce_scatter,
            (x, w, None, handle),
            r"x has shape \[5, 3\], expected a first",
        ),
        (ops.all_gather_linear, (x[0], w, None, handle), r"shape \[3\], expected rows and columns"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*args)
    with pytest.raises(TypeError, match="group is None, expected a Communicator"):
        weft.linear_all_reduce(x, w)
    if rank == 0:  # alone
        q, ones, packed = x.to(torch.int8), torch.ones(5), weft.pack_int8_weight(w.to(torch.int8))
        with pytest.raises(RuntimeError, match=r"bias has shape \[3\]"):
            coded = (q, ones, packed, torch.ones(4), torch.ones(3), handle, torch.float32)
            ops.int8_all_gather_linear(*coded)
    # Nothing of that reached the peers.
    assert (communicator.all_reduce(torch.ones(1)) == world).all()
    group = dist.group.WORLD
    assert communicator_of(group) is communicator_of(group)
    assert torch.equal(weft.linear_all_reduce(x, w, None, group), F.linear(x, w) * world)
    communicator_of(group).close()
    assert torch.equal(weft.linear_all_reduce(x, w, None, group), F.linear(x, w) * world)


def test_what_is_refused_reaches_nobody():
    run(check_refusals, 2)
