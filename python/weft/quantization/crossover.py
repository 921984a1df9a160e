"""From how many rows on W8A8 beats W8A16 on this machine: measured once, kept in a file.

The file is ``$XDG_CACHE_HOME/weft/crossover.json`` (``~/.cache/weft/…``), with an entry for each
CPU, instruction-set level and number of threads. Nothing is measured unless `measure` is called,
or the command ``weft tune``; what was not measured is `DEFAULT`.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import _C, _doctor
from .._progress import progress
from .._text_table import text_table
from ..nn import HybridLinear

DEFAULT = 32
WORTH = 1.05  # W8A16 is the more exact: only for more than that it is given up
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SHAPE = (4096, 4096)  # N, K: more than fits into caches


def path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "weft" / "crossover.json"


def machine() -> str:
    """What an entry is for."""
    return f"{_doctor.cpu_model()}, {_C.isa_level()}, {torch.get_num_threads()} threads"


def stored() -> int:
    """The crossover measured here, or `DEFAULT`."""
    try:
        return int(_entries()[machine()]["crossover"])
    except (KeyError, TypeError, ValueError):
        return DEFAULT


def _entries() -> dict[str, Any]:
    """What the file holds; nothing where it is none, or none of ours."""
    try:
        found = json.loads(path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@torch.inference_mode()
def measure(
    dtype: torch.dtype = torch.bfloat16,
    rounds: int = 5,
    advance: Callable[[], object] = lambda: None,
) -> dict[int, float]:
    """Times both ways of a :class:`weft.nn.HybridLinear`, alternately, and stores the crossover.

    Args:
        dtype: of the input.
        rounds: for each number of rows.
        advance: called after each of `ROWS`.

    Returns:
        {rows: time of W8A16 / time of W8A8}, medians of the rounds.
    """
    N, K = SHAPE
    layer = HybridLinear(K, N, bias=False)
    ratios = {}
    for rows in ROWS:
        x = torch.randn(rows, K, dtype=dtype)
        found = []
        for _ in range(rounds + 1):
            layer.crossover = rows + 1
            weight_only = _seconds(layer, x)
            layer.crossover = 1
            found.append(weight_only / _seconds(layer, x))
        ratios[rows] = statistics.median(found[1:])
        advance()
    _store(crossover(ratios), ratios, dtype)
    return ratios


def crossover(ratios: dict[int, float]) -> int:
    """The number of rows from which on W8A8 is always faster by more than `WORTH`; beyond those
    measured if it never is."""
    slower = [rows for rows, ratio in ratios.items() if ratio <= WORTH]
    faster = [rows for rows in ratios if rows > max(slower, default=0)]
    return min(faster, default=2 * max(ratios))


def _seconds(layer: HybridLinear, x: Tensor) -> float:
    start = time.perf_counter()
    layer(x)
    return time.perf_counter() - start


def _store(rows: int, ratios: dict[int, float], dtype: torch.dtype) -> None:
    file = path()
    known = _entries()
    known[machine()] = {
        "crossover": rows,
        "dtype": str(dtype).removeprefix("torch."),
        "weight_only_to_w8a8": {str(r): round(ratio, 3) for r, ratio in ratios.items()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(known, indent=2) + "\n")
    aside.replace(file)  # whole or not at all


def main() -> int:
    """``weft tune``."""
    with progress("W8A8 and W8A16, alternately", len(ROWS)) as advance:
        ratios = measure(advance=advance)
    rows = [(str(r), f"{ratio:.2f}×") for r, ratio in ratios.items()]
    print("\n".join(text_table(("rows", "W8A8 is faster by"), rows)))
    print(f"{machine()}: W8A8 from {stored()} rows on, kept in {path()}")
    return 0
