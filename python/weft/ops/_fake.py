"""Fake implementations, registered with what all of them have to check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register(name: str, fake: Callable[..., Any]) -> None:
    """Makes `fake` what `weft::name` does with tensors that have no data."""
    torch.library.register_fake(f"weft::{name}", _checked(name, fake))


def _checked(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """`fake`, after the check that all tensors are on one device.

    A tensor without data beside real ones leads here too, and must not get a result without data.
    """
    op, _, overload = name.partition(".")
    schema = getattr(getattr(torch.ops.weft, op), overload or "default")._schema
    names = [argument.name for argument in schema.arguments]

    def run(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        tensors = {n: v for n, v in given.items() if isinstance(v, Tensor)}
        first, *others = tensors.items()
        for argument, tensor in others:
            if tensor.device != first[1].device:
                what = f"{argument} is not on the device of {first[0]}"
                raise RuntimeError(f"weft.{op.rstrip('_')}: {what}")
        return fake(*args, **kwargs)

    return run
