"""Which norm modules weft takes over, and what each of them computes.

torch's own are known by their exact type. Everybody else's (transformers 5 alone has 140 classes
called RMSNorm) are known by what they compute: a class whose name has one of the endings below is
run on random input with random weights, beside weft's functions, and taken over where one of them
agrees.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import nn as weft_nn
from ..ops.norm import layer_norm, layer_norm_fn, rms_norm
from ._swap import Derived, derive

# Modules of torch's, exactly, and weft's with the same meaning.
EXACT: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: weft_nn.LayerNorm,
    nn.RMSNorm: weft_nn.RMSNorm,
}
# What weft's subclass has and torch's instance lacks: the defaults of its constructor.
EXACT_ATTRIBUTES: dict[str, object] = {"zero_centered_weight": False, "memory_efficient": False}

EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps")


class Form(NamedTuple):
    """What somebody's norm module computes, in the terms of weft's functions."""

    is_rms_norm: bool
    zero_centered_weight: bool
    eps_name: str = "eps"
    # y has the wider dtype of x and weight, as `weight * x.to(dtype)` has, and not that of x.
    promotes: bool = False

    def __str__(self) -> str:
        name = "weft.rms_norm" if self.is_rms_norm else "weft.layer_norm"
        return name + (" (zero-centred weight)" if self.zero_centered_weight else "")


# The ending of a class name, and the (is_rms_norm, zero_centered_weight) that such a class may
# turn out to be. T5's LayerNorm and its descendants subtract no mean.
CANDIDATES: dict[str, tuple[tuple[bool, bool], ...]] = {
    "RMSNorm": ((True, False), (True, True)),
    "LayerNorm": ((False, False), (True, False), (False, True)),
}


class Replacement(NamedTuple):
    cls: type[nn.Module]
    attributes: dict[str, object]
    label: str


def is_norm(module: nn.Module) -> bool:
    """Whether `module` is a norm by its type or, with nothing inside, by its name."""
    cls = type(module)
    return cls in EXACT or cls in EXACT.values() or ("Norm" in cls.__name__ and is_leaf(module))


def replacement(module: nn.Module) -> Replacement | str:
    """What takes the place of a norm, or the reason why nothing does."""
    cls: Any = type(module)
    if cls in EXACT:
        return Replacement(EXACT[cls], EXACT_ATTRIBUTES, f"weft.nn.{EXACT[cls].__name__}")
    candidates = next(
        (forms for ending, forms in CANDIDATES.items() if cls.__name__.endswith(ending)), None
    )
    if candidates is None:
        return "weft has no kernel for this norm"
    form = probe(module, candidates)
    return form if isinstance(form, str) else Replacement(norm_class(cls, form), {}, str(form))


def is_leaf(module: nn.Module) -> bool:
    return not module._modules


class NormLike(Derived):
    """Somebody's norm module with weft's forward."""

    _weft_form: ClassVar[Form]

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())  # positional, or by whatever name the class has for it
        form = self._weft_form
        weight, bias = getattr(self, "weight", None), getattr(self, "bias", None)
        eps: float = getattr(self, form.eps_name)
        zero_centered = form.zero_centered_weight
        if form.promotes and weight is not None and weight.dtype != x.dtype:
            return layer_norm_fn(
                x,
                weight,
                bias,
                eps=eps,
                is_rms_norm=form.is_rms_norm,
                zero_centered_weight=zero_centered,
                out_dtype=torch.promote_types(x.dtype, weight.dtype),
            )
        if form.is_rms_norm:
            return rms_norm(
                x, (x.shape[-1],), weight, eps, bias=bias, zero_centered_weight=zero_centered
            )
        return layer_norm(x, (x.shape[-1],), weight, bias, eps, zero_centered_weight=zero_centered)


@functools.cache
def norm_class(base: type[nn.Module], form: Form) -> type[nn.Module]:
    """`base` with the forward that `form` describes."""
    return derive(base, NormLike, (norm_class, (base, form)), _weft_form=form)


def probe(module: nn.Module, candidates: tuple[tuple[bool, bool], ...]) -> Form | str:
    """Finds what `module` computes by running it; a reason where nothing that weft has computes
    the same.

    The run happens on a stand-in on the CPU with random weights, so that it needs neither the
    module's device nor its memory, fires no hooks, and cannot be misled by weights that are still
    ones or zeros.
    """
    cls: Any = type(module)
    if not is_leaf(module) or module._buffers:
        return "it has submodules or buffers"
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    if unknown := set(parameters) - {"weight", "bias"}:
        return f"it has parameters that weft's norms lack: {', '.join(sorted(unknown))}"
    if any(p.dim() != 1 for p in parameters.values()):
        return "its weight is not one-dimensional"
    eps_name = next((n for n in EPS_NAMES if isinstance(module.__dict__.get(n), float)), None)
    if eps_name is None:
        return f"it has no eps under a known name ({', '.join(EPS_NAMES)})"
    width = next((p.numel() for p in parameters.values()), 48)
    cpu: Any = {"device": "cpu", "dtype": torch.float32}
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, **cpu)

    values = {name: 0.5 + torch.rand(width, generator=generator, **cpu) for name in parameters}
    # Rows from small to large: in the small ones eps matters. An offset tells RMSNorm from
    # LayerNorm.
    x = (drawn(2, 3, 5, width) + 0.5) * torch.logspace(-4, 2, 5, **cpu)[:, None]
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            theirs = _stand_in(module, values)(x)
            narrow = _stand_in(module, {n: v.bfloat16() for n, v in values.items()})(x.bfloat16())
            mixed = _stand_in(module, values)(x.bfloat16())
            for is_rms_norm, zero_centered in candidates:
                form = Form(is_rms_norm, zero_centered, eps_name, mixed.dtype != x.bfloat16().dtype)
                ours = _stand_in(module, values, norm_class(cls, form))(x)
                if _agree(theirs, ours, 1e-5) and _agree(narrow, ours.bfloat16(), 2**-6):
                    return form
    except (
        Exception
    ) as error:  # it is somebody else's code: whatever it raises, it is not one of ours
        return f"its forward does not run on random input: {type(error).__name__}: {error}"
    return "its forward computes something else"


def _stand_in(
    module: nn.Module, values: dict[str, Tensor], cls: type[nn.Module] | None = None
) -> nn.Module:
    """A copy of `module` without its hooks, with `values` for its weights, as an instance of
    `cls`."""
    cls = cls or type(module)
    copy = cls.__new__(cls)
    nn.Module.__init__(copy)
    hooks = {name for name in copy.__dict__ if "hook" in name}
    copy.__dict__.update(
        {name: value for name, value in module.__dict__.items() if name not in hooks}
    )
    none = {name: None for name in module._parameters}
    copy.__dict__["_parameters"] = none | {
        n: nn.Parameter(v, requires_grad=False) for n, v in values.items()
    }
    return copy


def _agree(theirs: Tensor, ours: Tensor, tolerance: float) -> bool:
    return (
        isinstance(theirs, Tensor)
        and (theirs.shape, theirs.dtype) == (ours.shape, ours.dtype)
        and torch.allclose(theirs.float(), ours.float(), rtol=tolerance, atol=tolerance)
    )
