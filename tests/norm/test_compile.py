"""torch.compile, torch.export, FX."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

import weft

from .torch_cases import (
    CHANNELS,
    channels,
    dropped,
    each_function,
    inputs,
    layer_norm,
    rand,
    rows,
    with_grads,
)


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
    counter = CompileCounter()
    compiled = torch.compile(layer_norm, fullgraph=True, dynamic=True, backend=counter)
    w, b = channels(), channels()
    for n in (2, 5, 9, 17):
        compiled(rand(n, CHANNELS), w, b)
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
    traced = torch.fx.symbolic_trace(
        nn.Sequential(weft.nn.LayerNorm(CHANNELS), weft.nn.RMSNorm(CHANNELS))
    )
    x = rows()
    assert weft.layer_norm in [node.target for node in traced.graph.nodes]
    assert_close(traced(x), F.rms_norm(F.layer_norm(x, (CHANNELS,)), (CHANNELS,)))
