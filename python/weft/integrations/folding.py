"""Folding shift and smooth into the norm whose output is to be smoothed.

    norm(x) = x̂ · w + b          (norm(x) - z) / s = x̂ · (w / s) + (b - z) / s

What a norm has no parameter for stays with the quantiser of its readers: all of it where there is
no weight, the shift where there is no bias (RMSNorm).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import nn as weft_nn
from .norms import CANDIDATES, EXACT, NormLike, is_leaf, is_norm, probe


class Folded(NamedTuple):
    """What the readers of a folded norm are to do.

    shift: [C], what they subtract from the norm's new output; None if nothing.
    smooth: [C], what the old output has been divided by, for their weights; the norm's own dtype
        may be coarse, so it is not quite what was asked for.
    """

    shift: Tensor | None
    smooth: Tensor


def is_foldable(module: nn.Module, owners: dict[int, int]) -> bool:
    """Whether `module` is a norm with a weight of its own.

    Args:
        module: any.
        owners: how many modules hold a parameter, by its id.
    """
    if not is_norm(module) or _zero_centred(module) is None:
        return False
    weight = getattr(module, "weight", None)
    return (
        weight is not None
        and weight.dim() == 1
        and all(
            owners[id(p)] == 1 and not p.is_meta and p.is_floating_point()
            for p in module._parameters.values()
            if p is not None
        )
    )


def _zero_centred(module: nn.Module) -> bool | None:
    """Whether the norm multiplies by weight + 1; None where what it computes is unknown."""
    cls = type(module)
    if cls in EXACT:
        return False
    if isinstance(module, (weft_nn.LayerNorm, weft_nn.RMSNorm)):
        return module.zero_centered_weight
    if isinstance(module, NormLike):
        return module._weft_form.zero_centered_weight
    forms = next((f for ending, f in CANDIDATES.items() if cls.__name__.endswith(ending)), None)
    if forms is None or not is_leaf(module):
        return None
    form = probe(module, forms)
    return None if isinstance(form, str) else form.zero_centered_weight


@torch.no_grad()
def fold(norm: nn.Module, shift: Tensor | None, smooth: Tensor) -> Folded:
    """Changes the norm in place.

    Args:
        norm: foldable.
        shift: [C] or None, z.
        smooth: [C], s.
    """
    weight, bias = norm._parameters["weight"], norm._parameters.get("bias")
    assert weight is not None
    offset = 1.0 if _zero_centred(norm) else 0.0
    factor = weight.float() + offset
    s = smooth.view(weight.shape)
    weight.copy_(factor / s - offset)
    rounded = weight.float() + offset
    s = torch.where((rounded != 0) & (factor != 0), factor / rounded, s)
    rest = None if shift is None else shift.view(weight.shape) / s
    if bias is not None:
        wanted = bias.float() / s - (0 if rest is None else rest)
        bias.copy_(wanted)
        rest = None
    return Folded(None if rest is None else rest.flatten(), s.flatten())
