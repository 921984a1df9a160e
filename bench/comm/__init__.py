"""All-reduce between processes of this host, beside gloo, MPI and DeepSpeed; between its GPUs,
beside NCCL.

A family of its own kind: its contenders run in W processes at once, in step (`ranks.py`), and what
is reported is the time of a call in which all take part.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.comm import overlap, tune
from bench.comm.ranks import WEFT, Row, measure, why_no_mpi
from bench.units import duration

WORLDS = (2, 4)
SIZES = (1 << 10, 16 << 10, 256 << 10, 4 << 20, 64 << 20)
DTYPES = ("float32", "bfloat16")
GOAL = 1.2
"""weft's goal: times as fast as the best peer."""


def bench(options: argparse.Namespace, console: Console, results: Path) -> int:
    """`python -m bench comm`: measures, shows, stores. With ``--tune``, writes the table."""
    if options.sweep:
        console.print("comm has no sweep.")
        return 0
    gpus = torch.cuda.device_count() if options.device == "cuda" else 0
    if options.device == "cuda" and gpus < WORLDS[0]:
        console.print(f"comm on cuda needs {WORLDS[0]} GPUs or more, {gpus} are here.")
        return 0
    if options.tune and gpus:
        return tune_cuda(gpus, console)
    if options.tune:
        return tune.run(WORLDS, SIZES, console)
    cases = [
        (world, size, dtype)
        for world in ((w for w in (*WORLDS, 8) if w <= gpus) if gpus else WORLDS)
        for size in (SIZES[:2] if options.quick else SIZES)
        for dtype in DTYPES
        if fnmatch.fnmatch(f"all_reduce/{world}/{_size(size)}/{dtype}", options.case)
    ]
    products = [
        (shape, dtype)
        for shape in (overlap.SHAPES[-1:] if options.quick else overlap.SHAPES)
        for dtype in overlap.DTYPES
        if not gpus
        and fnmatch.fnmatch(
            f"linear_all_reduce/2/{'x'.join(map(str, shape))}/{dtype}", options.case
        )
    ]
    if not cases and not products:
        console.print(f"No case of comm matches {options.case!r}.")
        return 1
    rounds = options.rounds or (3 if options.quick else 15)
    if not gpus and (reason := why_no_mpi()):
        console.print(f"Without MPI: {reason}.", style="yellow")
    rows: list[Row] = []
    for world in dict.fromkeys(case[0] for case in cases):
        with console.status(f"{world} ranks …"):
            mine = [case[1:] for case in cases if case[0] == world]
            rows += measure(world, mine, rounds, device=options.device)
    with console.status("products …"):
        overlaps = overlap.measure(2, products, rounds) if products else []
    for table in ([_table(rows)] if rows else []) + ([_overlaps(overlaps)] if overlaps else []):
        console.print(table)
    about = machine.describe(1, options.device)
    if options.save or options.json:
        data = {"machine": about.to_json(), "rounds": rounds, "rows": [asdict(row) for row in rows]}
        data["overlap"] = [asdict(row) for row in overlaps]
        text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
        folder = results / about.slug
        for path in filter(None, (options.json, folder / "comm.json" if options.save else None)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if options.save:
            (folder / "comm.md").write_text(_markdown(rows, overlaps, about))
            console.print(f"Saved under {folder}")
    if overlaps and (options.plots or options.save):
        folder = options.plots or results / about.slug
        overlap.plot(overlaps, folder / "comm-overlap.png")
        console.print(f"Drawn in {folder / 'comm-overlap.png'}")
    return 0


def tune_cuda(gpus: int, console: Console) -> int:
    """Between two GPUs there is nothing to choose."""
    worlds = sorted(w for w in {4, 8, gpus} if 2 < w <= min(gpus, 8))
    if not worlds:
        console.print("comm --tune on cuda needs 3 GPUs or more: two have one algorithm.")
        return 0
    return tune.run(worlds, tune.CUDA_SIZES, console, device="cuda")


def _cells(row: Row, peers: list[str]) -> list[str]:
    size = _size(row.bytes)
    times = [duration(row.times[p].median) if p in row.times else "–" for p in (WEFT, *peers)]
    ratio = row.speedup
    verdict = "–" if ratio is None else f"{ratio:.2f} {'✓' if ratio >= GOAL else '✗'}"
    return [f"{row.world}", size, row.dtype, *times, verdict]


def _size(count: int) -> str:
    return f"{count >> 20}MB" if count >= 1 << 20 else f"{count >> 10}KB"


def _headings(rows: list[Row]) -> tuple[list[str], list[str]]:
    peers = list(dict.fromkeys(p for row in rows for p in row.times if p != WEFT))
    return peers, ["ranks", "message", "dtype", WEFT, *peers, f"× best peer (goal {GOAL})"]


def _table(rows: list[Row]) -> Table:
    peers, headings = _headings(rows)
    table = Table(*headings, title="all_reduce in place, sum")
    for row in rows:
        table.add_row(*_cells(row, peers))
    return table


def _overlaps(rows: list[overlap.Row]) -> Table:
    table = Table(*overlap.HEADINGS, title="a linear layer and its all-reduce")
    for row in rows:
        table.add_row(*row.cells())
    return table


def _markdown(rows: list[Row], overlaps: list[overlap.Row], about: machine.Machine) -> str:
    peers, headings = _headings(rows)
    table = _pipes(headings, [_cells(row, peers) for row in rows])
    second = _pipes(overlap.HEADINGS, [row.cells() for row in overlaps])
    processor = about.gpu or f"{about.cpu}, {about.cores} cores"
    where = f"{processor}, torch {about.packages['torch']}"
    return (
        f"# all_reduce in place, sum\n\n{where}, commit {about.commit}, {about.date}.\n\n{table}\n"
        f"\n# a linear layer and its all-reduce\n\n{overlap.__doc__}\n{second}\n"
    )


def _pipes(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
