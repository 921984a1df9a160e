"""``flash_attn.ops``."""
