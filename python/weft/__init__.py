"""weft: hand-written CPU and CUDA kernels for large language models, as PyTorch ops and modules.

Functions with torch's signatures, modules that take the place of torch's, and one call that puts
them into a model:

    y = weft.layer_norm(x, (1024,), weight, bias)
    norm = weft.nn.RMSNorm(1024)
    print(weft.optimize(model))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import _library

_library.load()  # before all that looks into torch.ops.weft

from . import nn, ops  # noqa: E402
from ._fallback import fallbacks  # noqa: E402
from .memory import reuse_memory  # noqa: E402
from .ops import (  # noqa: E402
    Int8Output,
    dropout_mask,
    fused_add_rms_norm,
    layer_norm,
    layer_norm_fn,
    layer_norm_int8,
    rms_norm,
    rms_norm_fn,
    rms_norm_int8,
)
from .optimize import Report, optimize, restore  # noqa: E402

if TYPE_CHECKING:
    from . import compat

__version__ = "0.1.0"

__all__ = [
    "Int8Output",
    "Report",
    "compat",
    "dropout_mask",
    "fallbacks",
    "fused_add_rms_norm",
    "layer_norm",
    "layer_norm_fn",
    "layer_norm_int8",
    "nn",
    "ops",
    "optimize",
    "restore",
    "reuse_memory",
    "rms_norm",
    "rms_norm_fn",
    "rms_norm_int8",
]


def __getattr__(name: str):
    if name == "compat":  # imported when it is first asked for: few programs do
        return import_module(".compat", __name__)
    raise AttributeError(f"module 'weft' has no attribute {name!r}")
