"""The functional API, a module a family."""

from .norm import (
    dropout_mask,
    fused_add_rms_norm,
    layer_norm,
    layer_norm_fn,
    rms_norm,
    rms_norm_fn,
)
from .norm_int8 import Int8Output, layer_norm_int8, rms_norm_int8

__all__ = [
    "Int8Output",
    "dropout_mask",
    "fused_add_rms_norm",
    "layer_norm",
    "layer_norm_fn",
    "layer_norm_int8",
    "rms_norm",
    "rms_norm_fn",
    "rms_norm_int8",
]
