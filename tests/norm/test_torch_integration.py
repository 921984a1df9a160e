"""The norms inside PyTorch's subsystems: compile, export, checkpoint, vmap, torch.func, autocast, serialisation."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weft
from weft.ops._norm_args import NormArgs

ROWS, CHANNELS = (3, 5), 24
OPS = torch.ops.weft
RNG = torch.tensor([123, 456])


def rand(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_(grad)


def rows(**kwargs) -> Tensor:
    return rand(*ROWS, CHANNELS, **kwargs)


def channels(**kwargs) -> Tensor:
    return rand(CHANNELS, **kwargs)


# opcheck ---------------------------------------------------------------------------------------------------


def plain_samples() -> Iterator[tuple]:
    w, b = channels(), channels()
    yield rows(), 1, None, None, 1e-5, False
    yield rows(), 1, w, b, 1e-5, False
    yield rows(dtype=torch.bfloat16), 1, w, None, 1e-5, True
    yield rows(), 2, rand(5, CHANNELS), rand(5, CHANNELS), 1e-5, False
    yield rows(), 1, rand(5, CHANNELS), None, 1e-5, False  # weights per head
    yield rand(CHANNELS, 7).T, 1, w, b, 1e-5, False  # channels apart
    yield rand(7, 2 * CHANNELS)[::2, :CHANNELS], 1, w, b, 1e-5, False  # rows apart
    yield rand(0, CHANNELS), 1, w, b, 1e-5, False
    yield rand(CHANNELS, dtype=torch.float64), 1, None, b, 1e-5, False


def forward_samples(grad: bool) -> Iterator[NormArgs]:
    """With and without gradients, which need statistics and z."""
    like = {"grad": grad}
    stats = {"save_stats": grad, "return_residual": grad}
    x, w, b = rows(**like), channels(**like), channels(**like)
    yield NormArgs(x, 1, save_stats=grad)
    yield NormArgs(x, 1, w, b, save_stats=grad, memory_efficient=True)
    yield NormArgs(x, 2, rand(5, CHANNELS, **like), is_rms_norm=True, **stats)
    yield NormArgs(
        rows(dtype=torch.bfloat16, **like),
        1,
        w,
        b,
        residual=rows(**like),
        residual2=rows(**like),
        x_bias=channels(**like),
        layerscale=channels(**like),
        rowscale=rand(*ROWS),
        rng_state=RNG,
        dropout_p=0.25,
        residual_alpha=1.5,
        return_dropout_mask=True,
        **stats,
    )
    yield NormArgs(
        x,
        1,
        w,
        b,
        channels(**like),
        channels(**like),
        x1=rows(**like),
        rng_state=RNG,
        dropout_p=0.5,
        zero_centered_weight=True,
        return_dropout_mask=True,
        residual_dtype=torch.float64,
        out_dtype=torch.bfloat16,
        **stats,
    )
    yield NormArgs(x, 1, w, residual=rows(**like), is_rms_norm=True, **stats)


def backward_samples() -> Iterator[tuple]:
    x, stats = rows(), rand(*ROWS).abs()
    w = channels()
    none = torch.empty(0)
    f32 = torch.float32

    def sample(*, dy1=None, dz=None, mean=stats, weight=w, weight1=None, x_=None, x_bias=None, rowscale=None,
               layerscale=None, p=0.0, rms=False, x_dtype=f32, residual_dtype=None, needs=0):  # fmt: skip
        return (
            rows(), dy1, dz, x, mean, stats, 1, weight, None, weight1, x_, x_bias, rowscale, layerscale,
            RNG if p else None, p, 1.0, 1e-5, rms, False, False, x_dtype, residual_dtype, needs,
        )  # fmt: skip

    yield sample(needs=1 + 16 + 32)
    yield sample(weight=None, mean=none, rms=True, needs=1)
    yield sample(needs=1, x_dtype=torch.bfloat16)
    yield sample(
        dy1=rows(), dz=rows(), weight1=channels(), x_=rows(), x_bias=channels(), rowscale=rand(*ROWS),
        layerscale=channels(), p=0.5, residual_dtype=torch.float64, needs=1023,
    )  # fmt: skip


def int8_samples() -> Iterator[tuple]:
    x, w, b = rows(), channels(), channels()

    def sample(x=x, *, residual=None, shift=None, smooth=None, scale=None, zero_point=0, symmetric=True,
               ndim=1, return_residual=False, residual_dtype=None):  # fmt: skip
        weight, bias = (w, b) if ndim == 1 else (None, None)
        return (
            x, ndim, weight, bias, None, residual, None, shift, smooth, scale, zero_point, symmetric, 1.0, 1e-5,
            False, False, return_residual, residual_dtype,
        )  # fmt: skip

    yield sample()
    yield sample(ndim=2)
    yield sample(symmetric=False, shift=channels(), smooth=channels().abs() + 0.1)
    yield sample(scale=torch.tensor([0.05]), zero_point=3)
    yield sample(rows(dtype=torch.bfloat16), residual=rows(), return_residual=True)
    yield sample(return_residual=True, residual_dtype=torch.float64)


@pytest.mark.parametrize("op", [OPS.layer_norm, OPS.rms_norm], ids=str)
def test_opcheck_plain(op):
    for args in plain_samples():
        opcheck(op.default, args)
        opcheck(op.out, args, {"out": torch.empty(args[0].shape, dtype=args[0].dtype)})


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_norm_forward(grad):
    for args in forward_samples(grad):
        opcheck(OPS.norm_forward.default, tuple(args))


def test_opcheck_norm_forward_out():
    for args in forward_samples(grad=False):
        if args.weight1 is None:
            args = args._replace(return_dropout_mask=False)
            kwargs = {"out": torch.empty(ROWS + (CHANNELS,)), "residual_out": None}
            opcheck(OPS.norm_forward.out, tuple(args), kwargs)
            kwargs["residual_out"] = rows(dtype=torch.float64)
            opcheck(OPS.norm_forward.out, tuple(args), kwargs)


def test_opcheck_norm_backward():
    for args in backward_samples():
        opcheck(OPS.norm_backward.default, args)


def test_opcheck_norm_int8():
    for args in int8_samples():
        opcheck(OPS.norm_int8.default, args)
    outs = {
        "out": torch.empty(ROWS + (CHANNELS,), dtype=torch.int8),
        "scale_out": torch.empty(ROWS + (1,)),
        "zero_point_out": torch.empty(ROWS + (1,), dtype=torch.int32),
        "residual_out": rows(),
    }
    args = list(next(int8_samples()))
    args[11] = False  # asymmetric
    opcheck(OPS.norm_int8.out, tuple(args), outs)


def test_opcheck_others():
    opcheck(OPS.fused_add_rms_norm_.default, (rows(), rows(), channels(), 1e-6, False))
    opcheck(OPS.fused_add_rms_norm_.default, (rows(), rows(), None, 1e-6, True))
    opcheck(OPS.dropout_mask.default, (RNG, 37, 0.5, 1))


# the functions under test in what follows -------------------------------------------------------------------


def layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return weft.layer_norm(x, (CHANNELS,), w, b)


def rms_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return weft.rms_norm(x, (CHANNELS,), w, bias=b)


def residual_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y, z = weft.layer_norm_fn(x, w, b, residual=x.cos(), prenorm=True, residual_in_fp32=True)
    return y + z


def post_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return weft.rms_norm_fn(x.sin(), w, b, residual=x)


def second_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y, y1, z = weft.layer_norm_fn(x, w, b, x1=x.sin(), weight1=w + 1, bias1=b, prenorm=True)
    return y * y1 + z


def dropped(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y, mask, _ = weft.layer_norm_fn(x, w, b, residual=x, dropout_p=0.5, return_dropout_mask=True)
    return y * (1 + mask.to(y.dtype))


FUNCTIONS = [layer_norm, rms_norm, residual_norm, post_norm, second_norm, dropped]
each_function = pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
undropped = pytest.mark.parametrize("f", FUNCTIONS[:-1], ids=lambda f: f.__name__)


def inputs(grad: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return rows(dtype=dtype, grad=grad), channels(dtype=dtype, grad=grad), channels(dtype=dtype, grad=grad)


def with_grads(f: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    y = f(*args)
    return y, *torch.autograd.grad(y.sin().sum(), [a for a in args if a.requires_grad])


# torch.compile, torch.export ------------------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True])
@each_function
def test_compile(f, dynamic, fresh_dynamo):
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (3, 7):
        args = rand(n, 5, CHANNELS, grad=True), channels(grad=True), channels(grad=True)
        assert_close(with_grads(compiled, *args), with_grads(f, *args))
        with torch.no_grad():
            torch.manual_seed(2)
            expected = f(*args)
            torch.manual_seed(2)
            assert_close(compiled(*args), expected)


def test_compile_does_not_recompile_for_the_batch(fresh_dynamo):
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(layer_norm, fullgraph=True, dynamic=True, backend=counter)
    w, b = channels(), channels()
    for n in (2, 5, 9, 17):
        assert_close(compiled(rand(n, CHANNELS), w, b), layer_norm(rand(n, CHANNELS) * 0 + 0, w, b) * 0, rtol=0, atol=1e9)
    assert counter.frame_count == 1


@pytest.mark.parametrize("f", [layer_norm, dropped], ids=lambda f: f.__name__)
def test_compile_with_inductor(f, fresh_dynamo):
    compiled = torch.compile(lambda *a: f(*a).relu(), fullgraph=True)
    args = inputs()
    if f is layer_norm:
        assert_close(with_grads(compiled, *args), with_grads(lambda *a: f(*a).relu(), *args))
    y = compiled(*args)
    y.sum().backward()
    assert all(t.grad.isfinite().all() for t in args)


def test_compile_in_place_and_out(fresh_dynamo):
    def f(x: Tensor, residual: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, residual, out = x.clone(), residual.clone(), torch.empty_like(x)
        weft.rms_norm(x, (CHANNELS,), w, out=out)
        weft.fused_add_rms_norm(x, residual, w)
        return x, residual, out

    args = rows(), rows(), channels()
    assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(*args), f(*args))


def test_compile_int8(fresh_dynamo):
    def f(x: Tensor, w: Tensor, b: Tensor) -> tuple:
        out = weft.layer_norm_int8(x, w, b, symmetric=False, residual=x, prenorm=True)
        static = weft.rms_norm_int8(x, w, scale=torch.tensor([0.1]), zero_point=2)
        return *out, static.values, static.scale

    args = inputs(grad=False)
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_close(compiled(*args), f(*args))


class Block(nn.Module):
    """All modules in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a = weft.nn.LayerNorm(CHANNELS)
        self.b = weft.nn.RMSNorm(CHANNELS)
        self.c = weft.nn.DropoutAddLayerNorm(CHANNELS, prenorm=True)
        self.d = weft.nn.FusedLayerNorm(CHANNELS)
        self.e = weft.nn.MixedFusedRMSNorm(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.c(self.a(x), self.b(x))
        return self.e(self.d(y) + z)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_export(strict, grad):
    block = Block()
    with torch.set_grad_enabled(grad):
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(
            block, (rows(),), dynamic_shapes={"x": {0: batch}}, strict=strict
        )
        x = rand(9, 5, CHANNELS)
        assert_close(program.module()(x), block(x))
        loaded = io.BytesIO()
        torch.export.save(program.run_decompositions({}), loaded)
        loaded.seek(0)
        assert_close(torch.export.load(loaded).module()(x), block(x))


def test_fx_symbolic_trace():
    traced = torch.fx.symbolic_trace(nn.Sequential(weft.nn.LayerNorm(CHANNELS), weft.nn.RMSNorm(CHANNELS)))
    x = rows()
    assert weft.layer_norm in [node.target for node in traced.graph.nodes]
    assert_close(traced(x), F.rms_norm(F.layer_norm(x, (CHANNELS,)), (CHANNELS,)))


# autograd ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
@each_function
def test_checkpoint(f, use_reentrant):
    """Dropout draws the same mask when the forward pass is computed again."""
    args = inputs()
    again = with_grads_backward(lambda *a: checkpoint(f, *a, use_reentrant=use_reentrant), *args)
    assert_close(again, with_grads_backward(f, *args))


def with_grads_backward(f: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
    """Through .backward(), which reentrant checkpoints demand."""
    for a in args:
        a.grad = None
    torch.manual_seed(1)
    y = f(*args)
    y.sin().sum().backward()
    return y, *(a.grad for a in args)


def test_seed_sets_the_mask():
    x = rows()

    def mask() -> Tensor:
        return weft.layer_norm_fn(x, None, None, dropout_p=0.5, return_dropout_mask=True)[1]

    torch.manual_seed(7)
    first, second = mask(), mask()
    torch.manual_seed(7)
    assert torch.equal(first, mask())
    assert not torch.equal(first, second)


def test_statistics_and_masks_are_not_differentiable():
    args = next(a for a in forward_samples(grad=True) if a.dropout_p > 0)
    y, y1, z, *others = OPS.norm_forward(*args)
    assert y.requires_grad and z.requires_grad
    assert not any(t.requires_grad for t in others)


def test_raw_op_says_what_a_gradient_needs():
    with pytest.raises(RuntimeError, match="a gradient needs save_stats=True"):
        OPS.norm_forward(*NormArgs(rows(grad=True), 1))


def saved_bytes(f: Callable[[], Tensor], *arguments: Tensor) -> int:
    """What autograd keeps, apart from the arguments themselves."""
    known = {t.untyped_storage().data_ptr() for t in arguments}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = f()
    del result
    return sum(kept.values())


def test_saves_what_backward_needs_and_no_more():
    x, w, b = inputs()
    r = rows(grad=True)
    statistic, z = 4 * 15, 4 * 15 * CHANNELS
    assert saved_bytes(lambda: layer_norm(x, w, b), x, w, b) == 2 * statistic
    assert saved_bytes(lambda: rms_norm(x, w, b), x, w, b) == statistic
    assert saved_bytes(lambda: weft.layer_norm_fn(x, w, b, residual=r), x, w, b, r) == 2 * statistic + z
    dropout = lambda: weft.rms_norm_fn(x, w, b, residual=r, dropout_p=0.5)  # noqa: E731
    assert saved_bytes(dropout, x, w, b, r) == statistic + z + 16
    efficient = lambda: weft.layer_norm(x, (CHANNELS,), w, b, memory_efficient=True)  # noqa: E731
    assert saved_bytes(efficient, x, w, b) == statistic + z


def test_equal_gradients_are_one_tensor():
    x, r, r2 = rows(grad=True), rows(grad=True), rows(grad=True)
    y = weft.layer_norm_fn(x, None, None, residual=r, residual2=r2)
    dx, dr, dr2 = torch.autograd.grad(y.sin().sum(), [x, r, r2])
    assert dx.data_ptr() == dr.data_ptr() == dr2.data_ptr()
    x16 = rows(dtype=torch.bfloat16, grad=True)
    y = weft.layer_norm_fn(x16, None, None, residual=r, residual2=r2, residual_alpha=0.5)
    dx, dr, dr2 = torch.autograd.grad(y.float().sin().sum(), [x16, r, r2])
    assert dx.dtype == torch.bfloat16
    assert_close(dr, 0.5 * dr2)


def test_frozen_parameters_get_no_gradient():
    x, w, b = inputs()
    w.requires_grad_(False)
    y = layer_norm(x, w, b)
    y.sum().backward()
    assert w.grad is None and x.grad is not None and b.grad is not None


def test_gradients_have_their_tensors_dtypes():
    x, w, b = rows(dtype=torch.bfloat16, grad=True), channels(grad=True), channels(dtype=torch.float16, grad=True)
    w1, b1 = channels(dtype=torch.bfloat16, grad=True), channels(dtype=torch.float64, grad=True)
    r = rows(grad=True)
    y, y1, z = weft.layer_norm_fn(x, w, b, r, weight1=w1, bias1=b1, prenorm=True)
    assert z.dtype == torch.float32
    leaves = [x, w, b, w1, b1, r]
    grads = torch.autograd.grad((y.float().sin() + y1.float() + z).sum(), leaves)
    assert [g.dtype for g in grads] == [t.dtype for t in leaves]


@undropped
def test_only_the_residual_is_used(f):
    x, w, b = inputs()
    _, z = weft.layer_norm_fn(x, w, b, residual=x.detach(), prenorm=True)
    (dx,) = torch.autograd.grad(z.sin().sum(), [x])
    assert_close(dx, (2 * x).cos().detach())


@each_function
def test_second_derivatives(f):
    args = inputs(dtype=torch.float64)
    f(*args)

    def seeded(*a: Tensor) -> Tensor:
        torch.manual_seed(3)
        return f(*a)

    torch.autograd.gradgradcheck(seeded, args)


def test_first_derivatives_with_create_graph_are_those_without():
    x, w, b = inputs(dtype=torch.float64)
    ls, xb = channels(dtype=torch.float64, grad=True), channels(dtype=torch.float64, grad=True)
    rs = rand(*ROWS, dtype=torch.float64)
    y = weft.layer_norm_fn(
        x, w, b, x.sin(), layerscale=ls, x_bias=xb, rowscale=rs, dropout_p=0.5, rng_state=RNG, residual_alpha=2.0
    )  # fmt: skip
    leaves = [x, w, b, ls, xb]
    once = torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True)
    assert_close(torch.autograd.grad(y.sin().sum(), leaves, create_graph=True), once)


def test_memory_efficient_refuses_second_derivatives():
    x = rows(grad=True)
    y = weft.layer_norm(x, (CHANNELS,), memory_efficient=True)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_gradients_that_do_not_exist_are_refused():
    x, w, _ = inputs()
    with pytest.raises(NotImplementedError, match="rowscale has no gradient"):
        weft.layer_norm_fn(x, w, None, rowscale=rand(*ROWS, grad=True))
    with pytest.raises(RuntimeError, match="out= has no gradient"):
        weft.layer_norm(x, (CHANNELS,), w, out=rows())
    with pytest.raises(RuntimeError, match="in-place norm has no gradient"):
        weft.fused_add_rms_norm(x, rows(), w)
    with pytest.raises(ValueError, match="rowscale cannot be combined with x1"):
        weft.layer_norm_fn(x, w, None, x1=x, rowscale=rand(*ROWS))


# torch.func, forward-mode AD -------------------------------------------------------------------------------------

PAIRS = [
    (weft.layer_norm, F.layer_norm),
    (weft.rms_norm, F.rms_norm),
]
each_pair = pytest.mark.parametrize("ours, theirs", PAIRS, ids=["layer_norm", "rms_norm"])


@each_pair
@pytest.mark.parametrize("in_dims", [(0, None), (1, None), (2, None), (0, 0), (None, 0), (1, 1)], ids=str)
def test_vmap(ours, theirs, in_dims):
    x, w = rand(6, 6, 6, grad=True), rand(6, grad=True) if in_dims[1] is None else rand(6, 6, grad=True)

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


# autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@each_pair
def test_autocast_cpu(ours, theirs, dtype):
    """PyTorch's norms keep the dtype on the CPU, and so do ours."""
    x = rows(dtype=dtype)
    w = channels(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x, (CHANNELS,), w).dtype == theirs(x, (CHANNELS,), w).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
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


# fake and meta tensors -----------------------------------------------------------------------------------------------


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


# modules -----------------------------------------------------------------------------------------------------------

MODULES: list[tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = [
    (lambda: weft.nn.LayerNorm(CHANNELS), lambda: nn.LayerNorm(CHANNELS)),
    (lambda: weft.nn.LayerNorm(CHANNELS, bias=False), lambda: nn.LayerNorm(CHANNELS, bias=False)),
    (
        lambda: weft.nn.LayerNorm([5, CHANNELS], 1e-3, dtype=torch.float64),
        lambda: nn.LayerNorm([5, CHANNELS], 1e-3, dtype=torch.float64),
    ),
    (
        lambda: weft.nn.LayerNorm(CHANNELS, elementwise_affine=False),
        lambda: nn.LayerNorm(CHANNELS, elementwise_affine=False),
    ),
    (lambda: weft.nn.RMSNorm(CHANNELS), lambda: nn.RMSNorm(CHANNELS)),
    (lambda: weft.nn.RMSNorm((5, CHANNELS), 1e-3), lambda: nn.RMSNorm((5, CHANNELS), 1e-3)),
    (lambda: weft.nn.FusedLayerNorm(CHANNELS), lambda: nn.LayerNorm(CHANNELS)),
    (lambda: weft.nn.FusedRMSNorm(CHANNELS), lambda: nn.RMSNorm(CHANNELS, 1e-5)),
    (lambda: weft.nn.MixedFusedLayerNorm(CHANNELS), lambda: nn.LayerNorm(CHANNELS)),
    (lambda: weft.nn.MixedFusedRMSNorm(CHANNELS), lambda: nn.RMSNorm(CHANNELS, 1e-5)),
    (lambda: weft.nn.DropoutAddLayerNorm(CHANNELS), lambda: nn.LayerNorm(CHANNELS)),
    (lambda: weft.nn.DropoutAddRMSNorm(CHANNELS), lambda: nn.RMSNorm(CHANNELS, 1e-5)),
]


@pytest.mark.parametrize("ours, theirs", MODULES, ids=[str(ours()) for ours, _ in MODULES])
def test_modules_take_and_give_torch_checkpoints(ours, theirs):
    ours, theirs = ours(), theirs()
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    dtype = next((p.dtype for p in theirs.parameters()), torch.float32)
    x = rows(dtype=dtype)
    assert_close(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict(), strict=True)

    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is type(ours)
        assert str(copied) == str(ours)
        assert_close(copied(x), ours(x))
    assert "meta" == next((p.device.type for p in copy.deepcopy(ours).to("meta").parameters()), "meta")


def test_modules_subclass_torch():
    assert issubclass(weft.nn.LayerNorm, nn.LayerNorm)
    assert issubclass(weft.nn.RMSNorm, nn.RMSNorm)


def test_zero_centered_modules_start_as_the_identity_weight():
    x = rows()
    for ours, theirs in ((weft.nn.LayerNorm, nn.LayerNorm), (weft.nn.RMSNorm, nn.RMSNorm)):
        module = ours(CHANNELS, zero_centered_weight=True)
        assert not module.weight.any()
        assert "zero_centered_weight=True" in str(module)
        assert_close(module(x), theirs(CHANNELS)(x))


def test_torch_instances_become_weft_by_their_class():
    module = nn.RMSNorm(CHANNELS)
    module.__class__ = weft.nn.RMSNorm
    assert_close(module(rows() * 0 + 1), torch.ones(*ROWS, CHANNELS))


def test_mixed_modules_return_the_parameters_dtype():
    x = rows(dtype=torch.bfloat16, grad=True)
    assert weft.nn.FusedLayerNorm(CHANNELS)(x).dtype == torch.bfloat16
    for module in (weft.nn.MixedFusedLayerNorm(CHANNELS), weft.nn.MixedFusedRMSNorm(CHANNELS)):
        y = module(x)
        assert y.dtype == torch.float32
        y.sin().sum().backward()
        assert x.grad.dtype == torch.bfloat16 and module.weight.grad.dtype == torch.float32
        x.grad = None
    with pytest.warns(UserWarning, match="elementwise_affine"):
        weft.nn.MixedFusedRMSNorm(CHANNELS, elementwise_affine=True)
    with pytest.raises(RuntimeError, match="elementwise_affine"), warnings.catch_warnings(action="ignore"):
        weft.nn.MixedFusedLayerNorm(CHANNELS, elementwise_affine=False)


def test_compat_names():
    from weft.compat import vllm
    from weft.compat.apex.normalization import fused_layer_norm as apex
    from weft.compat.flash_attn.ops import layer_norm as fa_layer_norm
    from weft.compat.flash_attn.ops import rms_norm as fa_rms_norm
    from weft.compat.flash_attn.ops.triton import layer_norm as fa_triton

    x, w, b = inputs(grad=False)
    expected, expected_rms = F.layer_norm(x, (CHANNELS,), w, b, 1e-5), F.rms_norm(x, (CHANNELS,), w, 1e-5)
    assert_close(apex.fused_layer_norm_affine(x, w, b, CHANNELS, 1e-5), expected)
    assert_close(apex.fused_rms_norm_affine(x, w, (CHANNELS,), 1e-5, True), expected_rms)
    assert_close(apex.manual_rms_norm(x, (CHANNELS,), w, 1e-5), expected_rms)
    assert apex.manual_rms_norm(x.bfloat16(), (CHANNELS,), None, 1e-5).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert apex.mixed_dtype_fused_layer_norm_affine(x, w, b, CHANNELS).dtype == torch.bfloat16

    assert_close(fa_layer_norm.layer_norm(x, w, b, 1e-5), expected)
    assert_close(fa_rms_norm.RMSNorm(CHANNELS)(x), F.rms_norm(x, (CHANNELS,), eps=1e-5))
    assert_close(fa_triton.rms_norm_fn(x, w, None, eps=1e-5), expected_rms)
    module = fa_triton.RMSNorm(CHANNELS, dropout_p=0.5, zero_centered_weight=True).eval()
    assert_close(module(x), F.rms_norm(x, (CHANNELS,), eps=1e-5))
    y, z, mask = fa_rms_norm.dropout_add_rms_norm(
        x, None, w, None, 0.0, 1e-5, prenorm=True, return_dropout_mask=True
    )
    assert z is x and mask.dtype == torch.uint8 and mask.all()
    y, y1, mask, mask1 = fa_layer_norm.dropout_add_layer_norm_parallel_residual(
        x, x, None, w, b, None, None, 0.5, 1e-5, return_dropout_mask=True
    )
    assert y1 is None and not torch.equal(mask, mask1)

    out = torch.empty_like(x)
    vllm.rms_norm(out, x, w, 1e-5)
    assert_close(out, expected_rms)
    residual = rows()
    total = x + residual
    vllm.fused_add_rms_norm(x, residual, w, 1e-5)
    assert_close(residual, total)
    assert_close(x, F.rms_norm(total, (CHANNELS,), w, 1e-5))


# what flash-attn's function returns ----------------------------------------------------------------------------------


def test_results_of_layer_norm_fn():
    x, w, b = inputs(grad=False)
    assert isinstance(weft.layer_norm_fn(x, w, b), Tensor)
    _, z = weft.layer_norm_fn(x, w, b, prenorm=True)
    assert z is x
    _, z = weft.layer_norm_fn(x.bfloat16(), w, b, prenorm=True, residual_in_fp32=True)
    assert z.dtype == torch.float32
    _, z = weft.layer_norm_fn(x, w, b, x.bfloat16(), prenorm=True, residual_in_fp32=True)
    assert z.dtype == torch.bfloat16
    y, mask, mask1 = weft.layer_norm_fn(x, w, b, return_dropout_mask=True)
    assert mask is None and mask1 is None
    results = weft.layer_norm_fn(
        x, w, b, x, x1=x, weight1=w, dropout_p=0.5, prenorm=True, return_dropout_mask=True, rng_state=RNG
    )
    assert [t.dtype for t in results] == [torch.float32] * 3 + [torch.bool] * 2
    for stream, mask in enumerate(results[3:]):
        assert torch.equal(mask, weft.dropout_mask(RNG, x.shape, 0.5, stream))


def test_out_of_layer_norm_fn():
    x, w, b = inputs(grad=False)
    options = {"residual": x.cos(), "dropout_p": 0.5, "rng_state": RNG, "prenorm": True, "return_dropout_mask": True}
    expected = weft.layer_norm_fn(x, w, b, **options)
    out, residual_out = torch.empty_like(x), torch.empty_like(x)
    results = weft.layer_norm_fn(x, w, b, out=out, residual_out=residual_out, **options)
    assert results[0] is out and results[1] is residual_out
    assert_close(results, expected)
    assert_close(weft.layer_norm_fn(x, w, b, out=torch.empty_like(x), **options), expected)
    assert weft.layer_norm_fn(x, w, b, prenorm=True, out=out)[1] is x
    with pytest.raises(NotImplementedError, match="weight1"):
        weft.layer_norm_fn(x, w, b, weight1=w, out=out)


@each_pair
def test_shapes_are_checked(ours, theirs):
    x = rows()
    assert_close(ours(x, [CHANNELS]), ours(x, torch.Size([CHANNELS])))
    with pytest.raises(TypeError, match="expected a tuple or list of ints"):
        ours(x, CHANNELS)
    with pytest.raises(TypeError, match="expected ints"):
        ours(x, (float("nan"),))
    for shape in ((CHANNELS + 1,), (), (1, *x.shape)):
        with pytest.raises(ValueError, match="expected the last dimensions of input"):
            ours(x, shape)
