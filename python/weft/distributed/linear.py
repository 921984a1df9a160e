"""Linear layers and the collective next to them, in one: tensor and sequence parallelism.

Where that pays the product is computed tile by tile, and a tile is reduced while the next are
computed: `docs/comm.md` says where, and what it hides.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from .._C import WHOLE_BYTES
from ..ops._comm import grads_at_once
from ..ops._grad import call, needs_grad
from ..ops._int8_autocast import autocast_dtype
from ..ops.int8 import quantize_int8
from .communicator import Communicator, communicator_of

Group = Communicator | dist.ProcessGroup

# Bound once: a call that comes after others' work finds none of this in a cache.
_HALVES = frozenset({torch.bfloat16, torch.float16})
_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_linear = torch.nn.functional.linear
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_any_requires_grad = torch._C._any_requires_grad
_is_transformed = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._is_torch_function_mode_enabled
_tracing_state = torch._C._get_tracing_state
_autocasts = torch.is_autocast_enabled


def _autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast in its dtype, as arguments of torch's linear are."""
    x, weight = x.to(autocast_dtype(x)), weight.to(autocast_dtype(weight))
    return x, weight, None if bias is None else bias.to(autocast_dtype(bias))


def _float(op, x, weight, bias, group):
    communicator, x = communicator_of(group), x.contiguous()
    return communicator._run(x, lambda: call(op, x, weight, bias, communicator.handle))


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether nobody but the op needs torch's dispatcher, in which a small call spends more than it
    saves: then it is torch's layer and, as the op has it for such, the sum behind it."""
    return (
        not _is_compiling()
        and x.dtype in _HALVES
        and weight.dtype == x.dtype
        and x.is_cpu
        and weight.is_cpu
        and type(x) is Tensor
        and type(weight) in _PLAIN
        and weight.dim() == 2
        and x.dim() > 0
        and 0 < x.shape[-1] == weight.shape[1]
        and x.numel() // x.shape[-1] * weight.shape[0] * 2 <= WHOLE_BYTES
        and (bias is None or _is_plain_bias(x, weight, bias))
        and not (_is_grad_enabled() and _any_requires_grad(x, weight, bias))
        and not (_is_transformed() or _modes() or _function_modes() or _autocasts("cpu"))
        and _tracing_state() is None
        and forward_ad._current_level < 0
    )


def _is_plain_bias(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return (
        type(bias) in _PLAIN
        and bias.dtype == x.dtype
        and bias.is_cpu
        and bias.shape == weight.shape[:1]
        and bias.is_contiguous()
        and not bias.is_neg()
    )


def linear_all_reduce(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, group: Group | None = None
) -> Tensor:
    r"""``all_reduce(x @ weight.T) + bias``: a linear layer whose inputs the ranks share out.

    .. math:: y = \sum_r x_r W_r^T + b

    A rank's product is rounded to x's dtype; the sum over the ranks, in their order, and the bias
    are added in float32 and rounded once. All ranks get the same bits.

    The gradient is that of one loss which all ranks compute alike from y (Megatron-LM's
    convention): backward needs no communication.

    Args:
        x: [..., K], the rank's columns of the whole input.
        weight: [N, K], the rank's columns of the whole weight.
        bias: [N], the same on every rank, added once.
        group: a `Communicator`, or a process group, over which one is made at the first call.

    Returns:
        [..., N].
    """
    communicator = communicator_of(group)
    if _is_plain(x, weight, bias):
        return communicator._add_up(_linear(x, weight), bias)
    return _float(torch.ops.weft.linear_all_reduce.default, x, weight, bias, communicator)


def linear_reduce_scatter(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, group: Group | None = None
) -> Tensor:
    """The rank's rows of :func:`weft.linear_all_reduce`: of W equal parts of the first dimension
    the one that its number says.

    Backward is `all_gather_linear`; the gradients of weight and bias are of all rows.

    Args:
        x: [M, ..., K], the rank's columns of the whole input.
        weight, bias, group: as of :func:`weft.linear_all_reduce`.

    Returns:
        [M / W, ..., N].
    """
    return _float(torch.ops.weft.linear_reduce_scatter.default, x, weight, bias, group)


@overload
def all_gather_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = ..., group: Group | None = ...,
    *, return_gathered: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def all_gather_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = ..., group: Group | None = ...,
    *, return_gathered: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def all_gather_linear(x, weight, bias=None, group=None, *, return_gathered=False):
    """``all_gather(x) @ weight.T + bias``: the rank multiplies its own rows while the others' come.

    Backward is `linear_reduce_scatter`; it gathers x once more, of which only the rank's rows are
    kept.

    Args:
        x: [M, ..., K], the rank's rows of the whole input.
        weight: [N, K], the rank's rows of the whole weight.
        bias: [N], the rank's part of it.
        group: as of :func:`weft.linear_all_reduce`.
        return_gathered: return the whole input, too. Its gradient is a sum over the ranks: each
            contributes what it alone makes of it.

    Returns:
        [W · M, ..., N], the rank's columns of the whole result; and [W · M, ..., K].
    """
    op = torch.ops.weft.all_gather_linear.default
    y, gathered = _float(op, x, weight, bias, group)
    return (y, gathered) if return_gathered else y


def copy_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, group: Group | None = None
) -> Tensor:
    """``x @ weight.T + bias``, a linear layer whose outputs the ranks share out: forward is the
    rank's own, and backward sums the gradient of x over the ranks, as `linear_all_reduce` does.

    Args:
        x: [..., K], the same on every rank.
        weight, bias: [N, K] and [N], the rank's rows of the whole.
        group: as of :func:`weft.linear_all_reduce`.

    Returns:
        [..., N], the rank's columns of the whole result.
    """
    x, weight, bias = _autocast(x, weight, bias)
    return _CopyLinear.apply(x, weight, bias, communicator_of(group))


class _CopyLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, communicator):
        ctx.communicator = communicator
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        needs, rows = ctx.needs_input_grad, dy.shape[:-1].numel()
        flat = dy.reshape(rows, dy.shape[-1])
        if grads_at_once(ctx):
            args = (dy.contiguous(), x.contiguous(), weight, ctx.communicator.handle, False)
            dx, dweight = ctx.communicator._run(dy, lambda: torch.ops.weft.linear_grads(*args))
            return dx, dweight, flat.sum(0) if needs[2] else None, None
        dx = linear_all_reduce(dy, weight.t(), None, ctx.communicator) if needs[0] else None
        dweight = flat.t() @ x.reshape(rows, x.shape[-1]) if needs[1] else None
        return dx, dweight, flat.sum(0) if needs[2] else None, None


# ---- INT8


def int8_linear_all_reduce(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    group: Group | None = None,
    *,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """:func:`weft.linear_all_reduce` with :func:`weft.int8_linear`'s product: each rank quantises
    its columns by scales of its own. Inference only.

    Args:
        x: [..., K]; int8 with `x_scale`.
        packed, weight_scale: of an int8 weight [N, K], with float32 [N].
        bias: [N], of the result's dtype.
        group: as of :func:`weft.linear_all_reduce`.
        x_scale: float32, one; of an int8 x one, or one a row. Default: found for each row.
        out_dtype: default x's, or float32 for an int8 x.

    Returns:
        [..., N].
    """
    return _int8("int8_linear_all_reduce", x, packed, weight_scale, bias, group, x_scale, out_dtype)


def int8_linear_reduce_scatter(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    group: Group | None = None,
    *,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The rank's rows of :func:`weft.int8_linear_all_reduce`, which see."""
    name = "int8_linear_reduce_scatter"
    return _int8(name, x, packed, weight_scale, bias, group, x_scale, out_dtype)


def int8_all_gather_linear(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    group: Group | None = None,
    *,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """:func:`weft.all_gather_linear` with :func:`weft.int8_linear`'s product. Rows travel as int8,
    with a scale each (`x_scale`, of an int8 x, has one a row). Inference only."""
    name = "int8_all_gather_linear"
    return _int8(name, x, packed, weight_scale, bias, group, x_scale, out_dtype)


def _int8(name, x, packed, weight_scale, bias, group, x_scale, out_dtype) -> Tensor:
    if needs_grad(x, bias):
        raise NotImplementedError(
            f"weft.{name}: it has no gradient; detach its arguments, or call it under "
            "torch.no_grad()"
        )
    x = x.to(autocast_dtype(x))
    given = x.dtype == torch.int8
    if out_dtype is None:
        out_dtype = torch.float32 if given else x.dtype
    if bias is not None and autocast_dtype(bias) != bias.dtype:
        bias = bias.to(out_dtype)
    if given and x_scale is None:
        raise ValueError(f"weft.{name}: x is int8, so x_scale is needed")
    if not given and x_scale is not None and x_scale.numel() != 1:
        raise ValueError(
            f"weft.{name}: x_scale has shape {list(x_scale.shape)}, expected one element for an x "
            f"of {x.dtype}"
        )
    if name == "int8_all_gather_linear":
        x, x_scale = _by_row(x, x_scale)
    communicator, op = communicator_of(group), getattr(torch.ops.weft, name)
    x = x.contiguous()
    return communicator._run(
        x, lambda: op(x, x_scale, packed, weight_scale, bias, communicator.handle, out_dtype)
    )


def _by_row(x: Tensor, x_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """In int8, as it travels, and a scale for each row."""
    if x.dtype != torch.int8:
        scale = None if x_scale is None else x_scale.reshape(())
        x, x_scale, _ = quantize_int8(x, scale, granularity="token" if scale is None else "tensor")
    assert x_scale is not None
    if x_scale.numel() == 1:
        x_scale = x_scale.reshape(1).expand(x.shape[:-1].numel())
    return x, x_scale.contiguous()
