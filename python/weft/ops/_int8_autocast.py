"""Autocast: x in its dtype; int8 and float64 stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which x will be computed with."""
    device = x.device.type
    casts = x.is_floating_point() and x.dtype != torch.float64
    if not casts or device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def _kernel(op: Callable[..., Any], device_type: str) -> Callable:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}"))

    def kernel(x, *others):
        dtype = autocast_dtype(x)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(x.to(dtype), *others)

    return kernel


_library = torch.library.Library("weft", "IMPL")
for _name in ("int8_linear", "weight_only_linear", "llm_int8_linear"):
    for _device in ("cpu", "cuda"):
        _op = getattr(torch.ops.weft, _name).default
        _library.impl(_name, _kernel(_op, _device), f"Autocast{_device.upper()}")
