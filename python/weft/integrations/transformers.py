"""weft's attention in Hugging Face transformers, 4.57 and later.

    weft.integrations.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="weft")

A model says what it wants through the arguments of the attention function: its mask, whether it is
causal, softcap, sinks, a cache of pages. All of it is computed as the model's own code ("eager")
computes it; masks stay boolean, and key heads that serve several query heads are not repeated.

Continuous batching (`generate_batch`) keeps the keys of all requests in one store of pages and
gives each step indices of the rows to read. They make a block table, and attention reads the pages
where they lie (`_paged.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ..ops.attention import attention
from ._int8_cache import Int8Cache, scale_of
from ._paged import paged_attention

__all__ = ["Int8Cache", "attention_forward", "continuous_batching", "register"]

NAME = "weft"
# generate_batch of transformers 5 takes only names that speak of flash attention. Such a name can
# not be given to from_pretrained, which would look for a package of it: see continuous_batching.
PAGED_NAME = "weft_flash"


def register() -> None:
    """Makes ``attn_implementation="weft"`` known to transformers: the attention and its masks.

    Calling it again does no harm. Models take the name when they are made, or later:
    ``model.set_attn_implementation("weft")``. Weights are not returned: models that are asked for
    `output_attentions` need "eager".
    """
    for name in (NAME, PAGED_NAME):
        AttentionInterface.register(name, attention_forward)
        AttentionMaskInterface.register(name, sdpa_mask)  # without it, padding would be attended to


@contextmanager
def continuous_batching(model: Any) -> Iterator[None]:
    """Within it, ``model.generate_batch`` runs on weft's attention over its pages.

    with weft.integrations.transformers.continuous_batching(model):
        results = model.generate_batch(prompts, generation_config)
    """
    register()
    before = model.config._attn_implementation
    model.config._attn_implementation = PAGED_NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function.

    Args:
        module: the model's attention layer.
        query: [B, H, S, D].
        key: [B, K, T, D]; of an :class:`Int8Cache`, int8.
        value: [B, K, T, Dv].
        attention_mask: [B, 1 or H, S, T]: bool, True where a key is seen, or added to the scores.
            None: all keys are seen or, if the module is causal, those up to the query.
        dropout: probability with which a weight is dropped.
        scaling: factor of the scores. Default: 1 / √D.
        is_causal: default: as the module says.
        sliding_window: of pages and packed sequences, how many keys a query sees to its left,
            itself included, and to its right, where the module is not causal; else the mask has it.
        softcap: scores become softcap · tanh(score / softcap).
        s_aux: [H], sinks.
        position_bias: added to the scores.
        kwargs: of continuous batching, `cache` and its indices; of packed sequences, their bounds.

    Returns:
        [B, S, H, Dv], and None for the weights.
    """
    if kwargs.get("output_attentions") or kwargs.get("head_mask") is not None:
        raise ValueError(
            "weft makes no attention weights: output_attentions and head_mask need "
            'attn_implementation="eager"'
        )
    S = query.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))  # [B, S, H, D], [B, T, K, D]
    options: dict[str, Any] = {
        "softmax_scale": scaling,
        "softcap": softcap or 0.0,
        "sinks": s_aux,
    }
    if key.dtype == torch.int8:
        options |= {"k_scale": scale_of(key), "v_scale": scale_of(value)}
    window = (-1, -1) if sliding_window is None else (sliding_window - 1, sliding_window - 1)
    cache = kwargs.get("cache")
    if cache is not None:
        out = paged_attention(
            module.layer_idx, q[0], k[0], v[0], cache, kwargs, window_size=window, **options
        )
        return out[None], None
    options["dropout_p"] = dropout
    if attention_mask is None and kwargs.get("cu_seq_lens_q") is not None:
        out = attention(
            q[0],
            k[0],
            v[0],
            causal=_is_causal(module, is_causal),
            window_size=window,
            cu_seqlens_q=kwargs["cu_seq_lens_q"].int(),
            cu_seqlens_k=kwargs["cu_seq_lens_k"].int(),
            max_seqlen_q=kwargs["max_length_q"],
            max_seqlen_k=kwargs["max_length_k"],
            **options,
        )
        return out[None], None
    causal = attention_mask is None and S > 1 and _is_causal(module, is_causal)
    bias, mask = position_bias, attention_mask
    if mask is not None and mask.dtype != torch.bool:
        bias, mask = mask if bias is None else bias + mask, None
    bias, mask = (None if t is None else t[..., : k.shape[1]] for t in (bias, mask))
    out = attention(q, k, v, causal=causal, top_left=True, bias=bias, mask=mask, **options)
    return out, None


def _is_causal(module: nn.Module, given: bool | None) -> bool:
    return bool(getattr(module, "is_causal", True) if given is None else given)
