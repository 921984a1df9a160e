"""Two plots of a result: bars by case, and the roofline."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from bench.report import contenders, label
from bench.result import WEFT, Result

WEFT_COLOUR = "#c0392b"
PEER_COLOURS = ("#34495e", "#7f8c8d", "#2980b9", "#16a085", "#8e44ad")
DPI = 110


def save_plots(result: Result, folder: Path) -> list[Path]:
    """Writes the plots as PNG and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in (("bars", bars(result)), ("roofline", roofline(result))):
        path = folder / f"{result.family}-{name}.png"
        figure.savefig(path, dpi=DPI, bbox_inches="tight")
        plt.close(figure)
        written.append(path)
    return written


def bars(result: Result) -> Figure:
    """Speed relative to the fastest peer, a group of bars per row: cases from microseconds to
    milliseconds share one axis, and longer is better."""
    rows = [row for row in result.rows if row.best_peer]
    names = contenders(rows)
    colours = dict(zip(names, (WEFT_COLOUR, *PEER_COLOURS), strict=False))
    height = 0.8 / max(len(names), 1)
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.42 * len(rows)))
    for i, name in enumerate(names):
        places, lengths = [], []
        for y, row in enumerate(rows):
            if name in row.times and row.best_peer:
                best = row.times[row.best_peer].spread.median
                places.append(y + (i - (len(names) - 1) / 2) * height)
                lengths.append(best / row.times[name].spread.median)
        axes.barh(places, lengths, height, label=name, color=colours.get(name, "#bdc3c7"))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{label(row)} {row.memory}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("speed relative to the fastest peer")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    axes.set_title(f"{result.family} on {device_of(result)}", fontsize=9)
    return figure


def device_of(result: Result) -> str:
    return str(result.machine.get("gpu") or result.machine["cpu"])


def roofline(result: Result) -> Figure:
    """Operations per second over operations per byte, under the machine's roof."""
    rows = [row for row in result.rows if row.cold]
    figure, axes = plt.subplots(figsize=(8, 5))
    limits = result.limits
    intensities = [row.flops / row.bytes for row in rows] or [1.0]
    span = (min(intensities) / 2, max(intensities) * 2)
    if limits.fp32:
        span = (span[0], max(span[1], 2 * limits.fp32 / limits.copy))
        axes.axhline(limits.fp32 / 1e9, color="black", linewidth=0.8, linestyle=":")
    roof = [min(x * limits.copy, limits.fp32 or float("inf")) / 1e9 for x in span]
    corner = limits.fp32 / limits.copy if limits.fp32 else span[1]
    axes.plot(
        [span[0], corner, span[1]],
        [roof[0], corner * limits.copy / 1e9, roof[1]],
        color="black", linewidth=1, label="copy bandwidth, fp32 peak",
    )  # fmt: skip
    for name, marker in zip(contenders(rows), "o^svDPX", strict=False):
        points = [
            (row.flops / row.bytes, row.flops / row.times[name].spread.median / 1e9)
            for row in rows
            if name in row.times
        ]
        if points:
            axes.scatter(
                [x for x, _ in points],
                [y for _, y in points],
                s=40 if name == WEFT else 18,
                marker=marker,
                label=name,
                color=WEFT_COLOUR if name == WEFT else None,
                alpha=0.7,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("Gop/s")
    axes.legend(fontsize=8)
    axes.set_title(f"{result.family} on {device_of(result)}", fontsize=9)
    return figure
