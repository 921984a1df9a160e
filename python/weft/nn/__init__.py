"""Drop-in modules."""

from .apex import FusedLayerNorm, FusedRMSNorm, MixedFusedLayerNorm, MixedFusedRMSNorm
from .attention import MultiheadAttention
from .dropout_add import DropoutAddLayerNorm, DropoutAddRMSNorm
from .norm import LayerNorm, RMSNorm

__all__ = [
    "DropoutAddLayerNorm",
    "DropoutAddRMSNorm",
    "FusedLayerNorm",
    "FusedRMSNorm",
    "LayerNorm",
    "MixedFusedLayerNorm",
    "MixedFusedRMSNorm",
    "MultiheadAttention",
    "RMSNorm",
]
