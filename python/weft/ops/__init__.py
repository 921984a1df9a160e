"""The functional API, a module a family."""

from . import _comm  # noqa: F401
from .attention import (
    apply_rotary_emb,
    attention,
    attention_with_kvcache_,
    kv_cache_append_,
    merge_attn_states,
    scaled_dot_product_attention,
)
from .attention_flash import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)
from .int8 import (
    Quantized,
    dequantize_int8,
    int8_linear,
    llm_int8_linear,
    pack_int8_weight,
    quantize_int8,
    unpack_int8_weight,
    weight_only_linear,
)
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
    "Quantized",
    "apply_rotary_emb",
    "attention",
    "attention_with_kvcache_",
    "dequantize_int8",
    "dropout_mask",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "fused_add_rms_norm",
    "int8_linear",
    "kv_cache_append_",
    "layer_norm",
    "layer_norm_fn",
    "layer_norm_int8",
    "llm_int8_linear",
    "merge_attn_states",
    "pack_int8_weight",
    "quantize_int8",
    "rms_norm",
    "rms_norm_fn",
    "rms_norm_int8",
    "scaled_dot_product_attention",
    "unpack_int8_weight",
    "weight_only_linear",
]
