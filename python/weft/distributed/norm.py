"""An all-reduce and the norm that follows it: rows are normalised as they are added up."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops._grad import needs_grad
from ..ops.norm import layer_norm_fn
from ..ops.norm_int8 import Int8Output
from .communicator import Communicator, check_compression, communicator_of
from .regions import reduce

Group = Communicator | dist.ProcessGroup


def all_reduce_rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    group: Group | None = None,
    *,
    bias: Tensor | None = None,
    zero_centered_weight: bool = False,
    compression: str | None = None,
    group_size: int = 128,
) -> tuple[Tensor, Tensor]:
    r"""RMSNorm of what an all-reduce and a residual add up to.

    .. math:: z = \mathrm{round}(\sum_r x_r) + \mathrm{residual}, \quad y = \mathrm{norm}(z)

    To the bit what ``all_reduce(x)`` and then ``rms_norm_fn(…, residual, prenorm=True)`` give: the
    sum is rounded to x's dtype, z to the residual's, or else x's, and y to x's.

    Gradients are those of one loss that all ranks compute alike from y and z (Megatron-LM's
    convention).

    Args:
        x: [..., C].
        weight, bias: [C], or None.
        residual: [..., C], the same on every rank, or None.
        eps: added to the mean square.
        group: a `Communicator`, or a process group, over which one is made at the first call.
        zero_centered_weight: multiply by ``weight + 1``.
        compression, group_size: as of `Communicator.all_reduce`.

    Returns:
        y and z, [..., C].
    """
    options = (weight, bias, residual, eps, True, zero_centered_weight, compression, group_size)
    return _norm(x, group, *options)


def all_reduce_layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    group: Group | None = None,
    *,
    zero_centered_weight: bool = False,
    compression: str | None = None,
    group_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """:func:`weft.all_reduce_rms_norm` with LayerNorm."""
    options = (weight, bias, residual, eps, False, zero_centered_weight, compression, group_size)
    return _norm(x, group, *options)


def all_reduce_rms_norm_int8(
    x: Tensor,
    weight: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    group: Group | None = None,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    zero_point: int = 0,
    symmetric: bool = True,
    zero_centered_weight: bool = False,
    compression: str | None = None,
    group_size: int = 128,
) -> Int8Output:
    """:func:`weft.all_reduce_rms_norm` whose y is quantised, as :func:`weft.rms_norm_int8` does it,
    which explains `scale`, `zero_point`, `symmetric` and what is returned. Inference only."""
    options = (weight, bias, residual, eps, True, zero_centered_weight, compression, group_size)
    return _norm_int8(x, group, scale, zero_point, symmetric, *options)


def all_reduce_layer_norm_int8(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    group: Group | None = None,
    *,
    scale: Tensor | None = None,
    zero_point: int = 0,
    symmetric: bool = True,
    zero_centered_weight: bool = False,
    compression: str | None = None,
    group_size: int = 128,
) -> Int8Output:
    """:func:`weft.all_reduce_rms_norm_int8` with LayerNorm."""
    options = (weight, bias, residual, eps, False, zero_centered_weight, compression, group_size)
    return _norm_int8(x, group, scale, zero_point, symmetric, *options)


def _norm(x, group, weight, bias, residual, eps, rms, zero_centered, compression, group_size):
    communicator = communicator_of(group)
    if needs_grad(x, weight, bias, residual):
        if compression is not None:
            raise RuntimeError(
                "weft: a compressed all_reduce has no gradient, and one is needed; detach the "
                "arguments, or call it under torch.no_grad()"
            )
        return layer_norm_fn(
            reduce(x, communicator), weight, bias, residual, eps=eps, prenorm=True,
            is_rms_norm=rms, zero_centered_weight=zero_centered,
        )  # fmt: skip
    x, groups = x.contiguous(), _group_size(compression, group_size)
    return communicator._run(
        x,
        lambda: torch.ops.weft.all_reduce_norm(
            x, residual, weight, bias, communicator.handle, eps, rms, zero_centered, groups
        ),
    )


def _norm_int8(
    x, group, scale, zero_point, symmetric,
    weight, bias, residual, eps, rms, zero_centered, compression, group_size,
) -> Int8Output:  # fmt: skip
    if needs_grad(x, weight, bias, residual):
        raise NotImplementedError(
            "weft: rounding to int8 has no gradient; detach the arguments, or call it under "
            "torch.no_grad()"
        )
    communicator = communicator_of(group)
    x, groups = x.contiguous(), _group_size(compression, group_size)
    values, scales, points, z = communicator._run(
        x,
        lambda: torch.ops.weft.all_reduce_norm_int8(
            x,
            residual,
            weight,
            bias,
            scale,
            zero_point,
            symmetric,
            communicator.handle,
            eps,
            rms,
            zero_centered,
            groups,
        ),  # fmt: skip
    )
    if scale is not None:
        return Int8Output(values, scale, zero_point, z)
    return Int8Output(values, scales, 0 if symmetric else points, z)


def _group_size(compression: str | None, group_size: int) -> int:
    if compression is None:
        return 0
    check_compression(compression)
    return group_size
