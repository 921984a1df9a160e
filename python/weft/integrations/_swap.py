"""Changing a module's class in place, and back.

Only the class of the instance changes, and attributes that its code reads: parameters, buffers,
hooks, mode and state_dict keys are the same objects as before, and everybody who holds the module
sees the change. What was there before is remembered in the instance itself, so that deepcopy and
pickle carry it along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import nn

_ORIGIN = "_weft_origin"


class _Origin(NamedTuple):
    cls: type[nn.Module]
    added: tuple[str, ...]  # the attributes that came with the new class
    former: dict[str, object]  # the values of those that were there before


def swap(module: nn.Module, cls: type[nn.Module], **attributes: object) -> None:
    """Makes `module` an instance of `cls` with the given attributes added or changed."""
    there = module.__dict__
    former = {name: there[name] for name in attributes if name in there}
    added = tuple(name for name in attributes if name not in there)
    there[_ORIGIN] = _Origin(type(module), added, former)
    there.update(attributes)
    module.__class__ = cls


def is_swapped(module: nn.Module) -> bool:
    return _ORIGIN in module.__dict__


def swap_back(module: nn.Module) -> None:
    """Undoes `swap` exactly; a module that was never swapped stays as it is."""
    origin = module.__dict__.pop(_ORIGIN, None)
    if origin is not None:
        module.__class__ = origin.cls
        for name in origin.added:
            module.__dict__.pop(name, None)
        module.__dict__.update(origin.former)


class Derived(nn.Module):
    """The first base of every class that weft derives from somebody else's at run time.

    Such a class keeps the name of the class it stands in for, because models are also steered by
    class names (transformers' `_no_split_modules`, for one). No module holds it, so its instances
    are pickled and copied by its recipe: a function and the arguments from which it makes the
    class.
    """

    _weft_recipe: ClassVar[tuple[Callable[..., type[nn.Module]], tuple[Any, ...]]]

    def _get_name(self) -> str:
        return f"weft.{super()._get_name()}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        return _new, self._weft_recipe, *reduced[2:]


def _new(make: Callable[..., type[nn.Module]], args: tuple[Any, ...]) -> nn.Module:
    cls = make(*args)
    return cls.__new__(cls)


def derive(
    base: type[nn.Module],
    mixin: type[Derived],
    recipe: tuple[Callable[..., type[nn.Module]], tuple[Any, ...]],
    **members: object,
) -> type[nn.Module]:
    """A subclass of `base` that looks like it, with `mixin` and `members` in front."""
    members |= {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (mixin, base), members | {"_weft_recipe": recipe})
