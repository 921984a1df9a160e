"""Smoothing: outliers of single activation channels, moved into the weights.

A linear layer y = x Wᵀ + b computes the same from t, which is easier to quantise:

    t = (x - z) / s          y = t (W s)ᵀ + (b + W z)

z and s have an entry for each input channel c. z centres the channel (Outlier Suppression+, arXiv
2304.09145), s evens out channels:

    SmoothQuant (arXiv 2211.10438)   s_c = max|x_c|^α / max|W_c|^(1-α)
    adaptive (PaddleSlim's)          channels are sorted into pieces by max|x_c|; α or a constant
                                     is searched piece after piece, for the smallest error of y

Layers that read the same x share z and s: max|W_c| is over all of their rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-5  # no channel is blown up by more than its inverse

Shift = Literal["midrange", "ema"]
Activation = Literal["tensor", "average", "token"]


@dataclass(frozen=True)
class SmoothQuant:
    """s by the formula, with one α for all channels.

    Args:
        alpha: how much of the difficulty goes into the weights, 0 to 1.
        shift: "midrange": z is (min + max) / 2 of the first batch, and after every further one the
            mean of z and that batch's. "ema": the moving average of the channel's mean, with decay
            0.98. None: no shift.
    """

    alpha: float = 0.5
    shift: Shift | None = None


@dataclass(frozen=True)
class ShiftSmoothQuant(SmoothQuant):
    """:class:`SmoothQuant` of channels that are centred first."""

    shift: Shift | None = "midrange"


@dataclass(frozen=True)
class AdaptiveSmoothQuant:
    """s by piece-wise search: for each piece, in the order of its centroid, with the other pieces
    as found so far, α from `alphas` and then constants from `scales` are tried.

    Args:
        pieces: how many, at most.
        search_pieces: try 1, 2, … `pieces` of them, not just `pieces`: greedy as the search is,
            fewer are at times better.
        alphas: (from, to, step), the ends excluded.
        scales: (from, to, step), both ends included; None: only α.
        clip: channels are only ever divided: s = max(1, max|x_c| / max_c(max|x_c| / s_c)).
        activation: how x is quantised in the search: one scale for all, from the largest value
            ("tensor") or from the mean over the rows of theirs ("average"), or one scale for each
            row ("token"). None: as the config quantises it.
        shift: as in :class:`SmoothQuant`.
    """

    pieces: int = 3
    search_pieces: bool = True
    alphas: tuple[float, float, float] = (0.2, 0.8, 0.01)
    scales: tuple[float, float, float] | None = (1.0, 5.5, 0.5)
    clip: bool = False
    activation: Activation | None = None
    shift: Shift | None = "midrange"


Smoothing = SmoothQuant | AdaptiveSmoothQuant


def smooth_scales(x_max: Tensor, w_max: Tensor, alpha: float) -> Tensor:
    """SmoothQuant's s [C] from max|x_c| and max|W_c|; channels that are always zero keep 1."""
    s = x_max.pow(alpha) / w_max.clamp(min=SMALLEST).pow(1 - alpha)
    return torch.where(x_max > 0, s.clamp(min=SMALLEST), 1.0)


def pieces_of(values: Tensor, count: int) -> list[Tensor]:
    """Masks over `values` [C], smallest centroid first: k-means of numbers on a line.

    Lloyd's iteration from the quantiles, so that the same values give the same pieces.
    """
    distinct = values.unique()
    count = min(count, len(distinct))
    spots = (torch.arange(count) + 0.5) / count * len(distinct)
    centres = distinct[spots.long()]
    for _ in range(300):
        nearest = (values[:, None] - centres).abs().argmin(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, values)
        members = torch.bincount(nearest, minlength=count)
        moved = torch.where(members > 0, sums / members.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    masks = [nearest == i for i in range(count)]
    return [mask for mask in masks if mask.any()]


def search(
    x: Tensor, weight: Tensor, x_max: Tensor, how: AdaptiveSmoothQuant, activation: Activation
) -> Tensor:
    """The adaptive s [C].

    Args:
        x: [N, C], sampled and centred inputs.
        weight: [M, C], of all layers that read them, one after another.
        x_max: [C], max|x_c| over the whole calibration.
        how: what is tried.
        activation: how x is quantised.
    """
    truth = F.linear(x, weight)
    w_max = weight.abs().amax(0)

    def loss(s: Tensor) -> float:
        y = F.linear(fake_quantize(x / s, activation), fake_quantize(weight * s, "token"))
        return F.mse_loss(y, truth).item()

    best, chosen = loss(torch.ones_like(x_max)), torch.ones_like(x_max)
    for count in range(1 if how.search_pieces else how.pieces, how.pieces + 1):
        s = torch.ones_like(x_max)
        least = float("inf")
        for piece in pieces_of(x_max, count):
            trials = [torch.where(piece, t, s) for t in _candidates(x_max, w_max, how)]
            losses = [loss(t) for t in trials]
            least = min(losses)
            s = trials[losses.index(least)]
        if least < best:
            best, chosen = least, s
    return chosen


def _candidates(x_max: Tensor, w_max: Tensor, how: AdaptiveSmoothQuant) -> list[Tensor]:
    low, high, step = how.alphas
    alphas = [low + i * step for i in range(1, round((high - low) / step))]
    found = [smooth_scales(x_max, w_max, alpha) for alpha in alphas]
    if how.clip:
        found = [(x_max / (x_max / s).max()).clamp(min=1.0) for s in found]
    if how.scales is not None:
        low, high, step = how.scales
        count = round((high - low) / step) + 1
        found += [torch.full_like(x_max, low + i * step) for i in range(count)]
    return found


def fake_quantize(x: Tensor, granularity: Activation) -> Tensor:
    """x [N, C] rounded to what int8 can hold of it, in float."""
    largest = x.abs().amax(-1, keepdim=True)
    if granularity == "tensor":
        largest = largest.max()
    elif granularity == "average":
        largest = largest.mean()
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (x / scale).round().clamp(-128, 127) * scale
