"""torch.vmap, torch.func, forward-mode AD, autocast, fake and meta tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

import weft

from .torch_cases import (
    CHANNELS,
    FUNCTIONS,
    channels,
    each_function,
    each_pair,
    inputs,
    rand,
    rows,
    with_grads,
)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@each_pair
@pytest.mark.parametrize(
    "in_dims", [(0, None), (1, None), (2, None), (0, 0), (None, 0), (1, 1)], ids=str
)
def test_vmap(ours, theirs, in_dims):
    x, w = (
        rand(6, 6, 6, grad=True),
        rand(6, grad=True) if in_dims[1] is None else rand(6, 6, grad=True),
    )

    def mapped(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.vmap(lambda x, w: norm(x, (6,), w), in_dims)

    with torch.no_grad():
        assert_close(mapped(ours)(x, w), mapped(theirs)(x, w))
    assert_close(with_grads(mapped(ours), x, w), with_grads(mapped(theirs), x, w))


@each_pair
def test_nested_vmap(ours, theirs):
    x, w = rand(2, 3, 4, 6), rand(3, 6)

    def mapped(norm: Callable[..., Tensor]) -> Tensor:
        return torch.vmap(torch.vmap(lambda x, w: norm(x, (6,), w)), (0, None))(x, w)

    assert_close(mapped(ours), mapped(theirs))


def test_vmap_norm_forward():
    x, r, w, b = rand(4, 5, 6), rand(4, 5, 6), rand(6), rand(4, 6)

    def f(x: Tensor, r: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        return weft.layer_norm_fn(x, w, b, r, prenorm=True)

    y, z = torch.vmap(f, (0, 0, None))(x, r, None)
    assert_close((y, z), f(x, r, None))
    y, z = torch.vmap(f, (0, None, None))(x, r[0], None)
    assert_close((y, z), f(x, r[:1].expand_as(x), None))
    y, z = torch.vmap(f)(x, r, b)
    assert_close(y, torch.stack([f(x[i], r[i], b[i])[0] for i in range(4)]))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_dropout(randomness):
    def f(x: Tensor) -> tuple[Tensor, ...]:
        return weft.layer_norm_fn(x, None, None, dropout_p=0.5, return_dropout_mask=True)[:2]

    x = torch.ones(3, 40, 6)
    y, mask = torch.vmap(f, randomness=randomness)(x)
    assert mask.shape == x.shape
    assert torch.equal(mask[0], mask[1]) == (randomness == "same")
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(f)(x)


@each_pair
def test_torch_func(ours, theirs):
    x, w = rand(3, 4, dtype=torch.float64), rand(4, dtype=torch.float64)

    def loss(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w: norm(x, (4,), w).sin().sum()

    def norm_of(norm: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: norm(x, (4,), w)

    transforms: list[Callable[..., object]] = [
        lambda norm: torch.func.grad(loss(norm), (0, 1))(x, w),
        lambda norm: torch.vmap(torch.func.grad(loss(norm)), (0, None))(x, w),
        lambda norm: torch.func.grad(lambda x: torch.vmap(norm_of(norm))(x).sin().sum())(x),
        lambda norm: torch.func.jacrev(norm_of(norm))(x[0]),
        lambda norm: torch.func.jacfwd(norm_of(norm))(x[0]),
        lambda norm: torch.func.jvp(norm_of(norm), (x,), (x.cos(),)),
        lambda norm: torch.func.hessian(lambda x: loss(norm)(x, w))(x[0]),
    ]
    for transform in transforms:
        assert_close(transform(ours), transform(theirs))


@each_pair
def test_torch_func_compiled(ours, theirs, fresh_dynamo):
    x, w = rand(3, 4), rand(4, grad=True)

    def per_sample_gradients(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.vmap(torch.func.grad(lambda x, w: norm(x, (4,), w).sin().sum()), (0, None))

    def mapped(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.vmap(lambda x, w: norm(x, (4,), w), (0, None))

    for transform in (per_sample_gradients, mapped):
        compiled = torch.compile(transform(ours), fullgraph=True, backend="aot_eager")
        assert_close(compiled(x, w), transform(theirs)(x, w))


def test_forward_mode():
    x, w, b = inputs(grad=False)
    with torch.autograd.forward_ad.dual_level():
        for f in FUNCTIONS[:-1]:
            f(x, w, b)  # no tangent, no fallback
            dual = torch.autograd.forward_ad.make_dual(x, x.cos())
            tangent = torch.autograd.forward_ad.unpack_dual(f(dual, w, b)).tangent
            expected = torch.autograd.functional.jvp(lambda x, f=f: f(x, w, b), x, x.cos())[1]
            assert_close(tangent, expected)


def test_fallbacks_are_counted():
    before = sum(weft.fallbacks().values())
    torch.func.grad(lambda x: weft.layer_norm(x, (CHANNELS,)).sum())(rows())
    after = weft.fallbacks()
    assert sum(after.values()) == before + 1
    assert any("torch.func" in reason for reason in after)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@each_pair
def test_autocast_cpu(ours, theirs, dtype):
    """PyTorch's norms keep the dtype on the CPU, and so do ours."""
    x = rows(dtype=dtype)
    w = channels(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x, (CHANNELS,), w).dtype == theirs(x, (CHANNELS,), w).dtype == dtype


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@each_pair
def test_autocast_cuda(ours, theirs, dtype):
    """On CUDA they return float32. Asked of fake tensors, this needs no GPU."""
    before = torch.is_autocast_enabled("cuda")
    try:
        with FakeTensorMode():
            x = torch.empty(3, CHANNELS, dtype=dtype, device="cuda")
            w = torch.empty(CHANNELS, dtype=dtype, device="cuda")
            assert ours(x, (CHANNELS,), w).dtype == dtype
            torch.set_autocast_enabled("cuda", True)
            assert ours(x, (CHANNELS,), w).dtype == theirs(x, (CHANNELS,), w).dtype
            fused = weft.layer_norm_fn(x, w, None, residual=x)
            assert fused.dtype == dtype  # flash-attn's keeps it
    finally:
        torch.set_autocast_enabled("cuda", before)


@each_function
def test_meta_and_fake_tensors(f):
    real = inputs()
    expected = f(*real)
    meta = [t.detach().to("meta").requires_grad_() for t in real]
    y = f(*meta)
    assert (y.device.type, y.shape, y.dtype) == ("meta", expected.shape, expected.dtype)
    y.sum().backward()
    assert [t.grad.shape for t in meta] == [t.shape for t in real]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = f(*(mode.from_tensor(t) for t in real))
        assert (y.shape, y.stride(), y.dtype) == (expected.shape, expected.stride(), expected.dtype)
