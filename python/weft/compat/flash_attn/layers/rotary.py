"""``flash_attn.layers.rotary``: rotary position embedding (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....ops.attention import apply_rotary_emb

__all__ = [
    "RotaryEmbedding",
    "apply_rotary_emb",
    "apply_rotary_emb_func",
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
]

apply_rotary_emb_func = apply_rotary_emb


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
    num_heads_q: int | None = None,
) -> Tensor:
    """Turns q and k in place.

    Args:
        qkv: [B, S, 3, H, D], or [B, S, H + 2K, D] with `num_heads_q` H.
        cos, sin: [rows, R / 2].
        cos_k, sin_k: for k. Default: those for q.
        interleaved, seqlen_offsets: :func:`weft.apply_rotary_emb`'s.

    Returns:
        qkv.
    """
    if qkv.dim() == 5:
        q, k = qkv[:, :, 0], qkv[:, :, 1]
    else:
        if num_heads_q is None:
            raise ValueError("weft: qkv of four dimensions needs num_heads_q")
        num_heads_k = (qkv.shape[2] - num_heads_q) // 2
        q, k = qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q : num_heads_q + num_heads_k]
    cos_k, sin_k = cos if cos_k is None else cos_k, sin if sin_k is None else sin_k
    for x, c, s in ((q, cos, sin), (k, cos_k, sin_k)):
        apply_rotary_emb(x, c, s, interleaved, inplace=True, seqlen_offsets=seqlen_offsets)
    return qkv


def apply_rotary_emb_kv_(
    kv: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
) -> Tensor:
    """Turns k in place, of kv [B, S, 2, K, D]; returns kv."""
    k = kv[:, :, 0]
    apply_rotary_emb(k, cos, sin, interleaved, inplace=True, seqlen_offsets=seqlen_offsets)
    return kv


class RotaryEmbedding(torch.nn.Module):
    """Rotary position embedding of `dim` elements of each head, in place; XPos with `scale_base`
    (arXiv 2212.10554).

    Args:
        dim: R, how many elements turn.
        base: element pair i turns by position / base^(2i / dim).
        interleaved: pairs are (x[2i], x[2i + 1]) instead of (x[i], x[i + dim / 2]).
        scale_base: positions over which XPos scales by one step. Default: no scaling.
        device: of the buffers.
    """

    inv_freq: Tensor
    scale: Tensor | None

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scale_base: float | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.base = float(base)
        self.interleaved = interleaved
        self.scale_base = scale_base
        even = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
        self.register_buffer("inv_freq", self.base ** (-even / dim), persistent=False)
        scale = None if scale_base is None else (even + 0.4 * dim) / (1.4 * dim)
        self.register_buffer("scale", scale, persistent=False)
        self._tables: tuple[Any, tuple[Tensor, ...]] | None = None

    def forward(
        self,
        qkv: Tensor,
        kv: Tensor | None = None,
        seqlen_offset: int | Tensor = 0,
        max_seqlen: int | None = None,
        num_heads_q: int | None = None,
    ) -> Any:
        """Turns in place.

        Args:
            qkv: [B, S, 3, H, D], or [B, S, H + 2K, D] with `num_heads_q`; q [B, S, H, D] with `kv`.
            kv: [B, S, 2, K, D].
            seqlen_offset: position of the first row, or int32 [B].
            max_seqlen: the last position + 1; needed where `seqlen_offset` is a tensor.

        Returns:
            qkv, or the tuple of q and kv.
        """
        if max_seqlen is None:
            if isinstance(seqlen_offset, Tensor):
                raise ValueError("weft.RotaryEmbedding: seqlen_offset [B] needs max_seqlen")
            max_seqlen = qkv.shape[1] + seqlen_offset
        cos, sin, cos_k, sin_k = self._table(max_seqlen, qkv.device, qkv.dtype)
        if kv is None:
            return apply_rotary_emb_qkv_(
                qkv, cos, sin, cos_k, sin_k, self.interleaved, seqlen_offset, num_heads_q
            )
        q = apply_rotary_emb(
            qkv, cos, sin, self.interleaved, inplace=True, seqlen_offsets=seqlen_offset
        )
        return q, apply_rotary_emb_kv_(kv, cos_k, sin_k, self.interleaved, seqlen_offset)

    def _table(self, rows: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """cos and sin for q, then for k: kept for the longest sequence so far."""
        kept = self._tables
        if kept is None or kept[0] != (device, dtype) or len(kept[1][0]) < rows:
            tables = tuple(t.to(dtype) for t in self._angles(rows, device))
            self._tables = kept = (device, dtype), tables
        return kept[1]

    def _angles(self, rows: int, device: torch.device) -> tuple[Tensor, ...]:
        """In float32, whatever the model's dtype: positions are large."""
        position = torch.arange(rows, device=device, dtype=torch.float32)
        angle = torch.outer(position, self.inv_freq.to(device, torch.float32))
        cos, sin = angle.cos(), angle.sin()
        if self.scale is None or self.scale_base is None:
            return cos, sin, cos, sin
        power = (position - rows // 2) / self.scale_base
        scale = self.scale.to(device, torch.float32) ** power.unsqueeze(-1)
        return cos * scale, sin * scale, cos / scale, sin / scale
