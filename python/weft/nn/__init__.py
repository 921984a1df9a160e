"""Drop-in modules."""

from .apex import FusedLayerNorm, FusedRMSNorm, MixedFusedLayerNorm, MixedFusedRMSNorm
from .attention import MultiheadAttention
from .bitsandbytes import Linear8bitLt, TrainedLinear8bitLt
from .dropout_add import DropoutAddLayerNorm, DropoutAddRMSNorm
from .int8 import HybridLinear, Int8Linear, LLMInt8Linear, WeightOnlyLinear
from .norm import LayerNorm, RMSNorm

__all__ = [
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
    "TrainedLinear8bitLt",
    "WeightOnlyLinear",
]
