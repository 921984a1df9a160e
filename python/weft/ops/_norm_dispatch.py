"""Which op computes a norm, given who will ask for gradients.

Nobody: the raw op. Autograd: `weft::norm_forward`, which saves what backward needs. torch.func's
grad and jvp and forward-mode AD, which no custom op can serve: plain PyTorch. vmap and CUDA
autocast have rules of their own, registered here; under vmap the question is asked again, one level
further down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _fallback
from . import _norm_composite as composite
from ._grad import func_gradients, has_tangent, needs_grad
from ._norm_args import NormArgs, compute_dtype

_layer_norm = torch.ops.weft.layer_norm.default
_rms_norm = torch.ops.weft.rms_norm.default
_add_norm = torch.ops.weft.add_norm.default
_norm_forward = torch.ops.weft.norm_forward.default


def _composite_reason(args: NormArgs, needs_grad: bool) -> str:
    """Why the kernels cannot give what is asked for; empty where they can."""
    if torch.compiler.is_dynamo_compiling():  # traces torch.func: no tensor says what it needs
        return "torch.func" if torch._C._are_functorch_transforms_active() else ""
    if has_tangent(*args.tensors()):
        return "forward-mode differentiation"
    return "gradients of torch.func" if needs_grad and func_gradients() else ""


def norm_forward(args: NormArgs) -> tuple[Tensor, ...]:
    """`weft::norm_forward` with whatever the gradients asked for need: y, y1, residual_out, …"""
    grad = torch.is_grad_enabled() and needs_grad(*args.tensors())
    if reason := _composite_reason(args, grad):
        _fallback.note("norm_forward", reason)
        return composite.forward(args)
    if not grad:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return _norm_forward(*args)
        with torch._C._AutoDispatchBelowAutograd():  # half the cost of asking autograd once more
            return _norm_forward(*args)
    if args.rowscale is not None and args.rowscale.requires_grad:
        raise NotImplementedError("weft: rowscale has no gradient; detach it")
    keep_z = args.return_residual or (args.adds and not args.memory_efficient)
    return _norm_forward(*args._replace(save_stats=True, return_residual=keep_z))


def norm(args: NormArgs) -> Tensor:
    """y alone, where nothing is added: by the raw op if no gradient is asked for."""
    grad = needs_grad(args.x, args.weight, args.bias)
    if grad or args.out_dtype is not None or _composite_reason(args, grad):
        return norm_forward(args)[0]
    op = _rms_norm if args.is_rms_norm else _layer_norm
    return op(
        args.x, args.normalized_ndim, args.weight, args.bias, args.eps, args.zero_centered_weight
    )


def add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    is_rms_norm: bool,
    zero_centered_weight: bool,
    return_residual: bool,
) -> tuple[Tensor, Tensor] | None:
    """y and z = x + residual by the raw op; None where `norm_forward` has more to look after."""
    if (
        needs_grad(x, residual, weight, bias)
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.is_autocast_enabled(x.device.type)
        or forward_ad._current_level >= 0
    ):
        return None
    return _add_norm(
        x, residual, weight, bias, eps, is_rms_norm, zero_centered_weight, return_residual
    )


# vmap: the mapped dimension becomes one more leading dimension of the rows ------------------------


def _in_front(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    if t is None:
        return None
    return t.movedim(dim, 0) if dim is not None else t.expand(size, *t.shape)


def _channels_in_front(
    t: Tensor | None, dim: int | None, rows_ndim: int, normalized_ndim: int
) -> Tensor | None:
    """A weight, mapped or not, so that it broadcasts against mapped rows [B, *N, *C]."""
    if t is None or dim is None:
        return t
    t = t.movedim(dim, 0)
    missing = 1 + rows_ndim + normalized_ndim - t.dim()
    return t.reshape(t.shape[:1] + (1,) * missing + t.shape[1:])


def _vmap_norm(is_rms_norm: bool) -> Callable:
    def rule(info, in_dims, x, normalized_ndim, weight, bias, eps, zero_centered_weight):
        x_dim, _, weight_dim, bias_dim, *_ = in_dims
        rows_ndim = x.dim() - normalized_ndim - (x_dim is not None)
        x = _in_front(x, x_dim, info.batch_size)
        args = NormArgs(x, normalized_ndim, weight, bias, eps=eps, is_rms_norm=is_rms_norm)
        if weight_dim is None and bias_dim is None:
            return norm(args._replace(zero_centered_weight=zero_centered_weight)), 0
        # Each sample has weights of its own: the kernel normalises, PyTorch applies them.
        wide = compute_dtype(x.dtype)
        y = norm(args._replace(weight=None, bias=None, out_dtype=wide))
        weight = _channels_in_front(weight, weight_dim, rows_ndim, normalized_ndim)
        bias = _channels_in_front(bias, bias_dim, rows_ndim, normalized_ndim)
        if weight is not None:
            y = y * (weight.to(wide) + 1 if zero_centered_weight else weight)
        if bias is not None:
            y = y + bias
        return y.to(x.dtype), 0

    return rule


def _sample(value: Any, dim: int | None, index: int) -> Any:
    return value if dim is None else value.select(dim, index)


_PER_ROW = ("x", "residual", "residual2", "x1", "rowscale")


def _vmap_norm_forward(info, in_dims, *inputs):
    args = NormArgs(*inputs)
    dims: dict[str, int | None] = dict(zip(NormArgs._fields, in_dims, strict=True))
    others = [dim for name, dim in dims.items() if name not in _PER_ROW]
    if args.dropout_p == 0 and all(d is None for d in others):
        in_front: dict[str, Any] = {
            name: _in_front(getattr(args, name), dims[name], info.batch_size) for name in _PER_ROW
        }
        results: Sequence[Tensor] = norm_forward(args._replace(**in_front))
    else:  # weights or masks of each sample's own: one call a sample
        samples = [
            NormArgs._make(map(_sample, args, in_dims, [i] * len(args)))
            for i in range(info.batch_size)
        ]
        results = [
            torch.stack(outputs)
            for outputs in zip(*(norm_forward(sample) for sample in samples), strict=True)
        ]
    asked = (
        True,
        args.weight1 is not None,
        args.return_residual,
        args.save_stats and not args.is_rms_norm,
        args.save_stats,
        args.return_dropout_mask and args.dropout_p > 0,
        args.return_dropout_mask and args.dropout_p > 0 and args.x1 is not None,
    )
    absent = args.x.new_empty(0)
    outputs = tuple(t if present else absent for t, present in zip(results, asked, strict=True))
    return outputs, tuple(0 if present else None for present in asked)


torch.library.register_vmap("weft::layer_norm", _vmap_norm(is_rms_norm=False))
torch.library.register_vmap("weft::rms_norm", _vmap_norm(is_rms_norm=True))
torch.library.register_vmap("weft::norm_forward", _vmap_norm_forward)


# Autocast: on CUDA, PyTorch's norms return float32; on the CPU they keep the input's dtype --------

_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of y: PyTorch casts 16-bit inputs up first, the kernel reads them as they are."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None


def _autocast_norm(is_rms_norm: bool) -> Callable:
    def kernel(x, normalized_ndim, weight, bias, eps, zero_centered_weight):
        args = NormArgs(
            x,
            normalized_ndim,
            weight,
            bias,
            eps=eps,
            is_rms_norm=is_rms_norm,
            zero_centered_weight=zero_centered_weight,
            out_dtype=_autocast_dtype(x),
        )
        with torch._C._ExcludeDispatchKeyGuard(_cuda):
            return norm(args)

    return kernel


def _autocast_norm_forward(*inputs):
    args = NormArgs(*inputs)
    if args.out_dtype is None:
        args = args._replace(out_dtype=_autocast_dtype(args.x))
    with torch._C._ExcludeDispatchKeyGuard(_cuda):
        return _norm_forward(*args)


_library = torch.library.Library("weft", "IMPL")
_library.impl("layer_norm", _autocast_norm(is_rms_norm=False), "AutocastCUDA")
_library.impl("rms_norm", _autocast_norm(is_rms_norm=True), "AutocastCUDA")
_library.impl("norm_forward", _autocast_norm_forward, "AutocastCUDA")
