"""Small models with random weights, of the architectures that `weft.optimize` meets."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers

transformers.utils.logging.set_verbosity_error()

SIZE = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = SIZE | {"num_key_value_heads": 2, "head_dim": 12}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT = {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64}
DISTIL = {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80, "vocab_size": 99}
BART = {
    "d_model": 48,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "vocab_size": 99,
    "dropout": 0.0,
}

# A name, the model without dropout, and how many add + norm blocks weft fuses in it.
CONFIGS: dict[str, tuple[Callable[[], Any], int]] = {
    "bert": (lambda: transformers.BertConfig(**SIZE, **NO_DROPOUT), 5),
    "roberta": (lambda: transformers.RobertaConfig(**SIZE, **NO_DROPOUT), 5),
    "electra": (lambda: transformers.ElectraConfig(**SIZE, **NO_DROPOUT), 5),
    "mpnet": (lambda: transformers.MPNetConfig(**SIZE, **NO_DROPOUT), 5),
    "albert": (lambda: transformers.AlbertConfig(**SIZE, embedding_size=32), 3),
    "distilbert": (
        lambda: transformers.DistilBertConfig(**DISTIL, dropout=0.0, attention_dropout=0.0), 3,
    ),
    "llama": (lambda: transformers.LlamaConfig(**GROUPED), 2),
    "mistral": (lambda: transformers.MistralConfig(**GROUPED), 2),
    "qwen3": (lambda: transformers.Qwen3Config(**GROUPED), 2),
    "gemma": (lambda: transformers.GemmaConfig(**GROUPED), 2),
    "gemma2": (lambda: transformers.Gemma2Config(**GROUPED), 2),
    "gpt2": (lambda: transformers.GPT2Config(**GPT, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), 0),
    "bart": (lambda: transformers.BartConfig(**BART), 2),
    "vit": (lambda: transformers.ViTConfig(**SIZE, **NO_DROPOUT, image_size=32, patch_size=8), 2),
    "t5": (
        lambda: transformers.T5Config(
            d_model=48, d_kv=12, d_ff=80, num_layers=1, num_heads=4, vocab_size=99, dropout_rate=0.0
        ),
        0,
    ),
}  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A model in eval mode; its norms' weights are random, so that no form passes for another."""
    config = CONFIGS[name][0]()
    for key, value in changes.items():
        setattr(config, key, value)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.5, 0.3)
    return model.to(dtype).eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    ids = torch.randint(3, 99, (2, 11))
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if name == "t5" else {})


def output(model: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    given = {n: t.to(dtype) if t.is_floating_point() else t for n, t in given.items()}
    return model(**given).last_hidden_state
