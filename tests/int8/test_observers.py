"""Observers: ranges of what was seen, and the scales made of them."""

from __future__ import annotations

import math

import pytest
import torch

from weft.quantization import EMA, MSE, AbsMax, Average, Observer, Percentile
from weft.quantization.calibration import ChannelStatistics

OBSERVERS = (AbsMax, Average, EMA, Percentile, MSE)


def seen(observer: Observer, *batches: torch.Tensor) -> Observer:
    for batch in batches:
        observer.observe(batch)
    return observer


def test_ranges_of_batches():
    batches = torch.tensor([-1.0, 3.0]), torch.tensor([-5.0, 1.0]), torch.tensor([0.0, 2.0])
    assert seen(AbsMax(), *batches).range() == (-5.0, 3.0)
    assert seen(Average(), *batches).range() == pytest.approx((-2.0, 2.0))
    low = high = 0.0
    for batch in batches:
        low, high = 0.7 * low + 0.3 * batch.min().item(), 0.7 * high + 0.3 * batch.max().item()
    correction = 1 - 0.7**3
    expected = (low / correction, high / correction)
    assert seen(EMA(0.7), *batches).range() == pytest.approx(expected)
    assert seen(EMA(), batches[0]).range() == pytest.approx((-1.0, 3.0))


def test_percentile_leaves_out_tails():
    values = torch.randn(200_000)
    values[0] = 1000.0
    low, high = seen(Percentile(99.0), values).range()
    expected = values.quantile(torch.tensor([0.005, 0.995])).tolist()
    assert (low, high) == pytest.approx(expected, abs=2 * 1024 / 8192 * 2)
    low, high = seen(Percentile(99.0), values[1:]).range()
    assert (low, high) == pytest.approx(expected, abs=0.01)
    assert seen(Percentile(100.0), values).range()[1] == 1000.0
    with pytest.raises(ValueError, match=r"percentile is 40, expected \(50, 100\]"):
        Percentile(40)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_errs_less_than_absmax_where_there_are_outliers(symmetric):
    values = torch.randn(1_000_000)
    values[:2] = torch.tensor([12.0, -11.0])

    def error(observer: Observer) -> float:
        scale, zero_point = seen(observer, values).scale_and_zero_point(symmetric)
        q = (values / scale + zero_point).round().clamp(-128, 127)
        return ((q - zero_point) * scale - values).square().mean().item()

    assert error(MSE()) < 0.5 * error(AbsMax())
    flat = torch.rand(10_000)  # without outliers nothing is cut off
    assert seen(MSE(), flat).range(symmetric=False) == seen(AbsMax(), flat).range()


@pytest.mark.parametrize("observer", [Percentile, MSE])
def test_histograms_do_not_depend_on_the_order_of_batches(observer):
    batches = [torch.randn(1000) * 10.0**i for i in (-2, 0, 2)]
    forwards, backwards = seen(observer(), *batches), seen(observer(), *reversed(batches))
    assert forwards.range() == backwards.range()
    assert forwards.counts.sum() == 3000


@pytest.mark.parametrize("observer", OBSERVERS)
def test_scales(observer):
    x = torch.rand(500) * 3 + 1.0  # all positive: 0 lies within all the same
    x[:2] = torch.tensor([1.0, 4.0])
    scale, zero_point = seen(observer(), x, x).scale_and_zero_point()
    assert zero_point == 0 and scale <= 4 / 127 * (1 + 1e-6)
    scale, zero_point = seen(observer(), x, x).scale_and_zero_point(symmetric=False)
    assert zero_point == -128 and scale <= 4 / 255 * (1 + 1e-6)
    assert seen(observer(), torch.zeros(4)).scale_and_zero_point() == (1.0, 0)
    assert seen(observer(), torch.empty(0), x).batches == 1


@pytest.mark.parametrize("observer", OBSERVERS)
def test_nothing_and_nonsense(observer):
    with pytest.raises(ValueError, match="seen nothing"):
        observer().scale_and_zero_point()
    for bad in (math.inf, math.nan):
        with pytest.raises(ValueError, match="not finite"):
            observer().observe(torch.tensor([1.0, bad]))
        with pytest.raises(ValueError, match="not finite"):
            ChannelStatistics(None).observe(torch.tensor([[1.0, bad]]))


def test_channel_statistics():
    first, second, third = (torch.randn(2, 5, 7) * 3 + 1 for _ in range(3))

    def middle(x: torch.Tensor) -> torch.Tensor:
        return (x.amin((0, 1)) + x.amax((0, 1))) / 2

    statistics = ChannelStatistics("midrange", rows=12)
    for batch in (first, second, third):
        statistics.observe(batch)
    shift = ((middle(first) + middle(second)) / 2 + middle(third)) / 2
    torch.testing.assert_close(statistics.shift, shift)
    rows = torch.cat([first, second, third]).flatten(0, 1)  # [N, C]
    torch.testing.assert_close(statistics.largest, (rows - shift).abs().amax(0))
    assert statistics.sample.shape == (12, 7)
    assert all((rows == row).all(-1).any() for row in statistics.sample)
    assert any((rows[-10:] == row).all(-1).any() for row in statistics.sample)

    statistics = ChannelStatistics("ema")
    average, weight = torch.zeros(7), 0.0
    for batch in (first, second, third):
        statistics.observe(batch)
        average, weight = 0.98 * average + 0.02 * batch.mean((0, 1)), 0.98 * weight + 0.02
        torch.testing.assert_close(statistics.shift, average / weight)
