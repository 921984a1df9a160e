"""What the collectives' ops return without computing it, and their gradients.

An op names its communicator by a handle (`weft.distributed.Communicator.handle`), which holds in
this process only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from ._fake import register


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
