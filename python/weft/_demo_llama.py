"""The demonstration's small Llama: it generates, with three caches, and learns English letters.

Generation is measured with random weights, which take as long as trained ones. The stock model
chooses the tokens; the others are given the same ones, so that their logits can be compared at
every step. Training starts from the same weights on both sides and sees the same text in the same
order: two loss curves, which should be one.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._demo_table import table
from .optimize import optimize

Advance = Callable[[], object]


class Size(NamedTuple):
    prompt: int  # tokens
    tokens: int  # generated
    rounds: int
    steps: int  # of training


BATCH = 2
MODEL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 4096,
}
LEARNER = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,  # ASCII
    "max_position_embeddings": 128,
}
CONTEXT, ROWS, LEARNING_RATE = 96, 8, 1e-3

# Cosines of the logits to the stock model's in the same dtype; the cache in int8 has three digits.
BOUNDS = {"bfloat16": 0.999, "int8": 0.99}
LOSS_BOUND = 1e-3  # between the curves: additions in another order, amplified by the steps


@dataclass
class Generation:
    """One way to generate: medians over the rounds."""

    model: str
    cache: str
    prompt_seconds: float
    tokens_per_second: float
    cache_bytes: int
    cosine: float  # of the logits to the stock model's, the smallest over all steps
    within_bounds: bool


@dataclass
class Training:
    """The losses of both sides, step by step, and the seconds that a step takes."""

    stock: list[float]
    weft: list[float]
    stock_seconds: float
    weft_seconds: float
    difference: float
    within_bounds: bool


def make(**changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**changes)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


# ------------------------------------------------------------------------------------ generation


class Run(NamedTuple):
    tokens: Tensor  # [B, tokens]
    logits: Tensor  # [tokens, B, V]
    prompt_seconds: float
    seconds: float
    cache: Any


@torch.inference_mode()
def run(model: Any, prompt: Tensor, count: int, cache: Any, given: Tensor | None = None) -> Run:
    """Greedy generation of `count` tokens, or of those that are given."""
    start = time.perf_counter()
    step = model(prompt, past_key_values=cache, logits_to_keep=1)
    prompt_seconds = time.perf_counter() - start
    tokens, logits = [], []
    start = time.perf_counter()
    for i in range(count):
        logits.append(step.logits[:, -1].float())
        tokens.append(logits[-1].argmax(-1) if given is None else given[:, i])
        step = model(tokens[-1][:, None], past_key_values=cache)
    seconds = time.perf_counter() - start
    return Run(torch.stack(tokens, 1), torch.stack(logits), prompt_seconds, seconds, cache)


def generate(size: Size, advance: Advance) -> list[Generation]:
    import transformers

    from .integrations.transformers import Int8Cache

    stock = make(**MODEL).bfloat16().eval()
    ours = copy.deepcopy(stock)
    optimize(ours)
    ways: dict[tuple[str, str], tuple[Any, Callable[[], Any]]] = {
        ("stock, SDPA", "bfloat16"): (stock, transformers.DynamicCache),
        ("weft", "bfloat16"): (ours, transformers.DynamicCache),
        ("weft", "int8"): (ours, Int8Cache),
    }
    prompt = torch.randint(MODEL["vocab_size"], (BATCH, size.prompt))
    runs: dict[tuple[str, str], list[Run]] = {way: [] for way in ways}
    truth: Run | None = None
    for _ in range(size.rounds):
        for way, (model, cache) in ways.items():
            given = None if truth is None else truth.tokens
            runs[way].append(run(model, prompt, size.tokens, cache(), given))
            truth = truth or runs[way][0]
            advance()
    assert truth is not None
    found = []
    for (name, cache_name), of_way in runs.items():
        cosine = torch.cosine_similarity(of_way[0].logits, truth.logits, -1).min().item()
        found.append(
            Generation(
                name,
                cache_name,
                statistics.median(r.prompt_seconds for r in of_way),
                statistics.median(BATCH * size.tokens / r.seconds for r in of_way),
                sum(x.nbytes for layer in of_way[0].cache.layers for x in stored(layer)),
                cosine,
                cosine >= BOUNDS[cache_name],
            )
        )
    return found


def stored(layer: Any) -> list[Tensor]:
    """What a layer of a cache keeps of the tokens it has: keys, values, scales."""
    rows = [layer.keys, layer.values]
    return rows + [x._weft_scale for x in rows if hasattr(x, "_weft_scale")]


# -------------------------------------------------------------------------------------- training


def text() -> Tensor:
    """ASCII codes of the help texts that come with Python."""
    from pydoc_data.topics import topics

    letters = "\n".join(topics[key] for key in sorted(topics)).encode("ascii", "ignore")
    return torch.tensor(list(letters))


def train(size: Size, advance: Advance) -> Training:
    stock = make(**LEARNER)
    ours = copy.deepcopy(stock)
    optimize(ours)
    sides = {"stock": stock, "weft": ours}
    optimizers = {
        side: torch.optim.AdamW(model.train().parameters(), lr=LEARNING_RATE)
        for side, model in sides.items()
    }
    losses: dict[str, list[float]] = {side: [] for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    letters = text()
    for index in range(size.steps):
        begins = torch.randint(len(letters) - CONTEXT, (ROWS, 1))
        batch = letters[begins + torch.arange(CONTEXT)]  # [B, S]
        for side in sorted(sides, reverse=index % 2 == 1):
            start = time.perf_counter()
            loss = sides[side](input_ids=batch, labels=batch, use_cache=False).loss
            loss.backward()
            optimizers[side].step()
            optimizers[side].zero_grad()
            seconds[side].append(time.perf_counter() - start)
            losses[side].append(loss.item())
        advance()
    difference = max(abs(a - b) for a, b in zip(losses["stock"], losses["weft"], strict=True))
    return Training(
        losses["stock"],
        losses["weft"],
        statistics.median(seconds["stock"]),
        statistics.median(seconds["weft"]),
        difference,
        difference <= LOSS_BOUND,
    )


def plot(training: Training, path: Path) -> None:
    """Both curves in one drawing, the second dashed over the first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(training.stock, color="0.6", linewidth=3, label="stock")
    axes.plot(training.weft, color="tab:red", linewidth=1.2, linestyle="--", label="weft")
    axes.set(xlabel="step", ylabel="loss (nats per letter)", title="A small Llama learns letters")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def show(console: Any, size: Size, generations: list[Generation], training: Training) -> None:
    stock = generations[0]
    table(
        console,
        f"A Llama of {MODEL['num_hidden_layers']} layers generates {size.tokens} tokens after a "
        f"prompt of {size.prompt}, batch {BATCH}, bfloat16",
        ("", "cache", "prompt ms", "tokens/s", "speed-up", "cache MB", "logits' cosine"),
        [
            (
                g.model,
                g.cache,
                f"{g.prompt_seconds * 1e3:.0f}",
                f"{g.tokens_per_second:.1f}",
                f"{g.tokens_per_second / stock.tokens_per_second:.2f}×",
                f"{g.cache_bytes / 1e6:.1f}",
                f"{g.cosine:.4f} ≥ {BOUNDS[g.cache]}",
            )
            for g in generations
        ],
    )
    every = max(1, size.steps // 10)
    shown = sorted({*range(0, size.steps, every), size.steps - 1})
    low, high = min(training.stock), max(training.stock)

    def bar(loss: float) -> str:
        return "█" * round(1 + 39 * (loss - low) / (high - low or 1))

    table(
        console,
        f"A Llama of {LEARNER['num_hidden_layers']} layers learns letters, float32: its loss",
        ("step", "stock", "weft", ""),
        [
            (str(i), f"{training.stock[i]:.4f}", f"{training.weft[i]:.4f}", bar(training.weft[i]))
            for i in shown
        ],
    )
    console.print(
        f"{training.stock_seconds * 1e3:.0f} ms a step stock, {training.weft_seconds * 1e3:.0f} ms "
        f"weft; the losses differ by {training.difference:.1e} at most, limit {LOSS_BOUND}"
    )
