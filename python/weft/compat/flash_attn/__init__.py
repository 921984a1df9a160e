"""flash-attn's names."""
