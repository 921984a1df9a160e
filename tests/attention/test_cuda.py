"""Attention on GPUs as torch uses them: streams, several devices, CUDA graphs; and the same bits
each time of calls that fill the GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import weft
from backends import NEEDS_GPU, captured

from .cases import integers
from .cases import starts as packed

pytestmark = NEEDS_GPU
H, K, D = 8, 2, 64


def normal(*shape: int, device: str = "cuda") -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=device)


def decode(B: int, T: int, device: str = "cuda") -> Callable[[], Tensor]:
    """Splits, whose parts lie in a workspace."""
    q, k, v = (normal(B, n, heads, D, device=device) for n, heads in ((1, H), (T, K), (T, K)))
    return lambda: weft.attention(q, k, v, num_splits=4)


def test_streams() -> None:
    """A call and its workspace belong to the stream that is current."""
    calls = [decode(3, 500) for _ in range(4)]
    expected = [call() for call in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    for _ in range(20):
        found = []
        for stream, call in zip(streams, calls, strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                found.append(call())
        torch.cuda.synchronize()
        assert all(map(torch.equal, found, expected))


def test_a_call_waits_for_its_stream() -> None:
    q, k, v = (normal(2, 300, heads, D) for heads in (H, K, K))
    expected = weft.attention(q, k, v)
    late = torch.zeros_like(q)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10**8)
        late.copy_(q)
        found = weft.attention(late, k, v)
    torch.cuda.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_devices() -> None:
    """A call runs where its tensors are, and leaves the current device as it is."""
    for device in ("cuda:1", "cuda:0"):
        call = decode(2, 300, device)
        out = call()
        assert str(out.device) == device and torch.cuda.current_device() == 0
        with torch.cuda.device(device):
            assert torch.equal(call(), out)
    with pytest.raises(RuntimeError, match="k is not on the device of q"):
        weft.attention(normal(1, 1, H, D), *(normal(1, 9, K, D, device="cuda:1") for _ in "kv"))


@pytest.mark.parametrize("S", [1, 40])
def test_a_graph_of_decoding(S: int) -> None:
    """The cache grows from replay to replay: lengths and pages are looked up by the kernels."""
    B, page, pages = 2, 16, 12
    q, k, v = (normal(B, S, heads, D) for heads in (H, K, K))
    table = torch.randperm(B * pages, device="cuda").to(torch.int32).view(B, pages)
    angle = torch.rand(page * pages, D // 2, device="cuda") * 7

    def step(caches: list[Tensor], used: Tensor) -> Tensor:
        return weft.flash_attn_with_kvcache(
            q, *caches, k, v, angle.cos(), angle.sin(), cache_seqlens=used, block_table=table,
            causal=True,
        )  # fmt: skip

    caches = [normal(B * pages, page, K, D) for _ in "kv"]
    used, others = integers([0, 3], "cuda"), [t.clone() for t in caches]
    graph, out = captured(lambda: step(caches, used))
    for t, other in zip(caches, others, strict=True):
        t.copy_(other)
    for n in range(0, 120, 40):
        used.copy_(integers([n, n + 3], "cuda"))
        q.normal_()
        graph.replay()
        assert torch.equal(out, step(others, used))
    assert all(map(torch.equal, caches, others))


def test_a_graph_of_prompts_and_decoding() -> None:
    """Who decodes, and who has a prompt, changes from replay to replay."""
    lengths = [1, 260, 3, 0], [261, 0, 2, 1], [66, 66, 66, 66], [1, 1, 1, 1]
    B, page, pages, total = 4, 16, 40, max(map(sum, lengths))
    q, k, v = normal(total, H, D), *(normal(B * pages, page, K, D) for _ in "kv")
    table = torch.randperm(B * pages, device="cuda").to(torch.int32).view(B, pages)
    used = integers([600, 300, 640, 70], "cuda")

    def step(starts: Tensor) -> Tensor:
        return weft.attention(
            q, k, v, causal=True, cu_seqlens_q=starts, max_seqlen_q=261, seqused_k=used,
            block_table=table,
        )  # fmt: skip

    starts = packed(lengths[0], "cuda")
    graph, found = captured(lambda: step(starts))
    for now in lengths:
        starts.copy_(packed(now, "cuda"))
        graph.replay()
        assert torch.equal(found, step(starts))


def test_a_graph_of_training() -> None:
    """Packed sequences, whose lengths change."""
    total, longest = 700, 500
    leaves = [normal(total, heads, D).requires_grad_() for heads in (H, K, K)]
    dout, starts = normal(total, H, D), integers([0, 200, total], "cuda")

    def train() -> Tensor:
        out = weft.flash_attn_varlen_func(*leaves, starts, starts, longest, longest, causal=True)
        return torch.cat([t.flatten() for t in torch.autograd.grad(out, leaves, dout)])

    graph, found = captured(train)
    for middle in (200, 350, 499):
        starts.copy_(integers([0, middle, total], "cuda"))
        graph.replay()
        assert torch.equal(found, train())


def test_a_graph_of_dropout() -> None:
    """Each replay drops other weights, and backward those of its forward."""
    q, k = (torch.zeros(3, n, H, D, dtype=torch.bfloat16, device="cuda") for n in (1, D))
    v = torch.eye(D).to(q)[None, :, None].repeat(3, 1, H, 1).requires_grad_()

    def kept() -> Tensor:
        """[2, B, H, T]: by what is left of the values, which are unit vectors; by dv."""
        out = weft.attention(q, k, v, dropout_p=0.5)
        (dv,) = torch.autograd.grad(out, v, torch.ones_like(out))
        return torch.stack([out[:, 0], dv[..., 0].transpose(1, 2)]).ne(0)

    graph, found = captured(kept)
    seen = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        for _ in range(3):
            graph.replay()
            assert torch.equal(found[0], found[1])
            seen.append(found[0].clone())
    assert all(map(torch.equal, seen[:3], seen[6:]))
    alike = torch.stack([(a == b).float().mean() for i, a in enumerate(seen[:6]) for b in seen[:i]])
    assert (alike - 0.5).abs().max() < 0.1
    torch.manual_seed(5)
    first = kept()
    torch.manual_seed(5)
    assert torch.equal(kept(), first) and not torch.equal(kept(), first)


@pytest.mark.parametrize("B, S, T", [(1, 8192, 8192), (8, 1, 16384), (16, 700, 900)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_determinism(dtype: torch.dtype, B: int, S: int, T: int) -> None:
    """Of blocks that run side by side, in any order."""
    leaves = [
        normal(B, n, heads, D).to(dtype).requires_grad_() for n, heads in ((S, H), (T, K), (T, K))
    ]
    dout = normal(B, S, H, D).to(dtype)

    def run() -> list[Tensor]:
        out, lse = weft.attention(*leaves, causal=True, return_lse=True)
        return [out, lse, *torch.autograd.grad(out, leaves, dout)]

    expected = run()
    for _ in range(10):
        assert all(map(torch.equal, run(), expected))
