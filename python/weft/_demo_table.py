"""The demonstration's tables."""

from __future__ import annotations

from typing import Any


def table(console: Any, title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=None)
    for i, name in enumerate(head):
        made.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        made.add_row(*row)
    console.print()
    console.print(made)
