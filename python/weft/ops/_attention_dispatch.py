"""How an attention call reaches the op: with or without autograd, under vmap, under autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._attention_args import AttentionArgs
from ._attention_autograd import last_contiguous
from ._grad import func_gradients, has_tangent, needs_grad

_forward = torch.ops.weft.attention_forward.default
_run = _forward._op  # the dispatcher's own callable: OpOverload.__call__ costs a microsecond
_backward = torch.ops.weft.attention_backward.default
_plain = torch.ops.weft.attention.default
_run_plain = _plain._op


def allows_tf32(q: Tensor) -> bool:
    """Whether torch's precision of matrix products lets float32 on a GPU be rounded to tf32."""
    return has_tf32(q) and q.dtype == torch.float32 and _precision() == "tf32"


def has_tf32(q: Tensor) -> bool:
    """Whether the kernels where q lies ask for it; a CPU computes in float32 all the same."""
    return q.is_cuda


def _precision() -> str:
    return torch._C._get_fp32_precision_getter("cuda", "matmul")


# To the compiler a constant, which it guards: torch.compiler.assume_constant_result, without the
# compiler's import. Of the older getter, which it knows, it raises where the newer was set.
_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor | None:
    """`weft::attention`, or None where the other op is wanted: autograd, a transform, a compiler.

    Arguments cost a small call more than to compute, each that is passed 0.15 µs: the op has few,
    and `options` are those that are not the default.

    q, k, v: [B, S, H, D], or [B, H, S, D] where heads come first.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if allows_tf32(q):
        options["allow_tf32"] = True
    if torch.is_inference_mode_enabled():  # below autograd, and without gradients
        return _run_plain(q, k, v, **options)
    if needs_grad(q, k, v) or has_tangent(q, k, v):
        return None
    with torch._C._AutoDispatchBelowAutograd():
        return _run_plain(q, k, v, **options)


def attention_forward(args: AttentionArgs) -> tuple[Tensor, Tensor]:
    """`weft::attention_forward`: out and lse."""
    if torch.compiler.is_compiling():
        return _forward(*args)
    leaves = args.q, args.k, args.v, args.bias, args.sinks, args.alibi_slopes
    grad = needs_grad(*leaves)
    if has_tangent(*leaves) or (grad and func_gradients()):
        raise NotImplementedError(
            "weft.attention: autograd differentiates it, torch.func and forward-mode AD do not"
        )
    if grad or torch._C._are_functorch_transforms_active():
        return _forward(*args)
    with torch._C._AutoDispatchBelowAutograd():  # half the cost of asking autograd once more
        return _run(*args)


# vmap: the mapped dimension joins the batch, where all that is mapped has one -------------------

_BATCHED = ("q", "k", "v", "bias", "mask")


def _per_sample(op: Callable[..., tuple[Tensor, ...]]) -> Callable:
    """One call a sample."""

    def rule(info, in_dims, *args):
        def sample(value, dim: int | None, index: int):
            if dim is None:
                return value
            value = value.select(dim, index)
            return last_contiguous(value) if value.dim() > 2 else value.contiguous()

        results = [
            op(*(sample(value, dim, i) for value, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        outputs = tuple(map(torch.stack, zip(*results, strict=True)))
        return outputs, (0,) * len(outputs)

    return rule


def _vmap_forward(info, in_dims, *inputs):
    args, dims = AttentionArgs(*inputs), AttentionArgs(*in_dims)
    alone = [name for name in args._fields if name not in (*_BATCHED, "sinks")]
    if (
        any(isinstance(getattr(args, name), Tensor) for name in alone)
        or dims.sinks is not None
        or args.dropout_p > 0
    ):
        return _per_sample(_forward)(info, in_dims, *inputs)

    def joined(name: str) -> Tensor | None:
        t, dim = getattr(args, name), getattr(dims, name)
        if t is None:
            return None
        t = t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        t = t.flatten(0, 1)
        return t if name in ("bias", "mask") else last_contiguous(t)

    joint: dict[str, Any] = {name: joined(name) for name in _BATCHED}
    out, lse = _forward(*args._replace(**joint))
    return tuple(t.unflatten(0, (info.batch_size, -1)) for t in (out, lse)), (0, 0)


torch.library.register_vmap("weft::attention_forward", _vmap_forward)
torch.library.register_vmap("weft::attention_backward", _per_sample(_backward))


# Autocast: to its dtype, as torch's own attention; float64 and int8 stay as they are ------------


def _autocast(op: Callable[..., Any], device_type: str) -> Callable:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}"))

    def kernel(*inputs):
        dtype = torch.get_autocast_dtype(device_type)

        def cast(t: Tensor) -> Tensor:
            return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t

        q, k, v, *others = inputs
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(cast(q), cast(k), cast(v), *others)

    return kernel


_library = torch.library.Library("weft", "IMPL")
for _op in (_forward, _plain):
    for _device in ("cpu", "cuda"):
        _library.impl(_op._opname, _autocast(_op, _device), f"Autocast{_device.upper()}")
