"""Drop-in modules."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .apex import FusedLayerNorm, FusedRMSNorm, MixedFusedLayerNorm, MixedFusedRMSNorm
from .attention import MultiheadAttention
from .bitsandbytes import Linear8bitLt, TrainedLinear8bitLt
from .dropout_add import DropoutAddLayerNorm, DropoutAddRMSNorm
from .int8 import HybridLinear, Int8Linear, LLMInt8Linear, WeightOnlyLinear
from .norm import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from .parallel import ColumnParallelLinear, RowParallelLinear

__all__ = [
    "ColumnParallelLinear",
    "DropoutAddLayerNorm",
    "DropoutAddRMSNorm",
    "FusedLayerNorm",
    "FusedRMSNorm",
    "HybridLinear",
    "Int8Linear",
    "LLMInt8Linear",
    "LayerNorm",
    "Linear8bitLt",
    "MixedFusedLayerNorm",
    "MixedFusedRMSNorm",
    "MultiheadAttention",
    "RMSNorm",
    "RowParallelLinear",
    "TrainedLinear8bitLt",
    "WeightOnlyLinear",
]


def __getattr__(name: str):  # what stands on weft.distributed, when it is first asked for
    if name in ("ColumnParallelLinear", "RowParallelLinear"):
        return getattr(import_module(".parallel", __name__), name)
    raise AttributeError(f"module 'weft.nn' has no attribute {name!r}")
