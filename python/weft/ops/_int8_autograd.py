"""The gradients of the INT8 linears: as if nothing had been rounded.

x gets dy · W by the weight that the packed one stands for, bias and residual theirs, and of
`llm_int8_linear` the weight that was quantised dyᵀ · x. Rounding itself has no gradient, and what
would need more than these products is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._grad import has_tangent

_unpack = torch.ops.weft.int8_unpack.default

_DIFFERENTIABLE = ("x", "bias", "residual", "weight")


def dequantized_weight(args: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """W [N, K] of an op's arguments."""
    scale, zero_point = args["weight_scale"], args.get("weight_zero_point")
    n, k = scale.shape[0], args["x"].shape[-1]
    weight = _unpack(args["packed"], n, k, args.get("bits", 8)).float()  # [N, K]
    groups = scale.reshape(n, -1, 1)
    weight = weight.reshape(n, groups.shape[1], -1)  # [N, G, K / G]
    if zero_point is not None:
        weight = weight - zero_point.reshape(groups.shape)
    return (weight * groups).reshape(n, k).to(dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, names, keyset, *inputs):
        args = dict(zip(names, inputs, strict=True))
        ctx.save_for_backward(*(v for v in inputs if isinstance(v, Tensor)))
        ctx.args = {name: None if isinstance(v, Tensor) else v for name, v in args.items()}
        ctx.tensors = [name for name, v in args.items() if isinstance(v, Tensor)]
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    @staticmethod
    def backward(ctx, dy):
        args = ctx.args | dict(zip(ctx.tensors, ctx.saved_tensors, strict=True))
        needs = dict(zip(args, ctx.needs_input_grad[3:], strict=True))
        x, found = args["x"], {}
        if needs["x"]:
            dx = dy @ dequantized_weight(args, dy.dtype)
            if args.get("smooth") is not None:
                dx = dx / args["smooth"]
            found["x"] = dx.to(x.dtype)
        if needs["bias"]:
            found["bias"] = dy.reshape(-1, dy.shape[-1]).sum(0).to(args["bias"].dtype)
        if needs["residual"]:
            found["residual"] = dy.to(args["residual"].dtype)
        if needs.get("weight"):
            rows = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]).to(dy.dtype)
            found["weight"] = (rows[0].t() @ rows[1]).to(args["weight"].dtype)
        return (None, None, None, *map(found.get, args))


def _kernel(op: torch._ops.OpOverload, name: str) -> Callable:
    names = [argument.name for argument in op._schema.arguments]

    def refuse(what: str) -> None:
        raise NotImplementedError(f"weft.{name}: {what}")

    def run(keyset, *inputs):
        if has_tangent(*filter(torch.is_tensor, inputs)):
            refuse("forward-mode AD does not differentiate it")
        asked = [
            n
            for n, v in zip(names, inputs, strict=True)
            if isinstance(v, Tensor) and v.requires_grad
        ]
        if not asked or not torch.is_grad_enabled():
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)
        args = dict(zip(names, inputs, strict=True))
        for n in asked:
            if n not in _DIFFERENTIABLE:
                refuse(f"{n} has no gradient; detach it")
        if args["activation"] != "none":
            refuse("no gradient with an activation; apply it to the result")
        if args.get("out_scale") is not None:
            refuse("an int8 result has no gradient; detach the arguments")
        return _Linear.apply(op, names, keyset, *inputs)

    return run


def _refuse_gradient(op: torch._ops.OpOverload, name: str) -> Callable:
    """Of the quantisers, whose results are integers and what belongs to them."""

    def run(keyset, *inputs):
        asked = torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)
        if asked or has_tangent(*filter(torch.is_tensor, inputs)):
            raise NotImplementedError(f"weft.{name}: rounding has no gradient; detach x")
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    return run


_library = torch.library.Library("weft", "IMPL")
for _name in ("int8_linear", "weight_only_linear", "llm_int8_linear"):
    _op = getattr(torch.ops.weft, _name).default
    _library.impl(_name, _kernel(_op, _name), "Autograd", with_keyset=True)
for _name, _public in {
    "int8_quantize": "quantize_int8",
    "int8_dequantize": "dequantize_int8",
}.items():
    _op = getattr(torch.ops.weft, _name).default
    _library.impl(_name, _refuse_gradient(_op, _public), "Autograd", with_keyset=True)
