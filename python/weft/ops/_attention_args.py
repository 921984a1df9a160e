"""The arguments of `weft::attention_forward`, by name and in the order of its schema."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionArgs(NamedTuple):
    q: Tensor  # [B, S, H, D], or packed [total_q, H, D]
    k: Tensor  # [B, T, K, D], packed [total_k, K, D], or pages [pages, page_size, K, D]
    v: Tensor  # likewise, with Dv elements
    bias: Tensor | None = None  # [B, H, S, T]
    mask: Tensor | None = None  # [B, H, S, T], bool
    alibi_slopes: Tensor | None = None  # [H] or [B, H]
    sinks: Tensor | None = None  # [H]
    cu_seqlens_q: Tensor | None = None  # [B + 1], int32, as all that follow
    cu_seqlens_k: Tensor | None = None  # [B + 1]
    seqused_q: Tensor | None = None  # [B]
    seqused_k: Tensor | None = None  # [B]
    rng_state: Tensor | None = None  # [2], int64: (seed, offset)
    max_seqlen_q: int = 0
    max_seqlen_k: int = 0
    softmax_scale: float = 1.0
    softcap: float = 0.0
    window_left: int = -1
    window_right: int = -1
    top_left: bool = False
    dropout_p: float = 0.0
    allow_tf32: bool = False
    leftpad_k: Tensor | None = None  # [B], int32
    cache_batch_idx: Tensor | None = None  # [B], int32
    block_table: Tensor | None = None  # [B, pages of a sequence], int32
    k_scale: Tensor | None = None  # [K], or k's shape without D
    v_scale: Tensor | None = None
    out_shift: Tensor | None = None  # [H, Dv]
    out_smooth: Tensor | None = None  # [H, Dv]
    out_scale: Tensor | None = None  # [1]
    num_splits: int = 0


OPTIONS = slice(3, 21)  # what forward and backward have in common: bias … allow_tf32
DIFFERENTIABLE = ("q", "k", "v", "bias", "sinks")
INFERENCE_ONLY = (
    "leftpad_k", "cache_batch_idx", "block_table", "k_scale", "v_scale", "out_scale",
)  # fmt: skip
