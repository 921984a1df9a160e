"""weft: hand-written CPU and CUDA kernels for large language models, as PyTorch ops and modules.

Functions with torch's signatures, modules that take the place of torch's, and one call that puts
them into a model:

    y = weft.layer_norm(x, (1024,), weight, bias)
    y = weft.scaled_dot_product_attention(q, k, v, is_causal=True)
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
    Quantized,
    apply_rotary_emb,
    attention,
    attention_with_kvcache_,
    dequantize_int8,
    dropout_mask,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
    fused_add_rms_norm,
    int8_linear,
    kv_cache_append_,
    layer_norm,
    layer_norm_fn,
    layer_norm_int8,
    llm_int8_linear,
    merge_attn_states,
    pack_int8_weight,
    quantize_int8,
    rms_norm,
    rms_norm_fn,
    rms_norm_int8,
    scaled_dot_product_attention,
    unpack_int8_weight,
    weight_only_linear,
)
from .optimize import Report, optimize, restore  # noqa: E402

if TYPE_CHECKING:
    from . import compat, distributed, quantization
    from .distributed import (
        all_gather_linear,
        all_reduce_layer_norm,
        all_reduce_layer_norm_int8,
        all_reduce_rms_norm,
        all_reduce_rms_norm_int8,
        int8_all_gather_linear,
        int8_linear_all_reduce,
        int8_linear_reduce_scatter,
        linear_all_reduce,
        linear_reduce_scatter,
    )
    from .quantization import W4A16, W8A16, Hybrid, LLMInt8, W8A8Dynamic, W8A8Static
    from .quantize import quantize_

__version__ = "0.1.0"

__all__ = [
    "Hybrid",
    "Int8Output",
    "LLMInt8",
    "Quantized",
    "Report",
    "W4A16",
    "W8A16",
    "W8A8Dynamic",
    "W8A8Static",
    "all_gather_linear",
    "all_reduce_layer_norm",
    "all_reduce_layer_norm_int8",
    "all_reduce_rms_norm",
    "all_reduce_rms_norm_int8",
    "apply_rotary_emb",
    "attention",
    "attention_with_kvcache_",
    "compat",
    "dequantize_int8",
    "distributed",
    "dropout_mask",
    "fallbacks",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "fused_add_rms_norm",
    "int8_all_gather_linear",
    "int8_linear",
    "int8_linear_all_reduce",
    "int8_linear_reduce_scatter",
    "kv_cache_append_",
    "layer_norm",
    "layer_norm_fn",
    "layer_norm_int8",
    "linear_all_reduce",
    "linear_reduce_scatter",
    "llm_int8_linear",
    "merge_attn_states",
    "nn",
    "ops",
    "optimize",
    "pack_int8_weight",
    "quantization",
    "quantize_",
    "quantize_int8",
    "restore",
    "reuse_memory",
    "rms_norm",
    "rms_norm_fn",
    "rms_norm_int8",
    "scaled_dot_product_attention",
    "unpack_int8_weight",
    "weight_only_linear",
]


_COLLECTIVES = {
    "all_gather_linear",
    "all_reduce_layer_norm",
    "all_reduce_layer_norm_int8",
    "all_reduce_rms_norm",
    "all_reduce_rms_norm_int8",
    "int8_all_gather_linear",
    "int8_linear_all_reduce",
    "int8_linear_reduce_scatter",
    "linear_all_reduce",
    "linear_reduce_scatter",
}
_CONFIGS = {"W4A16", "W8A16", "W8A8Dynamic", "W8A8Static", "Hybrid", "LLMInt8"}


def __getattr__(name: str):  # what is imported when it is first asked for: few programs do
    if name in ("compat", "distributed", "quantization"):
        return import_module(f".{name}", __name__)
    if name in _COLLECTIVES:
        found = getattr(import_module(".distributed", __name__), name)
    elif name in _CONFIGS:
        found = getattr(import_module(".quantization", __name__), name)
    elif name == "quantize_":
        found = import_module(".quantize", __name__).quantize_
    else:
        raise AttributeError(f"module 'weft' has no attribute {name!r}")
    globals()[name] = found  # asking again would take 8 µs
    return found
