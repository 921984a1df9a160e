"""Residual addition and norm in one op, for modules that weft did not write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from .. import nn as weft_nn
from ..ops.norm import layer_norm_fn
from .norms import NormLike


def add_norm(
    norm: Any,
    x: Tensor,
    residual: Tensor,
    *,
    dropout: Any = None,
    prenorm: bool = False,
) -> Any:
    """y = norm(z) with z = dropout(x) + residual; (y, z) if `prenorm`.

    One op computes dropout, addition and norm where the parts are what they seem: exactly
    nn.Dropout and a norm of weft's, with no hooks and no forward of their own, and x and residual
    of one shape and dtype outside autocast. All this is looked up at every call, as hooks and
    adapters come and go. Where it does not hold, the parts are called one by one.

    x, residual: [..., C]. `dropout`: a module, or a probability that holds regardless of mode.
    """
    p = _probability(dropout)
    if p is None or not _fits(norm, x, residual):
        if dropout is not None:
            x = dropout(x) if isinstance(dropout, nn.Module) else F.dropout(x, dropout)
        z = x + residual
        return (norm(z), z) if prenorm else norm(z)
    eps, is_rms_norm, zero_centered_weight = _settings(norm)
    return layer_norm_fn(
        x,
        getattr(norm, "weight", None),
        getattr(norm, "bias", None),
        residual=residual,
        eps=eps,
        dropout_p=p,
        prenorm=prenorm,
        is_rms_norm=is_rms_norm,
        zero_centered_weight=zero_centered_weight,
    )


def is_norm(module: nn.Module) -> bool:
    return type(module) in (weft_nn.LayerNorm, weft_nn.RMSNorm) or isinstance(module, NormLike)


def _settings(norm: Any) -> tuple[float, bool, bool]:
    """eps, is_rms_norm and zero_centered_weight of a norm of weft's."""
    if isinstance(norm, NormLike):
        form = norm._weft_form
        return getattr(norm, form.eps_name), form.is_rms_norm, form.zero_centered_weight
    return norm.eps, isinstance(norm, nn.RMSNorm), norm.zero_centered_weight


def _fits(norm: Any, x: Any, residual: Any) -> bool:
    """Whether one op can add `residual` to x and apply `norm`."""
    if not (
        type(x) is Tensor and type(residual) is Tensor and x.dim() > 0 and x.dtype == residual.dtype
    ):
        return False
    if residual.shape != x.shape or torch.is_autocast_enabled(x.device.type):
        return False
    if not is_norm(norm) or _is_touched(norm):
        return False
    if isinstance(norm, NormLike):  # y may need a wider dtype than x has
        weight = getattr(norm, "weight", None)
        return not norm._weft_form.promotes or weight is None or weight.dtype is x.dtype
    return len(norm.normalized_shape) == 1 and norm.eps is not None and not norm.memory_efficient


def _probability(dropout: Any) -> float | None:
    """With which probability to drop; None where the module has to be called for it."""
    is_module = isinstance(dropout, nn.Module)
    if is_module and (type(dropout) is not nn.Dropout or _is_touched(dropout)):
        return None
    p: float = (dropout.p if dropout.training else 0.0) if is_module else dropout or 0.0
    return p if p < 1 else None  # dropping everything is a case of its own in torch


def _is_touched(module: nn.Module) -> bool:
    """Whether a call of `module` runs more than its class's forward: a hook, another forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or torch_module._has_any_global_hook()
    )
