"""Reports as text: tables with columns of equal width, and stacks of layers on one line."""

from __future__ import annotations

import re
from collections.abc import Sequence


def text_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines; columns beyond the first that have nothing in them are left out."""
    used = [i for i, name in enumerate(head) if i == 0 or any(row[i] for row in rows)]
    cells = [[row[i] for i in used] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]


def pattern(path: str) -> str:
    """A path without its numbers: the same for all layers of a stack."""
    return re.sub(r"\b\d+\b", "*", path)


def stack(paths: Sequence[str]) -> str:
    """One or more paths with the same pattern."""
    return (paths[0] or "(the model)") if len(paths) == 1 else f"{pattern(paths[0])}  ×{len(paths)}"
