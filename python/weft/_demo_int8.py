"""The demonstration's INT8 models: how far MiniLM's embeddings are from float32, quantised.

First the model as it is. Then one with planted outliers: in every layer four channels of the
values that attention averages are a hundred times as large, and the weights that read them as
small, so that in floats it computes the same. Quantised by one scale for each layer, it is
useless, by one for each row a quarter of the nearest neighbours are others; smoothing repairs both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._demo_model import encode
from ._demo_table import table
from .quantization import (
    W8A16,
    AdaptiveSmoothQuant,
    Hybrid,
    LLMInt8,
    ShiftSmoothQuant,
    SmoothQuant,
    W8A8Dynamic,
    W8A8Static,
)
from .quantize import quantize_

CHANNELS, FACTOR = 4, 100.0
CALIBRATION = slice(None, None, -2)  # every second batch, the longest sentences among them

# The model, what is done to it, how, and the mean cosine with float32: at least, or at most.
SEARCH = AdaptiveSmoothQuant(pieces=2, alphas=(0.2, 0.8, 0.1), scales=(1.0, 5.0, 2.0))
WAYS: tuple[tuple[str, str, Any, float], ...] = (
    ("MiniLM", "W8A8, a scale per row", W8A8Dynamic(), 0.99),
    ("MiniLM", "W8A8, a scale per layer", W8A8Static(), 0.95),
    ("MiniLM", "W8A16", W8A16(), 0.998),
    ("MiniLM", "hybrid", Hybrid(), 0.99),
    ("outliers", "W8A8, a scale per row", W8A8Dynamic(), -0.985),
    ("outliers", "W8A8, a scale per layer", W8A8Static(), -0.9),
    ("outliers", "… SmoothQuant", W8A8Static(smoothing=SmoothQuant()), 0.9),
    ("outliers", "… Shift-SmoothQuant", W8A8Static(smoothing=ShiftSmoothQuant()), 0.96),
    ("outliers", "… adaptive", W8A8Static(smoothing=SEARCH), 0.97),
    ("outliers", "LLM.int8", LLMInt8(), 0.99),
    ("outliers", "W8A8 per row, SmoothQuant", W8A8Dynamic(smoothing=SmoothQuant()), 0.99),
)


@dataclass
class Quality:
    """One quantised model's embeddings beside float32's."""

    model: str
    way: str
    cosine: float  # mean over the sentences
    smallest: float
    neighbours: float  # share of the sentences whose nearest neighbour is the same one
    bound: float  # of the mean cosine: at least, or if negative, at most
    within_bounds: bool


@torch.no_grad()
def plant_outliers(model: Any) -> nn.Module:
    """A copy of a BERT that computes the same."""
    planted = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for layer in planted.encoder.layer:
        value, out = layer.attention.self.value, layer.attention.output.dense
        channels = torch.randperm(out.in_features, generator=generator)[:CHANNELS]
        value.weight[channels] *= FACTOR
        value.bias[channels] *= FACTOR
        out.weight[:, channels] /= FACTOR
    return planted  # type: ignore[no-any-return]


def measure(
    model: nn.Module,
    batches: list[dict[str, Tensor]],
    truth: Tensor,
    advance: Callable[[], object],
) -> list[Quality]:
    """All of `WAYS`, on embeddings of the same sentences; `truth` is the model's in float32."""
    models = {"MiniLM": model, "outliers": plant_outliers(model)}
    found = []
    for name, way, config, bound in WAYS:
        quantized = copy.deepcopy(models[name])
        needed = isinstance(config, W8A8Static) or getattr(config, "smoothing", None)
        calibration = batches[CALIBRATION] if needed else None
        quantize_(quantized, config, calibration=calibration, show_progress=False)
        embeddings = encode(quantized, batches, lambda: None)
        cosines = (embeddings.double() * truth.double()).sum(-1)
        mean = cosines.mean().item()
        found.append(
            Quality(
                name,
                way,
                mean,
                cosines.min().item(),
                (_nearest(embeddings) == _nearest(truth)).double().mean().item(),
                bound,
                mean >= bound if bound > 0 else mean <= -bound,
            )
        )
        advance()
    return found


def _nearest(x: Tensor) -> Tensor:
    return (x @ x.T).fill_diagonal_(-1).argmax(-1)


def show(console: Any, qualities: list[Quality]) -> None:
    table(
        console,
        "MiniLM quantised, as it is and with planted outliers: cosine with float32",
        ("", "weft.quantize_", "mean", "smallest", "same neighbour"),
        [
            (
                q.model,
                q.way,
                f"{q.cosine:.4f} {'≥' if q.bound > 0 else '≤'} {abs(q.bound)}",
                f"{q.smallest:.4f}",
                f"{q.neighbours:.1%}",
            )
            for q in qualities
        ],
    )
