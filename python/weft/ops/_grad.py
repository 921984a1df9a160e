"""Who will ask for gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch
from torch._ops import OpOverload
from torch.autograd import forward_ad


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will differentiate with respect to any of `tensors`."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode AD carries a tangent on any of `tensors`."""
    return forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


def func_gradients() -> bool:
    """Whether a torch.func transform that differentiates is active, here or around a vmap."""
    if not torch._C._are_functorch_transforms_active():
        return False
    stack = _functorch.get_interpreter_stack() or ()
    return any(transform.key() != _functorch.TransformType.Vmap for transform in stack)


def refuse_grad(op: str, *tensors: Tensor | None, what: str = "out=") -> None:
    """For what only writes into its arguments."""
    if needs_grad(*tensors):
        raise RuntimeError(
            f"weft.{op}: {what} has no gradient, but one of the arguments requires grad"
        )


def call(op: OpOverload, *args: Any) -> Any:
    """``op(*args)``; below autograd, whose kernel in Python takes some 9 µs, where nobody asks for
    a gradient. A tangent, which torch would drop, is refused."""
    if torch.compiler.is_compiling():
        return op(*args)
    if forward_ad._current_level >= 0 and has_tangent(*filter(torch.is_tensor, args)):
        raise NotImplementedError(f"weft.{op._opname}: it has no rule for forward-mode AD")
    asked = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
    if asked or torch._C._are_functorch_transforms_active():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def without_grad(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """`torch.no_grad()` as a decorator, which costs nothing where gradients are off already."""

    @functools.wraps(function)
    def call(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        with torch.no_grad():
            return function(*args, **kwargs)

    return call
