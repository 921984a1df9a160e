"""What the attention tests run on: problems made of named options, and how results are held to the
reference.

A problem is the keyword arguments of `weft.attention`, q, k and v among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import weft
from tolerance import assert_int8_close, assert_no_worse_than_torch
from weft import reference

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
USUAL = (torch.float32, torch.bfloat16)
RNG = torch.tensor([0x1234_5678_9ABC_DEF, 40])

Problem = dict[str, Any]


def name(value: Any) -> str | None:
    """A test id: bfloat16 for torch.bfloat16."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return "+".join(value) or "plain" if isinstance(value, tuple | frozenset) else None


@dataclass(frozen=True)
class Shape:
    """Off every tile by default: H query heads on K key heads, S queries of T keys."""

    B: int = 2
    S: int = 19
    T: int = 37
    H: int = 4
    K: int = 2
    D: int = 40
    Dv: int = 40

    def __str__(self) -> str:
        return f"{self.B}x{self.H}-{self.K}x{self.S}-{self.T}x{self.D}-{self.Dv}"


def draw(shape: Sequence[int], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Normal numbers, drawn on the CPU so that every backend sees the same."""
    return torch.randn(tuple(shape)).to(device, dtype)


def integers(values: Iterable[int], device: str = "cpu") -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32, device=device)


# ----------------------------------------------------------------------------------------- options

# Each makes arguments of weft.attention for a shape, a dtype and a device.
Option = Callable[[Shape, torch.dtype, str], Problem]


def _mask(s: Sequence[int], device: str) -> Tensor:
    return (torch.rand(tuple(s)) < 0.6).to(device)


def _lengths(B: int, longest: int) -> list[int]:
    """Of the sequences of a batch: full, empty and between."""
    return [(longest, 0, longest // 2, 1)[b % 4] for b in range(B)]


OPTIONS: dict[str, Option] = {
    "causal": lambda s, dtype, device: {"causal": True},
    "top_left": lambda s, dtype, device: {"top_left": True},
    "window": lambda s, dtype, device: {"window_size": (5, 3)},
    "window_left": lambda s, dtype, device: {"window_size": (6, -1)},
    "window_right": lambda s, dtype, device: {"window_size": (-1, 2)},
    "scale": lambda s, dtype, device: {"softmax_scale": 0.7},
    "softcap": lambda s, dtype, device: {"softcap": 1.5},
    "bias": lambda s, dtype, device: {"bias": draw((s.B, s.H, s.S, s.T), dtype, device)},
    "bias_of_heads": lambda s, dtype, device: {"bias": draw((s.H, s.S, s.T), dtype, device)},
    "bias_of_keys": lambda s, dtype, device: {"bias": draw((s.B, 1, 1, s.T), dtype, device)},
    "bias_float32": lambda s, dtype, device: {"bias": draw((s.S, s.T), torch.float32, device)},
    "mask": lambda s, dtype, device: {"mask": _mask((s.B, s.H, s.S, s.T), device)},
    "mask_of_queries": lambda s, dtype, device: {"mask": _mask((s.S, s.T), device)},
    "mask_of_keys": lambda s, dtype, device: {"mask": _mask((s.B, 1, 1, s.T), device)},
    "alibi": lambda s, dtype, device: {"alibi_slopes": torch.rand(s.H, device=device)},
    "alibi_of_batch": lambda s, dtype, device: {"alibi_slopes": torch.rand(s.B, s.H).to(device)},
    "sinks": lambda s, dtype, device: {"sinks": draw((s.H,), device=device)},
    "dropout": lambda s, dtype, device: {"dropout_p": 0.3, "rng_state": RNG},
    "seqused_q": lambda s, dtype, device: {"seqused_q": integers(_lengths(s.B, s.S), device)},
    "seqused_k": lambda s, dtype, device: {"seqused_k": integers(_lengths(s.B, s.T), device)},
    "splits": lambda s, dtype, device: {"num_splits": 3},
    "one_split": lambda s, dtype, device: {"num_splits": 1},
}


def problem(
    options: Iterable[str] = (),
    dtype: torch.dtype = torch.float32,
    shape: Shape | None = None,
    device: str = "cpu",
) -> Problem:
    """Dense q, k and v with the named options."""
    s = shape or Shape()
    call: Problem = {
        "q": draw((s.B, s.S, s.H, s.D), dtype, device),
        "k": draw((s.B, s.T, s.K, s.D), dtype, device),
        "v": draw((s.B, s.T, s.K, s.Dv), dtype, device),
    }
    for option in options:
        call |= OPTIONS[option](s, dtype, device)
    return call


# --------------------------------------------------------------------- where the sequences may lie


def starts(lengths: Sequence[int], device: str = "cpu") -> Tensor:
    return integers([sum(lengths[:b]) for b in range(len(lengths) + 1)], device)


def nobodys(t: Tensor, *shape: int) -> Tensor:
    """Rows that no sequence reaches: NaN, to be seen where they are read."""
    return t.new_full(shape, math.nan if t.is_floating_point() else 99)


def pack(t: Tensor, lengths: Sequence[int]) -> Tensor:
    """The first rows of each sequence of [B, S, ...], one after the other, and one of nobody's."""
    return torch.cat([*(t[b, :n] for b, n in enumerate(lengths)), nobodys(t, 1, *t.shape[2:])])


def pack_queries(call: Problem, lengths: Sequence[int]) -> Problem:
    q = call["q"]
    index = {"cu_seqlens_q": starts(lengths, q.device), "max_seqlen_q": q.shape[1]}
    return call | {"q": pack(q, lengths)} | index


def keys_of(call: Problem) -> dict[str, Tensor]:
    """k and v, and their scales where these lie beside them."""
    names = [x for x in ("k", "v", "k_scale", "v_scale") if x in call]
    return {x: call[x] for x in names if call[x].dim() > 1}


def pack_keys(call: Problem, lengths: Sequence[int]) -> Problem:
    k = call["k"]
    index = {"cu_seqlens_k": starts(lengths, k.device), "max_seqlen_k": k.shape[1]}
    return call | {x: pack(t, lengths) for x, t in keys_of(call).items()} | index


def page(call: Problem, page_size: int) -> Problem:
    """k and v in pages that lie anywhere, with rows of nobody's behind each sequence's end."""
    k = call["k"]
    B, T = k.shape[:2]
    used = call.get("seqused_k", integers([T] * B, k.device))
    per_sequence = -(-T // page_size) + 1
    pages = torch.randperm(B * per_sequence + 3)[: B * per_sequence]
    table = pages.view(B, per_sequence).to(k.device, torch.int32)

    def paged(t: Tensor) -> Tensor:
        cache = nobodys(t, B * per_sequence + 3, page_size, *t.shape[2:])
        for b in range(B):
            rows = torch.arange(int(used[b]), device=k.device)
            cache[table[b, rows // page_size].long(), rows % page_size] = t[b, rows]
        return cache

    index = {"block_table": table, "seqused_k": used, "max_seqlen_k": T}
    return call | {x: paged(t) for x, t in keys_of(call).items()} | index


def quantize_cache(call: Problem, by_row: bool) -> Problem:
    """int8 k and v and their scales, by row and head or by head alone."""

    def int8(t: Tensor) -> tuple[Tensor, Tensor]:
        if by_row:
            return reference.attention.quantize_rows(t.float())
        scale = t.float().abs().amax((0, 1, 3)) / 100
        return reference.attention.quantize(t.float(), scale[:, None]), scale

    (k, k_scale), (v, v_scale) = int8(call["k"]), int8(call["v"])
    return call | {"k": k, "v": v, "k_scale": k_scale, "v_scale": v_scale}


def quantize_out(call: Problem, Dv: int) -> Problem:
    H, device = call["q"].shape[-2], call["q"].device
    return call | {
        "out_scale": torch.tensor([0.02], device=device),
        "out_shift": draw((H, Dv), device=device) * 0.1,
        "out_smooth": torch.rand(H, Dv).to(device) + 0.5,
    }


# ----------------------------------------------------------------------------------- what is right


def to_float64(value: Any) -> Any:
    """What the reference gets: the same numbers, on the CPU, in float64."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.double() if value.is_floating_point() else value
    return value


def plain(call: Problem) -> Any:
    """The reference in the dtype of the problem: the yardstick."""
    call = {k: v for k, v in call.items() if k != "num_splits"}
    return reference.attention.attention(**call, return_lse=True)


def exact(call: Problem) -> Any:
    """The reference in float64: the truth."""
    return plain({k: to_float64(v) for k, v in call.items()})


def check(call: Problem, luck: float = 1.0) -> Tensor:
    """Runs weft and holds out and lse against the truth and plain PyTorch.

    In float32 the order of long sums, which each instruction set has its own of, is what errs.
    """
    luck = max(luck, 2) if call["q"].dtype == torch.float32 else luck
    with torch.no_grad():
        out, lse = weft.attention(**call, return_lse=True)
        (true_out, true_lse), (plain_out, plain_lse) = exact(call), plain(call)
    assert out.device == call["q"].device and out.is_contiguous()
    dtype = call["q"].dtype
    if "out_scale" in call:
        assert_int8_close(out, true_out, "out", plain_out)
    else:
        assert_no_worse_than_torch(out, true_out, plain_out, "out", luck=luck, unit=0.1)
    assert_no_worse_than_torch(lse, true_lse, plain_lse, "lse", dtype, luck=luck, unit=1)
    return out


DIFFERENTIABLE = ("q", "k", "v", "bias", "sinks")


def gradients(
    function: Callable[..., Any], call: Problem, dout: Tensor, dlse: Tensor | None
) -> dict[str, Tensor]:
    """Of sum(out · dout) + sum(lse · dlse), where lse is finite; zeros where nothing depends."""
    leaves = {
        k: call[k].detach().requires_grad_() for k in DIFFERENTIABLE if call.get(k) is not None
    }
    out, lse = function(call | leaves)
    results, upstream = [out], [dout]
    if dlse is not None:
        results, upstream = [out, lse], [dout, dlse.masked_fill(lse.isinf(), 0)]
    if results[0].requires_grad:
        torch.autograd.backward(results, upstream)
    return {
        k: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for k, leaf in leaves.items()
    }


def by_weft(call: Problem) -> Any:
    return weft.attention(**call, return_lse=True)


def check_backward(
    call: Problem, with_lse: bool = True, luck: float = 1.0, unit: float = 0.1
) -> dict[str, Tensor]:
    """Runs weft's backward and holds each gradient against the truth and plain PyTorch's.

    In float32 all of them hang on lse's last place, in 16-bit types on out's, neither of which
    plain PyTorch's gradients round: where a sum is all cancellation, that is what is left of it.
    Such a sum is dp - δ, both of them sums over a head: see `cancelled`.
    """
    with torch.no_grad():
        out, lse = by_weft(call)
    dout = draw(out.shape, out.dtype, str(out.device))
    dlse = draw(lse.shape, lse.dtype, str(lse.device)) if with_lse else None
    ours = gradients(by_weft, call, dout, dlse)
    theirs = gradients(plain, call, dout, dlse)
    exact_call = {k: to_float64(v) for k, v in call.items()}
    truth = gradients(plain, exact_call, to_float64(dout), to_float64(dlse))
    assert ours.keys() == truth.keys()
    luck = max(luck, 4) if out.dtype == torch.float32 else luck
    lost = cancelled(call, out, dout)
    for k, grad in ours.items():
        least = max(unit, lost.get(k, 0))
        assert_no_worse_than_torch(grad, truth[k], theirs[k], f"d{k}", out.dtype, luck, least)
    return ours


def cancelled(call: Problem, out: Tensor, dout: Tensor) -> dict[str, float]:
    """What float32 gradients are made of where dp - δ cancels, as with one key, where p is 1.

    Plain PyTorch takes the same sum twice and finds 0; whoever takes δ = Σ dout · out instead of
    keeping p errs by the last places of both sums, whose terms' root of squares this is.
    """
    if out.dtype != torch.float32 or not out.numel():
        return {}
    ds = (dout * out).square().sum(-1).sqrt().max().item()
    scale = call.get("softmax_scale") or out.new_tensor(call["q"].shape[-1]).rsqrt().item()
    size = {x: call[x].abs().max().item() * scale * ds for x in "qk" if call[x].numel()}
    return {"q": size.get("k", 0), "k": size.get("q", 0), "bias": ds, "sinks": ds}
