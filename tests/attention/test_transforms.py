"""Attention inside PyTorch's subsystems: compile, export, checkpoint, autocast, vmap, fakes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weft
from weft import reference

from .cases import FLOATS, draw, integers, name

# ------------------------------------------------------------------------------------- functions


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out, lse = weft.attention(q, k, v, causal=True, softcap=3.0, return_lse=True)
    return out + lse.transpose(1, 2)[..., None]


def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias, sinks = q.mean(-1).transpose(1, 2)[..., None], q[0, 0, :, 0]
    return weft.attention(q, k, v, bias=bias, sinks=sinks, mask=bias > -1)


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weft.flash_attn_func(q, k, v, 0.4, causal=True)


def as_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return weft.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    cu_q, cu_k = integers([0, 3, 10]), integers([0, 6, 14])
    tensors = (t.flatten(0, 1) for t in (q, k, v))
    return weft.flash_attn_varlen_func(*tensors, cu_q, cu_k, 7, 8, causal=True)


def turned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    table = reference_table(16)
    q, k = (weft.apply_rotary_emb(t, *table, seqlen_offsets=3) for t in (q, k))
    parts, lses = zip(
        *(
            weft.attention(q, k[:, keys], v[:, keys], return_lse=True)
            for keys in (slice(0, 3), slice(3, 7))
        ),
        strict=True,
    )
    out, lse = weft.merge_attn_states(parts, lses)
    return out + lse.transpose(1, 2)[..., None]


def reference_table(rows: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(rows)[:, None] * torch.tensor([1.0, 0.3, 0.1])
    return angle.cos(), angle.sin()


FUNCTIONS = [attend, biased, dropped, as_torch, packed, turned]
each_function = pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)


def inputs(grad: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    shapes = (2, 5, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8)
    return tuple(draw(shape, dtype).requires_grad_(grad) for shape in shapes)


def with_grads(f: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    y = f(*args)
    return y, *torch.autograd.grad(y.sin().sum(), args)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# --------------------------------------------------------------------------------- torch.compile


@each_function
def test_compile(f: Callable[..., Tensor], fresh_dynamo: None) -> None:
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    args = inputs()
    assert_close(with_grads(compiled, *args), with_grads(f, *args))
    with torch.no_grad():
        torch.manual_seed(2)
        expected = f(*args)
        torch.manual_seed(2)
        assert_close(compiled(*args), expected)


def test_compile_does_not_recompile_for_batch_and_lengths(fresh_dynamo: None) -> None:
    counter = CompileCounter()
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=counter)
    for B, S, T in ((3, 5, 7), (9, 6, 33), (6, 17, 65)):  # no two alike at first
        compiled(draw((B, S, 4, 8)), draw((B, T, 2, 8)), draw((B, T, 2, 8)))
    assert counter.frame_count == 1


def test_compile_with_inductor(fresh_dynamo: None) -> None:
    def f(*args: Tensor) -> Tensor:
        return biased(*(t.cos() for t in args)).relu()

    args = inputs()
    assert_close(with_grads(torch.compile(f, fullgraph=True), *args), with_grads(f, *args))


def decode(q: Tensor, k: Tensor, v: Tensor, caches: tuple[Tensor, Tensor], used: Tensor) -> Tensor:
    caches = caches[0].clone(), caches[1].clone()
    return weft.flash_attn_with_kvcache(q, *caches, k, v, *reference_table(40), used, causal=True)


def test_compile_decode(fresh_dynamo: None) -> None:
    q, k, v = inputs(grad=False)
    call = q, k, v, (draw((2, 30, 2, 8)), draw((2, 30, 2, 8))), integers([3, 20])
    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*call), decode(*call))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_export(strict: bool, grad: bool) -> None:
    class Block(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v) + as_torch(q, k, v).transpose(1, 2)

    block, args = Block(), inputs(grad=False)
    B, S, T = (torch.export.Dim(x, min=2, max=64) for x in "BST")
    shapes = {0: B, 1: S}, {0: B, 1: T}, {0: B, 1: T}
    with torch.set_grad_enabled(grad):
        program = torch.export.export(block, args, dynamic_shapes=shapes, strict=strict)
        others = draw((3, 9, 4, 8)), draw((3, 11, 2, 8)), draw((3, 11, 2, 8))
        assert_close(program.module()(*others), block(*others))
        loaded = io.BytesIO()
        torch.export.save(program.run_decompositions({}), loaded)
        loaded.seek(0)
        assert_close(torch.export.load(loaded).module()(*others), block(*others))


# -------------------------------------------------------------------------------------- autograd


@each_function
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(f: Callable[..., Tensor], reentrant: bool) -> None:
    args = inputs()

    def again(*args: Tensor) -> Tensor:
        return checkpoint(f, *args, use_reentrant=reentrant)

    torch.manual_seed(1)
    y = again(*args)
    y.sin().sum().backward()
    assert_close((y, *(t.grad for t in args)), with_grads(f, *args))


def test_no_graph_without_need() -> None:
    q, k, v = inputs()
    with torch.no_grad():
        assert not weft.attention(q, k, v).requires_grad
    assert not weft.attention(*(t.detach() for t in (q, k, v))).requires_grad
    with torch.inference_mode():
        assert weft.attention(q, k, v).is_inference()
    assert weft.attention(q, k.detach(), v.detach()).requires_grad


def test_what_has_no_gradient_says_so() -> None:
    q, k, v = inputs()

    def twice() -> None:
        (grad,) = torch.autograd.grad(weft.attention(q, k, v).square().sum(), q, create_graph=True)
        grad.sum().backward()

    def dual() -> None:
        with torch.autograd.forward_ad.dual_level():
            weft.attention(torch.autograd.forward_ad.make_dual(q.detach(), q.detach()), k, v)

    def func() -> None:
        torch.func.grad(lambda q: weft.attention(q, k, v).sum())(q)

    int8 = {"k_scale": torch.ones(2), "v_scale": torch.ones(2)}
    integral = k.detach().to(torch.int8)
    slopes = torch.rand(4, requires_grad=True)
    cases: list[tuple[Callable[[], Any], str]] = [
        (twice, "can be differentiated only once"),
        (dual, "forward-mode AD do not"),
        (func, "torch.func and forward-mode"),
        (lambda: weft.attention(q, integral, integral, **int8), "k_scale has no backward"),
        (lambda: weft.attention(q, k, v, leftpad_k=integers([0, 0])), "leftpad_k has no backward"),
        (lambda: weft.attention(q, k, v, out_scale=torch.ones(1)), "out_scale has no backward"),
        (lambda: weft.attention(q, k, v, alibi_slopes=slopes), "alibi_slopes has no gradient"),
        (
            lambda: weft.apply_rotary_emb(q, *(t.requires_grad_() for t in reference_table(9))),
            "cos and sin have no gradient",
        ),
        (lambda: weft.kv_cache_append_(k.detach(), v.detach(), k, v), "has no gradient"),
    ]
    for call, message in cases:
        with pytest.raises((RuntimeError, NotImplementedError), match=message):
            call()


def test_create_graph_alone_is_no_error() -> None:
    q, k, v = inputs()
    loss = weft.attention(q, k, v).square().sum()
    once = torch.autograd.grad(loss, q, retain_graph=True)
    assert_close(torch.autograd.grad(loss, q, create_graph=True), once)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_gradcheck(interleaved: bool) -> None:
    x = draw((2, 3, 2, 8), torch.float64).requires_grad_()
    table = [t.double() for t in reference_table(9)]
    for inplace in (False, True):

        def f(x: Tensor, inplace: bool = inplace) -> Tensor:
            x = x.clone() if inplace else x
            return weft.apply_rotary_emb(
                x, *table, interleaved, inplace=inplace, seqlen_offsets=integers([4, 0])
            )

        assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)


def test_merge_gradients() -> None:
    parts, lses = draw((3, 2, 5, 4, 8)).requires_grad_(), draw((3, 2, 4, 5)).requires_grad_()
    upstream = draw((2, 5, 4, 8)), draw((2, 4, 5))
    ours, expected = (
        torch.autograd.grad(merge(parts, lses), (parts, lses), upstream)
        for merge in (weft.merge_attn_states, reference.attention.merge_attn_states)
    )
    assert_close(ours, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_what_an_empty_part_holds_has_no_gradient(value: float) -> None:
    parts, lses = draw((3, 2, 5, 4, 8)), draw((3, 2, 4, 5))
    parts[1], lses[1] = value, -math.inf
    upstream = draw((2, 5, 4, 8)), draw((2, 4, 5))

    def gradients(parts: Tensor, lses: Tensor) -> tuple[Tensor, ...]:
        leaves = parts.requires_grad_(), lses.requires_grad_()
        return torch.autograd.grad(weft.merge_attn_states(*leaves), leaves, upstream)

    dparts, dlses = gradients(parts, lses)
    assert not dparts[1].any() and not dlses[1].any()
    for ours, expected in zip((dparts, dlses), gradients(parts[::2], lses[::2]), strict=True):
        assert_close(ours[::2], expected)


def test_versions_are_counted() -> None:
    """Autograd notices that what it saved was written over."""
    q, k, v = inputs()
    caches = k.detach().clone(), v.detach().clone()
    scales = torch.zeros(2, 7, 2), torch.zeros(2, 7, 2)
    new = [t[:, :1].detach() for t in (k, v)]

    def append(*caches: Tensor) -> None:
        weft.kv_cache_append_(*caches, *new)

    def append_int8(*scales: Tensor) -> None:
        int8 = (torch.zeros(2, 7, 2, 8, dtype=torch.int8) for _ in range(2))
        weft.kv_cache_append_(*int8, *new, k_scale=scales[0], v_scale=scales[1])

    def turn(x: Tensor, _: Tensor) -> None:
        weft.apply_rotary_emb(x, *reference_table(16), inplace=True)

    for write, tensors in ((append, caches), (append_int8, scales), (turn, caches)):
        for saved in tensors[: 1 if write is turn else 2]:
            loss = (saved * torch.ones_like(saved).requires_grad_()).sum()
            write(*tensors)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


# ------------------------------------------------------------------------------- autocast and vmap


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("grad", [False, True])
def test_autocast(dtype: torch.dtype, grad: bool) -> None:
    """The dtype of torch's own attention; gradients have that of the inputs."""
    args = inputs(grad, dtype)
    for lower in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", lower):
            out = as_torch(*args)
            q, k, v = (t.transpose(1, 2) for t in args)
            theirs = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            assert out.dtype == theirs.dtype
        if grad:
            grads = torch.autograd.grad(out.float().sum(), args)
            assert all(g.dtype == dtype for g in grads)


def test_autocast_compiled(fresh_dynamo: None) -> None:
    def f(*args: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return as_torch(*args).sin()

    args = inputs()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert_close(with_grads(compiled, *args), with_grads(f, *args))


@pytest.mark.parametrize("in_dims", [(0, None, None), (1, 1, 1), (4, 0, None)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"alibi_slopes": torch.tensor([0.1, 0.2])}], ids=str
)
def test_vmap(in_dims: tuple[int | None, ...], options: dict[str, Any]) -> None:
    def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return weft.attention(q, k, v, **options)

    shape = 2, 5, 2, 8
    args = [
        draw(shape if d is None else (*shape[:d], 3, *shape[d:])).requires_grad_() for d in in_dims
    ]

    def by_hand(*args: Tensor) -> Tensor:
        samples = (
            [t if d is None else t.select(d, i) for t, d in zip(args, in_dims, strict=True)]
            for i in range(3)
        )
        return torch.stack([one(*sample) for sample in samples])

    mapped = torch.vmap(one, in_dims)
    assert_close(with_grads(mapped, *args), with_grads(by_hand, *args))
    with torch.no_grad():
        assert_close(mapped(*args), by_hand(*args))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_dropout(randomness: str) -> None:
    def one(v: Tensor) -> Tensor:
        return weft.attention(torch.zeros(1, 40, 2, 8), torch.zeros(1, 40, 2, 8), v, dropout_p=0.5)

    out = torch.vmap(one, randomness=randomness)(torch.ones(3, 1, 40, 2, 8))
    assert torch.equal(out[0], out[1]) == (randomness == "same")


def test_vmap_of_gradients() -> None:
    q, k, v = inputs()
    out = weft.attention(q, k, v, causal=True)
    upstream = draw((3, *out.shape))
    batched = torch.autograd.grad(out, q, upstream, is_grads_batched=True, retain_graph=True)[0]
    expected = [torch.autograd.grad(out, q, g, retain_graph=True)[0] for g in upstream]
    assert_close(batched, torch.stack(expected))


# ------------------------------------------------------------------------------ fake and meta


def test_fake_and_meta() -> None:
    with FakeTensorMode():
        q, k, v = (t.detach() for t in inputs())
        out, lse = weft.attention(
            q.bfloat16(), k.bfloat16(), v[..., :5].bfloat16(), return_lse=True
        )
        assert out.shape == (2, 5, 4, 5) and out.dtype == torch.bfloat16
        assert lse.shape == (2, 4, 5) and lse.dtype == torch.float32
    q, k, v = (t.to("meta") for t in inputs(grad=False, dtype=torch.float64))
    out, lse = weft.attention(q, k, v, return_lse=True, out_scale=torch.ones(1, device="meta"))
    assert out.dtype == torch.int8 and out.device.type == "meta" and lse.dtype == torch.float64
    with pytest.raises(RuntimeError, match="k is not on the device of q"):
        weft.attention(q, *inputs(grad=False)[1:])


def test_compiled_for_cuda() -> None:
    """Of fake tensors, without a GPU: nothing asks what lengths and pages are. One op each."""

    def fake(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    def attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
        return weft.flash_attn_varlen_func(q, k, v, starts, starts, 32, 32, causal=True)

    def decode(q: Tensor, k: Tensor, k_cache: Tensor, v_cache: Tensor, *where: Tensor) -> Any:
        used, pages = where
        return weft.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, k, cache_seqlens=used, block_table=pages, causal=True
        )

    graphs = []

    def collect(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with FakeTensorMode(), torch.no_grad():
        queries, keys, starts = fake(70, 4, 64), fake(70, 2, 64), fake(3, dtype=torch.int32)
        out = torch.compile(attend, backend=collect, fullgraph=True)(queries, keys, keys, starts)
        rows = fake(2, 1, 4, 64), fake(2, 1, 2, 64), fake(6, 16, 2, 64), fake(6, 16, 2, 64)
        where = fake(2, dtype=torch.int32), fake(2, 3, dtype=torch.int32)
        graphs.append(make_fx(decode)(*rows, *where))
        assert out.device.type == "cuda" and out.shape == queries.shape
    for graph, op in zip(graphs, ("attention_forward", "attention_with_kvcache_"), strict=True):
        ours = [n.target for n in graph.graph.nodes if "weft" in str(n.target)]
        assert ours == [getattr(torch.ops.weft, op).default]
