"""Numbers as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Three significant digits in the unit that fits: ``2.31 ms``, ``10 µs``."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    unit, scale = next((u for u in units if seconds >= u[1]), units[-1])
    value = seconds / scale
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def rate(per_second: float) -> str:
    """In units of 10^9: GB/s, GFLOP/s."""
    return f"{per_second / 1e9:.3g}"
