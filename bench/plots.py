"""Plots of a result: bars by case, the roofline, and lines over a growing size."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from bench.report import contenders, label
from bench.result import WEFT, Result, Row

WEFT_COLOUR = "#c0392b"
PEER_COLOURS = (
    "#34495e", "#7f8c8d", "#2980b9", "#16a085", "#8e44ad", "#d68910", "#a04000",
)  # fmt: skip
DPI = 110


def save_plots(result: Result, folder: Path) -> list[Path]:
    """Writes the plots as PNG and returns their paths."""
    return [
        _save(bars(result), folder / f"{result.family}-bars.png"),
        _save(roofline(result), folder / f"{result.family}-roofline.png"),
    ]


def save_sweep(result: Result, folder: Path) -> list[Path]:
    return [_save(lines(result), folder / f"{result.family}.png")]


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return path


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
    rows = [row for row in result.rows if row.limit is not None]
    figure, axes = plt.subplots(figsize=(8, 5))
    limits = result.limits
    moved = "read" if any(row.roof == "read" for row in rows) else "copy"
    bandwidth = getattr(limits, moved)
    names = dict.fromkeys(("fp32", *(str(row.roof) for row in rows if row.computes)))
    peaks = {name: peak for name in names if (peak := getattr(limits, name))}
    top = max(peaks.values(), default=float("inf"))
    intensities = [row.flops / row.bytes for row in rows] or [1.0]
    corners = [top / bandwidth] if peaks else []
    span = (min(intensities) / 2, 2 * max(intensities + corners))
    for name, peak in peaks.items():
        axes.axhline(peak / 1e9, color="black", linewidth=0.8, linestyle=":")
        axes.text(min(span[0], *corners), peak / 1e9, f" {name} peak", fontsize=7, va="bottom")
    roof = sorted((*span, *corners))
    axes.plot(
        roof, [min(x * bandwidth, top) / 1e9 for x in roof],
        color="black", linewidth=1, label=f"{moved} bandwidth",
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


def lines(result: Result) -> Figure:
    """Work per second over the size that grows, a panel for each operation. Operations where any
    row of the panel is bound by them, else bytes."""
    panels: dict[str, list[Row]] = {}
    for row in result.rows:
        panels.setdefault(row.op, []).append(row)
    names = contenders(result.rows)
    colours = dict(zip(names, (WEFT_COLOUR, *PEER_COLOURS), strict=False))
    figure, grid = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.6), squeeze=False)
    for axes, (op, rows) in zip(grid[0], panels.items(), strict=True):
        grows = _growing([row.shape for row in rows])
        computes = any(row.computes for row in rows)

        def rate(row: Row, seconds: float, computes: bool = computes) -> float:
            return (row.flops if computes else row.bytes) / seconds / 1e9

        for name in names:
            here = [row for row in rows if name in row.times]
            if here:
                axes.plot(
                    [row.shape[grows] for row in here],
                    [rate(row, row.times[name].spread.median) for row in here],
                    marker="o", markersize=3, label=name, color=colours.get(name, "#bdc3c7"),
                )  # fmt: skip
        limited = [row for row in rows if row.limit]
        if limited:
            axes.plot(
                [row.shape[grows] for row in limited],
                [rate(row, row.limit) for row in limited if row.limit],
                color="black", linewidth=0.8, linestyle=":",
                label=f"the limit ({limited[-1].roof})",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_title(f"{op} {rows[0].dtype}", fontsize=9)
        sizes = ("n" if i == grows else str(size) for i, size in enumerate(rows[0].shape))
        axes.set_xlabel(f"n, of {'×'.join(sizes)}")
        axes.set_ylabel("GFLOP/s" if computes else "GB/s")
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.27), ncols=2)
    figure.suptitle(f"{result.family} on {device_of(result)}", fontsize=9)
    figure.tight_layout()
    return figure


def _growing(shapes: list[tuple[int, ...]]) -> int:
    """Which of the sizes differs; the last but one where none does."""
    differing = [i for i, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
    return differing[0] if differing else len(shapes[0]) - 2
