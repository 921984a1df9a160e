"""The gradient of `weft::norm_forward`.

Saved for backward: z, from which x̂ is computed again (x itself where nothing was added to it, the
new residual otherwise, or y where `memory_efficient`), the statistics, and the vectors over
channels and rows. x is saved besides z only for the gradient of layerscale. Dropout is drawn again
from rng_state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _norm_composite as composite
from ._norm_args import NormArgs
from ._norm_fake import (
    DBIAS,
    DBIAS1,
    DLAYERSCALE,
    DRESIDUAL,
    DRESIDUAL2,
    DWEIGHT,
    DWEIGHT1,
    DX,
    DX1,
    DX_BIAS,
)

_norm_forward = torch.ops.weft.norm_forward.default
_norm_backward = torch.ops.weft.norm_backward.default

# The differentiable arguments: the bit of each one's gradient, in the order of norm_backward's
# results.
_GRADIENTS = {
    "x": DX,
    "x1": DX1,
    "residual": DRESIDUAL,
    "residual2": DRESIDUAL2,
    "weight": DWEIGHT,
    "bias": DBIAS,
    "weight1": DWEIGHT1,
    "bias1": DBIAS1,
    "x_bias": DX_BIAS,
    "layerscale": DLAYERSCALE,
}
_ROWS = ("x", "residual", "residual2", "x1")
_INDEX = {name: i for i, name in enumerate(NormArgs._fields, 1)}  # after keyset


def setup_context(ctx, inputs, output) -> None:
    args = NormArgs(*inputs)
    y, y1, residual_out, mean, rstd, mask, mask1 = output
    absent = [] if args.weight1 is not None or args.bias1 is not None else [y1]
    absent += [] if args.return_residual else [residual_out]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, rstd, mask, mask1, *absent)
    adds = args.adds
    if not args.save_stats or (adds and not (args.return_residual or args.memory_efficient)):
        raise RuntimeError(
            "weft.norm_forward: a gradient needs save_stats=True and, where anything is added to "
            "x, return_residual=True or memory_efficient=True"
        )

    if args.memory_efficient:
        saved, mean = y, None
    else:
        saved = residual_out if adds else args.x
    ctx.save_for_backward(
        saved,
        mean,
        rstd,
        args.x if ctx.needs_input_grad[_INDEX["layerscale"]] else None,
        args.weight,
        args.bias,
        args.weight1,
        args.bias1,
        args.x_bias,
        args.rowscale,
        args.layerscale,
        args.rng_state,
    )
    ctx.dtypes = {name: t.dtype for name in _ROWS if (t := getattr(args, name)) is not None}
    ctx.normalized_ndim = args.normalized_ndim
    ctx.options = inputs[_INDEX["rng_state"] :]  # all that is no tensor


def backward(ctx, dy, dy1, dresidual_out, *_):
    if dy is None and dy1 is None and dresidual_out is None:
        return (None,) * len(NormArgs._fields)
    needs = {name: ctx.needs_input_grad[_INDEX[name]] for name in _GRADIENTS}
    saved, mean, rstd, x, w, b, w1, b1, x_bias, rowscale, layerscale, rng = ctx.saved_tensors
    args = NormArgs(
        x,
        ctx.normalized_ndim,
        w,
        b,
        w1,
        b1,
        x_bias,
        None,
        None,
        None,
        rowscale,
        layerscale,
        rng,
        *ctx.options,
    )
    if torch.is_grad_enabled():  # create_graph=True
        found = _twice_differentiable(ctx, args, saved, dy, dy1, dresidual_out, needs)
    else:
        mean = rstd.new_empty(0) if mean is None else mean
        found = _by_kernel(ctx, args, (saved, mean, rstd), dy, dy1, dresidual_out, needs)
    return tuple(map(found.get, NormArgs._fields))


def _by_kernel(ctx, args, saved, dy, dy1, dresidual_out, needs) -> dict[str, Tensor]:
    computed, same_as = _shared(ctx.dtypes, args, needs)
    residual_dtype = ctx.dtypes.get("residual", ctx.dtypes.get("residual2"))
    results = _norm_backward(
        dy,
        dy1,
        dresidual_out,
        *saved,
        args.normalized_ndim,
        args.weight,
        args.bias,
        args.weight1,
        args.x,
        args.x_bias,
        args.rowscale,
        args.layerscale,
        args.rng_state,
        args.dropout_p,
        args.residual_alpha,
        args.eps,
        args.is_rms_norm,
        args.zero_centered_weight,
        args.memory_efficient,
        ctx.dtypes["x"],
        residual_dtype,
        sum(bit for name, bit in _GRADIENTS.items() if computed[name]),
    )
    found = {name: g for name, g in zip(_GRADIENTS, results, strict=True) if computed[name]}
    for name, other in same_as.items():
        found[name] = found[other]
    dtypes = ctx.dtypes | {"bias1": args.bias1.dtype if args.bias1 is not None else None}
    return {
        name: g if dtypes.get(name) in (None, g.dtype) else g.to(dtypes[name])
        for name, g in found.items()
    }


def _shared(
    dtypes: dict[str, torch.dtype], args: NormArgs, needs: dict[str, bool]
) -> tuple[dict[str, bool], dict[str, str]]:
    """Which gradients to compute, and which to take over from another.

    What is added to z as it is has z's gradient: addends of one dtype share one tensor.
    """
    changed = {
        "x": args.dropout_p > 0 or args.rowscale is not None or args.layerscale is not None,
        "x1": args.dropout_p > 0,
        "residual": args.residual_alpha != 1.0,
        "residual2": False,
    }
    computed, same_as = dict(needs), {}
    first: dict[torch.dtype, str] = {}
    for name in changed:
        if needs[name] and not changed[name]:
            other = first.setdefault(dtypes[name], name)
            if other != name:
                computed[name] = False
                same_as[name] = other
    return computed, same_as


def _twice_differentiable(ctx, args, z, dy, dy1, dresidual_out, needs) -> dict[str, Tensor]:
    if args.memory_efficient:
        raise RuntimeError(
            "weft: a norm with memory_efficient=True can be differentiated only once "
            "(create_graph=True was given)"
        )
    stand_ins = {name: torch.empty_like(z, dtype=dtype) for name, dtype in ctx.dtypes.items()}
    if args.x is not None:
        stand_ins["x"] = args.x
    return composite.backward(args._replace(**stand_ins), z, dy, dy1, dresidual_out, needs)


class _NormForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, *args):
        output = _below_autograd(keyset, *args)
        setup_context(ctx, args, output)
        return output

    @staticmethod
    def backward(ctx, *grads):
        return None, *backward(ctx, *grads)


def _below_autograd(keyset, *args):
    with torch._C._AutoDispatchBelowAutograd():
        return _norm_forward.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _kernel(keyset, *args):
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
        return _NormForward.apply(keyset, *args)
    return _below_autograd(keyset, *args)


# What torch.library.register_autograd does, but for filling in defaults (the schema has none),
# which takes 150 us with as many arguments as these.
_library = torch.library.Library("weft", "IMPL")
_library.impl("norm_forward", _kernel, "Autograd", with_keyset=True)
