"""Where weft leaves its kernels for plain PyTorch: said once in the log, and counted."""

from __future__ import annotations

import logging
from collections import Counter

import torch

_log = logging.getLogger("weft")
_counts: Counter[str] = Counter()


def note(op: str, reason: str) -> None:
    """Records that `op` runs in plain PyTorch because of `reason`, and warns the first time."""
    if torch.compiler.is_dynamo_compiling():
        return
    key = f"{op}: {reason}"
    if key not in _counts:
        _log.warning("weft.%s runs in plain PyTorch: %s", op, reason)
    _counts[key] += 1


def fallbacks() -> dict[str, int]:
    """How often this process left weft's kernels for plain PyTorch, as {"op: reason": calls}.

    Each reason is also logged once, to the logger "weft" at level WARNING. What torch.compile
    traces is not counted.

    >>> weft.fallbacks()
    {'norm_forward: gradients of torch.func': 2}
    """
    return dict(_counts)
