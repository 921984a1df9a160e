"""Attention over the pages of transformers' continuous batching, where they lie.

One step packs the new tokens of all requests, prefill and decode mixed, into one sequence. For
each layer there is a store of rows [rows, K, D] in pages; `write_index` says into which rows the
new keys go, `read_index` in which rows the keys of each request lie, old and new, request after
request (`cu_seq_lens_k`). transformers' own attention gathers those rows into a new tensor for
every layer; here the first row of every page makes a block table, and nothing is gathered.

Layers with a sliding window keep a ring of rows, in which a new key takes the place of one that
left the window. Where every request has one new token, the ring is all that it sees, in any order:
a block table of pages of one row. Else new keys may overwrite old ones that are still seen, and
transformers gathers the window before they do; so it does in 4.57, whose indices of a full ring
leave out a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.attention import attention


class _Store(NamedTuple):
    """One layer's part of the cache."""

    k: Tensor  # [rows, K, D]
    v: Tensor
    page_size: int
    is_ring: bool
    reads_whole_ring: bool
    group: int  # of read_index and write_index
    layer_type: str


def paged_attention(
    layer: int, q: Tensor, k: Tensor, v: Tensor, cache: Any, given: dict[str, Any], **options: Any
) -> Tensor:
    """Writes k and v into the cache and attends to all of it.

    q, k, v: [total, H or K, D], the new tokens. `given`: what the step says of its requests.
    """
    store = _store(cache, layer)
    cu_q = given["cu_seq_lens_q"].int()
    cu_k = _of_layer(given["cu_seq_lens_k"], store).int()
    max_q = int(given["max_length_q"] if "max_length_q" in given else given["max_seqlen_q"])
    lengths = given["max_length_k"] if "max_length_k" in given else given["max_seqlen_k"]
    options |= {
        "causal": True,
        "cu_seqlens_q": cu_q,
        "max_seqlen_q": max_q,
        "max_seqlen_k": int(_of_layer(lengths, store)),
    }
    read, write = given["read_index"][store.group], given["write_index"][store.group]
    fresh = read.numel() == 0  # every request is new: its keys are all here
    if store.is_ring and not fresh and not (max_q == 1 and store.reads_whole_ring):
        k, v = _gathered(cache, layer, k, v, given)
        return attention(q, k, v, cu_seqlens_k=cu_k, **options)
    store.k[write], store.v[write] = k, v
    if fresh:
        return attention(q, k, v, cu_seqlens_k=cu_k, **options)
    page_size = store.page_size
    if store.is_ring:
        page_size = 1
        read = read.index_copy(0, cu_k[1:].long() - 1, write.to(read.dtype))
    rows = min(len(store.k), len(store.v)) // page_size * page_size
    return attention(
        q,
        store.k[:rows].unflatten(0, (-1, page_size)),
        store.v[:rows].unflatten(0, (-1, page_size)),
        seqused_k=cu_k.diff(),
        block_table=_block_table(read, cu_k, options["max_seqlen_k"], page_size),
        **options,
    )


def _block_table(read: Tensor, cu_k: Tensor, max_k: int, page_size: int) -> Tensor:
    """[B, pages], the page of every page_size-th row; past a request's end, of any."""
    first = cu_k[:-1, None] + torch.arange(0, max_k, page_size, device=cu_k.device)
    return (read[first.clamp_(max=len(read) - 1)] // page_size).int()


def _of_layer(value: Any, store: _Store) -> Any:
    return value[store.layer_type] if isinstance(value, dict) else value


def _store(cache: Any, layer: int) -> _Store:
    if hasattr(cache, "layer_to_allocator"):  # transformers 5
        allocator = cache.layer_to_allocator[layer]
        k, v = allocator._kv_token_views[layer]
        is_ring = allocator.layer_type == "sliding_attention"
        return _Store(
            k, v, allocator.tokens_per_page, is_ring, True, allocator.index, allocator.layer_type
        )
    if hasattr(cache, "layer_index_to_group_indices"):  # 4.57
        group, index = cache.layer_index_to_group_indices[layer]
        is_ring = cache.sliding_windows[layer] != 1
        layer_type = "sliding_attention" if is_ring else "full_attention"
        k, v = cache.key_cache[index], cache.value_cache[index]
        return _Store(k, v, cache.block_size, is_ring, False, group, layer_type)
    raise NotImplementedError(
        f"weft's paged attention does not know {type(cache).__name__} of this transformers: it "
        "knows those of 4.57 and 5.23"
    )


def _gathered(
    cache: Any, layer: int, k: Tensor, v: Tensor, given: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The keys and values that transformers gathers, [total_k, K, D], having written the new."""
    k, v = (x.transpose(0, 1)[None] for x in (k, v))  # [1, K, total, D]
    if hasattr(cache, "layer_to_allocator"):
        k, v = cache.update(key_states=k, value_states=v, layer_idx=layer, kwargs=dict(given))
        return k[0].transpose(0, 1), v[0].transpose(0, 1)
    return cache.update(k, v, layer, given["read_index"], given["write_index"])
