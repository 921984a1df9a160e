"""The demonstration's model shared out between two processes: tensor parallelism over
`weft.distributed`, with one thread each, and a timeline of one pass.

Every encoder layer's projections are split by columns (queries, keys, values, the first of the
MLP), and what follows them by rows, whose sums are taken while their products are computed.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._demo_model import corpus, encode, load, tokenize
from ._demo_table import table

RANKS, SENTENCES = 2, 64
BOUND = 1e-5  # of a component of an embedding: float32 added in another order
ROUNDS = 2
SECONDS = 120  # that the processes have, on a machine that does other things as well


@dataclass
class Parallel:
    """One process beside two that share the model out; all have one thread."""

    alone: float  # seconds to encode all sentences
    shared: float
    product: float  # of the pass that was recorded, the share of the average rank's time
    reduce: float
    wait: float
    difference: float
    within_bounds: bool


def share_out(model: Any, group: Any) -> None:
    """A BERT's linear layers, each the rank's part of itself, in place."""
    from .nn import ColumnParallelLinear, RowParallelLinear

    for layer in model.encoder.layer:
        attention = layer.attention
        for linear in (attention.self.query, attention.self.key, attention.self.value):
            ColumnParallelLinear.of(linear, group)
        RowParallelLinear.of(attention.output.dense, group)
        ColumnParallelLinear.of(layer.intermediate.dense, group)
        RowParallelLinear.of(layer.output.dense, group)


def measure(sentences: int, plot: Path, trace: Path) -> Parallel:
    """Starts the processes; the timeline is drawn into `plot`, and written to `trace`."""
    program = "import sys; from weft._demo_parallel import main; main(*sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        job = (sentences, str(plot.resolve()), str(trace.resolve()))
        (Path(folder) / "job").write_bytes(pickle.dumps(job))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-c", program, folder]
        started = [
            subprocess.Popen([*command, str(rank)], env=environment) for rank in range(RANKS)
        ]
        try:
            codes = [process.wait(SECONDS) for process in started]
        finally:
            for process in started:
                process.kill()
        if any(codes):
            raise RuntimeError(f"a process of the demonstration failed: {codes}")
        found = pickle.loads((Path(folder) / "result").read_bytes())
        assert isinstance(found, Parallel)
        return found


def main(where: str, number: str) -> None:
    """One of the processes."""
    import torch.distributed as dist

    from .distributed import Communicator, Timeline
    from .optimize import optimize

    torch.set_num_threads(1)
    folder, rank = Path(where), int(number)
    sentences, plot, trace = pickle.loads((folder / "job").read_bytes())
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    tokenizer, model = load()
    batches = tokenize(tokenizer, corpus(sentences))
    optimize(model)

    def seconds(model: nn.Module) -> tuple[float, Tensor]:
        times = []
        for _ in range(ROUNDS + 1):  # the first is not counted
            dist.barrier()
            start = time.perf_counter()
            embeddings = encode(model, batches, lambda: None)
            times.append(time.perf_counter() - start)
        return min(times[1:]), embeddings

    # One after the other, so that each has the machine that the other had.
    alone, whole = seconds(model) if rank == 0 else (0.0, None)
    if rank != 0:
        for _ in range(ROUNDS + 1):
            dist.barrier()
    assert dist.group.WORLD is not None
    with Communicator(dist.group.WORLD) as communicator:
        dist.barrier()
        share_out(model, communicator)
        shared, parts = seconds(model)
        with Timeline(communicator) as timeline, torch.inference_mode():
            start = time.perf_counter()
            encode(model, batches[-1:], lambda: None)
            taken = time.perf_counter() - start
        timeline.save(trace)
        timeline.plot(plot, f"{len(batches[-1]['input_ids'])} sentences, tensor parallel")
        if rank == 0:
            assert whole is not None
            difference = (whole - parts).abs().max().item()
            share = {p: timeline.seconds(p) / taken for p in ("product", "reduce", "wait")}
            result = Parallel(
                alone, shared, share["product"], share["reduce"], share["wait"],
                difference, difference <= BOUND,
            )  # fmt: skip
            (folder / "result").write_bytes(pickle.dumps(result))
        dist.barrier()
    dist.destroy_process_group()  # gloo's threads would meet an interpreter that has gone


def show(console: Any, found: Parallel) -> None:
    table(
        console,
        "MiniLM shared out between two processes of one thread each",
        ("", ""),
        [
            ("one process, one thread", f"{found.alone * 1e3:.0f} ms"),
            ("two, tensor parallel", f"{found.shared * 1e3:.0f} ms"),
            ("speed-up", f"{found.alone / found.shared:.2f}×"),
            ("in products that are reduced", f"{found.product:.1%}"),
            ("in their reduction", f"{found.reduce:.1%}"),
            ("waiting for the other", f"{found.wait:.1%}"),
            ("largest difference of the embeddings", f"{found.difference:.1e} ≤ {BOUND:.0e}"),
        ],
    )
