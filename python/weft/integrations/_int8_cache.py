"""A cache of int8 keys and values for transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ..ops.attention import kv_cache_append_

_SCALE = "_weft_scale"


class Int8Cache(Cache):
    """Keys and values in int8, with a scale for each row and head: about half the memory of
    bfloat16, and half the bytes that a new token reads.

        model.generate(**inputs, past_key_values=weft.integrations.transformers.Int8Cache())

    For models with ``attn_implementation="weft"``. A prompt attends to its keys as they came; what
    follows reads them in int8. Rows are added in steps, so that few tokens copy the cache. Layers
    with a sliding window keep all keys.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Int8Layer)


def scale_of(rows: Tensor) -> Tensor:
    """The scales [B, T, K] of what the cache returned."""
    scale = getattr(rows, _SCALE, None)
    if scale is None:
        raise ValueError("weft's attention got int8 keys or values without their scales")
    return scale


class _Int8Layer(DynamicLayer):
    """`keys` and `values`, [B, K, T, D], are views of the first T rows of what is stored."""

    _STEP = 256

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._stored: list[Tensor] = []  # k, v [B, rows, K, D], their scales [B, rows, K]
        self._length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        k, v = key_states.transpose(1, 2), value_states.transpose(1, 2)  # [B, S, K, D]
        before, self._length = self._length, self._length + k.shape[1]
        self._make_room(k, v)
        k8, v8, k_scale, v_scale = self._stored
        there = torch.full((len(k),), before, dtype=torch.int32, device=k.device)
        kv_cache_append_(k8, v8, k.detach(), v.detach(), there, k_scale=k_scale, v_scale=v_scale)
        shown = self._show()
        return (key_states, value_states) if before == 0 else shown

    def _make_room(self, k: Tensor, v: Tensor) -> None:
        have = self._stored[0].shape[1] if self._stored else 0
        if have >= self._length:
            return
        rows = max(2 * have, -(-self._length // self._STEP) * self._STEP)
        larger = [x.new_empty(x.shape[0], rows, *x.shape[2:], dtype=torch.int8) for x in (k, v)]
        larger += [x.new_empty(x.shape[0], rows, x.shape[2], dtype=torch.float32) for x in (k, v)]
        for new, old in zip(larger, self._stored, strict=False):
            new[:, :have] = old
        self._stored = larger

    def _show(self) -> tuple[Tensor, Tensor]:
        k, v, k_scale, v_scale = (x[:, : self._length] for x in self._stored)
        keys, values = k.transpose(1, 2), v.transpose(1, 2)
        setattr(keys, _SCALE, k_scale)
        setattr(values, _SCALE, v_scale)
        self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        return self._length

    def reset(self) -> None:
        self.keys = self.values = None
        self._stored, self._length, self.is_initialized = [], 0, False

    def crop(self, max_length: int) -> None:
        """To `max_length` tokens or, where it is negative, by so many."""
        self._length = min(
            self._length, max_length if max_length > 0 else max(self._length + max_length, 0)
        )
        if self._stored:
            self._show()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._change(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change(lambda x: x[indices])

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        if self._stored:
            self._stored = [change(x) for x in self._stored]
            self._show()
