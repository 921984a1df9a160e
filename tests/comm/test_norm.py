"""An all-reduce with a norm behind it: to the bit what the two give one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import weft
from weft.distributed import Communicator

from .ranks import run
from .test_collectives import DTYPES

SHAPES = [(0, 7), (3, 1), (2, 5, 33), (300, 1000), (5, 70_001)]


def check_bits(rank: int, world: int, two_shot: bool) -> None:
    table = [(1 << 40, two_shot, 64 << 10)]
    with Communicator(dist.group.WORLD, table=table) as communicator:
        for shape in SHAPES:
            for dtype in DTYPES:
                generator = torch.Generator().manual_seed(rank)
                x = torch.randn(shape, generator=generator).to(dtype)
                common = torch.Generator().manual_seed(99)
                weight = torch.randn(shape[-1], generator=common).to(dtype)
                bias = torch.randn(shape[-1], generator=common).to(dtype)
                residual = torch.randn(shape, generator=common)
                for res in (None, residual.to(dtype), residual):
                    for compression in (None, "int8"):
                        sums = communicator.all_reduce(x, compression=compression)
                        more = {"compression": compression}
                        what = f"{shape} {dtype} {res is not None and res.dtype} {compression}"
                        y, z = weft.all_reduce_layer_norm(
                            x, weight, bias, res, 1e-5, communicator, **more
                        )
                        want = weft.layer_norm_fn(sums, weight, bias, res, eps=1e-5, prenorm=True)
                        assert torch.equal(y, want[0]) and torch.equal(z, want[1]), what
                        y, z = weft.all_reduce_rms_norm(
                            x, weight, res, 1e-6, communicator, zero_centered_weight=True, **more
                        )
                        want = weft.rms_norm_fn(
                            sums, weight, None, res, eps=1e-6, prenorm=True,
                            zero_centered_weight=True,
                        )  # fmt: skip
                        assert torch.equal(y, want[0]) and torch.equal(z, want[1]), what


@pytest.mark.parametrize("world, two_shot", [(1, False), (2, False), (3, True)])
def test_the_bits_of_one_after_the_other(world: int, two_shot: bool):
    run(check_bits, world, two_shot)


def check_int8(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        for shape in SHAPES[1:]:
            generator = torch.Generator().manual_seed(rank)
            x = torch.randn(shape, generator=generator).bfloat16()
            residual = torch.randn(shape, generator=torch.Generator().manual_seed(99)).bfloat16()
            weight = torch.linspace(0.5, 2, shape[-1])
            sums = communicator.all_reduce(x)
            for options in (
                {},
                {"symmetric": False},
                {"scale": torch.tensor(0.1), "zero_point": 3},
            ):
                got = weft.all_reduce_rms_norm_int8(
                    x, weight, residual, 1e-6, communicator, **options
                )
                want = weft.rms_norm_int8(
                    sums, weight, eps=1e-6, residual=residual, prenorm=True, **options
                )
                assert torch.equal(got.values, want.values), (shape, options)
                assert torch.equal(got.scale, want.scale)
                assert torch.equal(got.residual, want.residual)
                assert torch.equal(
                    torch.as_tensor(got.zero_point), torch.as_tensor(want.zero_point)
                )
            got = weft.all_reduce_layer_norm_int8(x, weight, None, None, 1e-5, communicator)
            want = weft.layer_norm_int8(sums, weight, eps=1e-5)
            assert torch.equal(got.values, want.values) and torch.equal(got.residual, sums)


def test_int8():
    run(check_int8, 2)


def check_gradients(rank: int, world: int) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(world, 4, 6, generator=generator, dtype=torch.float64)
    weight, residual, dy, dz = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((6,), (4, 6), (4, 6), (4, 6))
    )
    whole = [t.clone().requires_grad_() for t in (parts.sum(0), weight, residual)]
    z = whole[0] + whole[2]
    torch.autograd.backward([torch.nn.functional.rms_norm(z, (6,), whole[1], 1e-6), z], [dy, dz])
    with Communicator(dist.group.WORLD) as communicator:
        mine = [t.clone().requires_grad_() for t in (parts[rank], weight, residual)]
        torch.autograd.backward(weft.all_reduce_rms_norm(*mine, 1e-6, communicator), [dy, dz])
        for got, want in zip(mine, whole, strict=True):
            assert torch.allclose(got.grad, want.grad)
        with pytest.raises(RuntimeError, match="compressed all_reduce has no gradient"):
            weft.all_reduce_rms_norm(*mine, 1e-6, communicator, compression="int8")
        with pytest.raises(NotImplementedError, match="rounding to int8 has no gradient"):
            weft.all_reduce_rms_norm_int8(*mine, 1e-6, communicator)


def test_gradients():
    run(check_gradients, 2)


def check_torch(rank: int, world: int) -> None:
    with Communicator(dist.group.WORLD) as communicator:
        handle, ops = communicator.handle, torch.ops.weft
        x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.rand(8)
        options = (handle, 1e-6, True, False, 0)
        torch.library.opcheck(
            ops.all_reduce_norm.default, (x, residual.double(), weight, None, *options)
        )
        for scale, symmetric in ((None, True), (None, False), (torch.tensor(0.1), True)):
            torch.library.opcheck(
                ops.all_reduce_norm_int8.default,
                (x, residual, weight, None, scale, 0, symmetric, *options),
            )
        for args, message in (
            ((x.int(), None, None, None, *options), "x has dtype int32"),
            ((x, residual[:2], None, None, *options), r"residual is float32 \[2, 8\], expected"),
            ((x, None, weight[:3], None, *options), r"weight is float32 \[3\], expected"),
            ((x, None, None, weight.int(), *options), r"bias is int32 \[8\], expected"),
            ((x[:, :0].contiguous(), None, None, None, *options), "a last dimension of at least 1"),
            ((x, None, None, None, *options[:-1], 65), "group_size is 65"),
        ):
            with pytest.raises(RuntimeError, match=message):
                ops.all_reduce_norm(*args)


def test_opcheck_and_refusals():
    run(check_torch, 2)
