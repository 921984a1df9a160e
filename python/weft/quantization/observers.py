"""Observers: they watch activations during calibration and say what range int8 is to span.

    symmetric    scale = max(|low|, |high|) / 127         zero_point = 0
    asymmetric   scale = (high - low) / 255               zero_point = round(-128 - low / scale)

with 0 always inside [low, high]. A range of nothing has scale 1, as the quantisers have it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Observer:
    """Watches batch after batch; `range` is the answer."""

    def __init__(self) -> None:
        self.batches = 0

    def observe(self, x: Tensor) -> None:
        """Takes note of a batch of any shape; one that is not finite is an error."""
        if x.numel() == 0:
            return
        low, high = (t.item() for t in x.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("weft: the calibration data leads to activations that are not finite")
        self.batches += 1
        self._observe(x, low, high)

    def range(self, symmetric: bool = True) -> tuple[float, float]:
        """(low, high), of what was observed, for a scale with a zero point or without."""
        raise NotImplementedError

    def _observe(self, x: Tensor, low: float, high: float) -> None:
        raise NotImplementedError

    def scale_and_zero_point(self, symmetric: bool = True) -> tuple[float, int]:
        if self.batches == 0:
            raise ValueError("weft: an observer that has seen nothing knows no scale")
        return scale_and_zero_point(*self.range(symmetric), symmetric)


def scale_and_zero_point(low: float, high: float, symmetric: bool) -> tuple[float, int]:
    if symmetric:
        return max(abs(low), abs(high)) / 127 or 1.0, 0
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    return scale, round(-128 - low / scale)


class AbsMax(Observer):
    """From the smallest to the largest value ever seen."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = math.inf, -math.inf

    def _observe(self, x: Tensor, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self, symmetric: bool = True) -> tuple[float, float]:
        return self.low, self.high


class Average(Observer):
    """The mean over the batches of their smallest and of their largest values (PaddleSlim's
    AVGObserver)."""

    def __init__(self) -> None:
        super().__init__()
        self.low = self.high = 0.0

    def _observe(self, x: Tensor, low: float, high: float) -> None:
        self.low += (low - self.low) / self.batches
        self.high += (high - self.high) / self.batches

    def range(self, symmetric: bool = True) -> tuple[float, float]:
        return self.low, self.high


class EMA(Observer):
    """The exponential moving average over the batches of their smallest and largest values, with
    the bias of its first steps corrected.

    Args:
        decay: weight of the past.
    """

    def __init__(self, decay: float = 0.98) -> None:
        super().__init__()
        self.decay = decay
        self.low = self.high = 0.0

    def _observe(self, x: Tensor, low: float, high: float) -> None:
        self.low += (1 - self.decay) * (low - self.low)
        self.high += (1 - self.decay) * (high - self.high)

    def range(self, symmetric: bool = True) -> tuple[float, float]:
        seen = 1 - self.decay**self.batches
        return self.low / seen, self.high / seen


class _Histogram(Observer):
    """Counts values in bins over [-reach, reach]. The reach is a power of two, doubled where a
    batch goes beyond, two bins becoming one: the order of the batches makes no difference."""

    BINS = 8192

    def __init__(self) -> None:
        super().__init__()
        self.counts = torch.zeros(self.BINS, dtype=torch.float64)
        self.reach = 0.0
        self.low, self.high = math.inf, -math.inf

    def _observe(self, x: Tensor, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        if (largest := max(abs(low), abs(high))) > self.reach:
            self._widen(2.0 ** math.ceil(math.log2(largest)))
        reach = self.reach or 1.0  # zeros have a bin as well
        counts = torch.histc(x.detach().float().cpu(), self.BINS, -reach, reach)
        self.counts += counts.double()

    def _widen(self, reach: float) -> None:
        quarter = self.BINS // 4
        while 0 < self.reach < reach and self.counts.any():
            narrow = self.counts.view(-1, 2).sum(-1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[quarter : 3 * quarter] = narrow
            self.reach *= 2
        self.reach = reach

    def _centres(self) -> Tensor:
        step = 2 * (self.reach or 1.0) / self.BINS
        return (torch.arange(self.BINS, dtype=torch.float64) - self.BINS / 2 + 0.5) * step


class Percentile(_Histogram):
    """Leaves out the same share of the values at both ends.

    Args:
        percentile: of the values that lie within, in percent.
    """

    def __init__(self, percentile: float = 99.99) -> None:
        super().__init__()
        if not 50 < percentile <= 100:
            raise ValueError(f"weft: percentile is {percentile}, expected (50, 100]")
        self.percentile = percentile

    def range(self, symmetric: bool = True) -> tuple[float, float]:
        outside = (1 - self.percentile / 100) / 2 * self.counts.sum()
        if outside == 0:
            return self.low, self.high
        below = self.counts.cumsum(0)
        above = self.counts.flip(0).cumsum(0).flip(0)
        inside = self._centres()[(below > outside) & (above > outside)]
        half = (self.reach or 1.0) / self.BINS  # of a bin
        return max(self.low, inside[0].item() - half), min(self.high, inside[-1].item() + half)


class MSE(_Histogram):
    """The part of the range, 20 % to all of it, that leaves the smallest mean square error."""

    STEPS = 81

    def range(self, symmetric: bool = True) -> tuple[float, float]:
        centres = self._centres()
        best, chosen = math.inf, (self.low, self.high)
        for share in torch.linspace(1.0, 0.2, self.STEPS).tolist():
            low, high = self.low * share, self.high * share
            scale, zero_point = scale_and_zero_point(low, high, symmetric)
            q = (centres / scale + zero_point).round().clamp(-128, 127)
            error = (self.counts * ((q - zero_point) * scale - centres).square()).sum().item()
            if error < best:
                best, chosen = error, (low, high)
        return chosen
