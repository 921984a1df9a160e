"""What the collectives' ops return without computing it, and their gradients.

An op names its communicator by a handle (`weft.distributed.Communicator.handle`), which holds in
this process only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _C
from ._fake import register
from ._int8_autocast import autocast_dtype


def _same(x, communicator, op, group_size=0):
    return x.new_empty(x.shape)


def _nothing(x, communicator, op, group_size=0) -> None:
    """Of ops that only write into their argument."""


def _reduce_scatter(x, communicator, op):
    return x.new_empty((x.shape[0] // _C.communicator_world(communicator), *x.shape[1:]))


def _all_gather(x, communicator):
    return x.new_empty((x.shape[0] * _C.communicator_world(communicator), *x.shape[1:]))


register("all_reduce", _same)
register("all_reduce_", _nothing)
register("all_reduce_int8", _same)
register("all_reduce_int8_", _nothing)
register("reduce_scatter", _reduce_scatter)
register("all_gather", _all_gather)


# ---- with a product or a norm inside: csrc/library_fused.h


def _rows(x, communicator, by):
    """x's first dimension, times or through the number of ranks."""
    world = _C.communicator_world(communicator)
    return x.shape[0] * world if by == "all" else x.shape[0] // world


def _linear_all_reduce(x, weight, bias, communicator):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _linear_reduce_scatter(x, weight, bias, communicator):
    return x.new_empty((_rows(x, communicator, "own"), *x.shape[1:-1], weight.shape[0]))


def _all_gather_linear(x, weight, bias, communicator):
    rows = _rows(x, communicator, "all")
    return (
        x.new_empty((rows, *x.shape[1:-1], weight.shape[0])),
        x.new_empty((rows, *x.shape[1:])),
    )


def _linear_grads(dy, x, weight, communicator, shards):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _int8_linear_all_reduce(x, x_scale, packed, scale, bias, communicator, out_dtype):
    return x.new_empty((*x.shape[:-1], scale.shape[0]), dtype=out_dtype)


def _int8_linear_reduce_scatter(x, x_scale, packed, scale, bias, communicator, out_dtype):
    rows = _rows(x, communicator, "own")
    return x.new_empty((rows, *x.shape[1:-1], scale.shape[0]), dtype=out_dtype)


def _int8_all_gather_linear(x, x_scale, packed, scale, bias, communicator, out_dtype):
    rows = _rows(x, communicator, "all")
    return x.new_empty((rows, *x.shape[1:-1], scale.shape[0]), dtype=out_dtype)


def _all_reduce_norm(x, residual, *options):
    return x.new_empty(x.shape), (x if residual is None else residual).new_empty(x.shape)


def _all_reduce_norm_int8(x, residual, weight, bias, scale, zero_point, symmetric, *options):
    per_row = (*x.shape[:-1], 1)
    points = (0,) if scale is not None or symmetric else per_row
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty((0,) if scale is not None else per_row, dtype=torch.float32),
        x.new_empty(points, dtype=torch.float32 if points == (0,) else torch.int32),
        (x if residual is None else residual).new_empty(x.shape),
    )


_FAKES: dict[str, Callable[..., Any]] = {
    "linear_all_reduce": _linear_all_reduce,
    "linear_reduce_scatter": _linear_reduce_scatter,
    "all_gather_linear": _all_gather_linear,
    "linear_grads": _linear_grads,
    "int8_linear_all_reduce": _int8_linear_all_reduce,
    "int8_linear_reduce_scatter": _int8_linear_reduce_scatter,
    "int8_all_gather_linear": _int8_all_gather_linear,
    "all_reduce_norm": _all_reduce_norm,
    "all_reduce_norm_int8": _all_reduce_norm_int8,
}
for _name, _fake in _FAKES.items():
    register(_name, _fake)


# Autocast: in its dtype, as arguments of torch's linear are ---------------------------------------


def _autocast(op: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}"))

    def kernel(x, weight, bias, communicator):
        x, weight, bias = (
            None if t is None else t.to(autocast_dtype(t)) for t in (x, weight, bias)
        )
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(x, weight, bias, communicator)

    return kernel


_library = torch.library.Library("weft", "IMPL")
for _name in ("linear_all_reduce", "linear_reduce_scatter", "all_gather_linear"):
    for _device in ("cpu", "cuda"):
        _kernel = _autocast(getattr(torch.ops.weft, _name).default, _device)
        _library.impl(_name, _kernel, f"Autocast{_device.upper()}")


# Gradients of the sum of the ranks' losses, as in torch.distributed.nn ----------------------------


def _setup(ctx, inputs, output) -> None:
    _, ctx.communicator, *rest = inputs
    ctx.op = rest[0] if rest else "sum"


def _needs_linear(ctx, name: str) -> None:
    if ctx.op == "max":
        raise NotImplementedError(f"weft: {name} with op='max' has no gradient")


def _all_reduce_backward(ctx, grad: Tensor):
    _needs_linear(ctx, "all_reduce")
    return torch.ops.weft.all_reduce(grad.contiguous(), ctx.communicator, ctx.op), None, None


def _reduce_scatter_backward(ctx, grad: Tensor):
    _needs_linear(ctx, "reduce_scatter")
    if ctx.op == "avg":
        grad = grad / _C.communicator_world(ctx.communicator)
    return torch.ops.weft.all_gather(grad.contiguous(), ctx.communicator), None, None


def _all_gather_backward(ctx, grad: Tensor):
    return torch.ops.weft.reduce_scatter(grad.contiguous(), ctx.communicator, "sum"), None


torch.library.register_autograd("weft::all_reduce", _all_reduce_backward, setup_context=_setup)
torch.library.register_autograd(
    "weft::reduce_scatter", _reduce_scatter_backward, setup_context=_setup
)
torch.library.register_autograd("weft::all_gather", _all_gather_backward, setup_context=_setup)


# Gradients of one loss that all ranks compute together, as Megatron-LM has them: what comes out of
# linear_all_reduce is the same everywhere, and so is its gradient. Of the other two each rank has
# its own rows, or columns, and both conventions are one.


def _linear_setup(ctx, inputs, output) -> None:
    x, weight, bias, ctx.communicator = inputs
    ctx.has_bias = bias is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _bias_grad(ctx, dy: Tensor) -> Tensor | None:
    return _flat(dy).sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None


def _weight_grads(ctx, x: Tensor, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of weight and bias."""
    return _flat(dy).t() @ _flat(x) if ctx.needs_input_grad[1] else None, _bias_grad(ctx, dy)


def grads_at_once(ctx) -> bool:
    """Whether `linear_grads` serves: x's gradient is added up beside the product of the weight's.
    The op itself has no gradient."""
    return all(ctx.needs_input_grad[:2]) and not torch.is_grad_enabled()


def _linear_all_reduce_backward(ctx, dy: Tensor | None):
    if dy is None:
        return None, None, None, None
    x, weight = ctx.saved_tensors
    dx = dy @ weight if ctx.needs_input_grad[0] else None
    return dx, *_weight_grads(ctx, x, dy), None


def _linear_reduce_scatter_backward(ctx, dy: Tensor | None):
    if dy is None:
        return None, None, None, None
    x, weight = ctx.saved_tensors
    # The gradient's rows come while those of its own are multiplied; the weight's needs them all.
    dx, dy = torch.ops.weft.all_gather_linear(dy.contiguous(), weight.t(), None, ctx.communicator)
    return dx, *_weight_grads(ctx, x, dy), None


def _all_gather_linear_backward(ctx, dy: Tensor | None, dgathered: Tensor | None):
    x, weight = ctx.saved_tensors
    scatter, dx, dweight, dbias = torch.ops.weft.reduce_scatter, None, None, None
    if dy is not None and grads_at_once(ctx):
        dx, dweight = torch.ops.weft.linear_grads(
            dy.contiguous(), x, weight, ctx.communicator, True
        )
        dbias = _bias_grad(ctx, dy)
    elif dy is not None:
        if ctx.needs_input_grad[1]:  # gathered again: a shard is all that was kept
            x = torch.ops.weft.all_gather(x, ctx.communicator)
        if ctx.needs_input_grad[0]:
            dx = torch.ops.weft.linear_reduce_scatter(
                dy.contiguous(), weight.t(), None, ctx.communicator
            )
        dweight, dbias = _weight_grads(ctx, x, dy)
    if dgathered is not None:
        direct = scatter(dgathered.contiguous(), ctx.communicator, "sum")
        dx = direct if dx is None else dx + direct
    return dx, dweight, dbias, None


_BACKWARDS: dict[str, Callable[..., Any]] = {
    "linear_all_reduce": _linear_all_reduce_backward,
    "linear_reduce_scatter": _linear_reduce_scatter_backward,
    "all_gather_linear": _all_gather_linear_backward,
}
for _name, _backward in _BACKWARDS.items():
    torch.library.register_autograd(f"weft::{_name}", _backward, setup_context=_linear_setup)
