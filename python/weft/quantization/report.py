"""What :func:`weft.quantize_` did, layer by layer: as text, as a table, as a plot."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._text_table import pattern, stack, text_table


@dataclass
class Layer:
    """One linear layer.

    path: where it is.
    before, after: what it was and what it is.
    why_not: why it stayed as it was.
    sqnr: 10 log10(Σ y² / Σ (y - ŷ)²), in dB: its products on rows of the calibration, before the
        bias, in floats and quantised. None without calibration.
    sqnr_plain: the same without smoothing; None where there is none.
    smoothed: where shift and smooth went: "quantiser", or the path of the norm that took them.
    """

    path: str
    before: str
    after: str = ""
    why_not: str = ""
    sqnr: float | None = None
    sqnr_plain: float | None = None
    smoothed: str = ""


@dataclass
class QuantizationReport:
    """All linear layers of a model, and the bytes of their weights before and after."""

    layers: list[Layer] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0

    @property
    def quantized(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.after]

    @property
    def skipped(self) -> list[Layer]:
        return [layer for layer in self.layers if not layer.after]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        groups: dict[tuple[str, ...], list[Layer]] = {}
        for layer in self.layers:
            smoothed = pattern(layer.smoothed)
            key = (pattern(layer.path), layer.before, layer.after, smoothed, layer.why_not)
            groups.setdefault(key, []).append(layer)
        rows = []
        for (_, before, after, smoothed, reason), layers in groups.items():
            path = stack([layer.path for layer in layers])
            plain = _span([layer.sqnr_plain for layer in layers])
            rows.append(
                (path, before, after, smoothed, plain, _span([x.sqnr for x in layers]), reason)
            )
        lines = text_table(
            ("path", "before", "after", "smoothed by", "plain dB", "dB", "why not"), rows
        )
        lines.append(f"{len(self.quantized)} layers quantised, {len(self.skipped)} left alone")
        if self.quantized:
            sizes = f"{self.bytes_before / 1e6:.1f} MB to {self.bytes_after / 1e6:.1f} MB"
            lines.append(f"their weights: {sizes}")
        return "\n".join(lines)

    def table(self) -> Any:
        """A `rich.table.Table` of the quantised layers; needs rich (``pip install rich``)."""
        from rich.table import Table

        table = Table(title="Signal to quantisation noise, dB", title_justify="left", box=None)
        for i, name in enumerate(("layer", "is", "smoothed by", "plain", "as it is", "gain")):
            table.add_column(name, justify="left" if i < 3 else "right")
        for x in self.quantized:
            gain = None if None in (x.sqnr, x.sqnr_plain) else (x.sqnr or 0) - (x.sqnr_plain or 0)
            numbers = (x.sqnr_plain, x.sqnr, gain)
            table.add_row(x.path, x.after, x.smoothed, *map(_decibels, numbers))
        return table

    def plot(self, path: str | Path) -> None:
        """Draws the ratios of the quantised layers, in order; needs matplotlib, and calibration.

        Args:
            path: of the file; its ending says the format.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        layers = [layer for layer in self.quantized if layer.sqnr is not None]
        if not layers:
            raise ValueError("weft: there is nothing to plot: quantise with calibration=")
        figure = Figure(figsize=(8, max(2.0, 0.8 + 0.18 * len(layers))), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        after = [(i, x.sqnr or 0.0) for i, x in enumerate(layers)]
        plain = [(i, x.sqnr_plain) for i, x in enumerate(layers) if x.sqnr_plain is not None]
        for (i, end), (_, begin) in zip(after, plain, strict=False):
            axes.plot([begin, end], [i, i], color="0.8", zorder=1)
        if plain:
            axes.scatter([x for _, x in plain], [i for i, _ in plain], color="0.6", label="plain")
        label = "smoothed" if plain else "quantised"
        axes.scatter([x for _, x in after], [i for i, _ in after], color="tab:red", label=label)
        axes.set_yticks(range(len(layers)), [layer.path for layer in layers], fontsize=7)
        axes.invert_yaxis()
        axes.set(xlabel="signal to quantisation noise, dB")
        axes.grid(alpha=0.3, axis="x")
        axes.legend()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def sqnr(truth: Tensor, found: Tensor) -> float:
    """10 log10(Σ y² / Σ (y - ŷ)²) in dB; inf where they are the same."""
    truth, found = truth.double(), found.double()
    noise = (truth - found).square().sum()
    return float(10 * torch.log10(truth.square().sum() / noise))


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _span(values: list[float | None]) -> str:
    found = sorted({f"{v:.1f}" for v in values if v is not None}, key=float)
    return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else ""
