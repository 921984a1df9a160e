"""Other libraries' names and signatures on weft's kernels.

For code that imports them:

    import weft.compat.flash_attn as flash_attn
    from weft.compat.apex.normalization import FusedLayerNorm
    from weft.compat.flash_attn.ops.triton.layer_norm import layer_norm_fn
    from weft.compat.vllm import fused_add_rms_norm
"""
