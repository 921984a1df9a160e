"""``flash_attn.bert_padding``: between padded batches [B, S, ...] and packed ones [total, ...]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "index_first_axis",
    "index_put_first_axis",
    "pad_input",
    "unpad_input",
    "unpad_input_for_concatenated_sequences",
]


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """The rows ``input[indices]``."""
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """Zeros of `first_axis_dim` rows, `values` at the rows `indices`."""
    rows = values.new_zeros(first_axis_dim, *values.shape[1:])
    return rows.index_copy(0, indices, values)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The rows of a padded batch that count, packed.

    Args:
        hidden_states: [B, S, ...].
        attention_mask: [B, S], bool or int, true where a row counts.
        unused_mask: likewise, true for rows that are to be kept, but do not count.

    Returns:
        The tuple of the rows [total, ...], their indices in the padded batch [total], cu_seqlens
        int32 [B + 1], the longest sequence, and how many rows count of each int32 [B].
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    indices, cu_seqlens, longest = _packing(kept, kept.sum(-1, dtype=torch.int32))
    used = attention_mask.sum(-1, dtype=torch.int32)
    return (
        index_first_axis(hidden_states.flatten(0, 1), indices),
        indices,
        cu_seqlens,
        longest,
        used,
    )


def unpad_input_for_concatenated_sequences(
    hidden_states: Tensor, attention_mask_in_length: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """:func:`unpad_input` where several sequences stand in one row of the batch.

    Args:
        hidden_states: [B, S, ...].
        attention_mask_in_length: int [B, S], each row the lengths of its sequences, then zeros:
            [2, 3, 0, 0, 0, 0] is a sequence of two and one of three.

    Returns:
        As :func:`unpad_input`, without the last.
    """
    lengths = attention_mask_in_length
    position = torch.arange(lengths.shape[1], device=lengths.device)
    kept = position < lengths.sum(-1, keepdim=True)
    packing = _packing(kept, lengths[lengths > 0].to(torch.int32))
    return index_first_axis(hidden_states.flatten(0, 1), packing[0]), *packing


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """A padded batch [batch, seqlen, ...], `hidden_states` [total, ...] at the rows `indices`."""
    padded = index_put_first_axis(hidden_states, indices, batch * seqlen)
    return padded.unflatten(0, (batch, seqlen))


def _packing(kept: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, int]:
    indices = kept.flatten().nonzero().flatten()
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return indices, cu_seqlens, int(lengths.max())
