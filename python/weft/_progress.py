"""Progress bars, where rich is installed and somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[], object]


@contextmanager
def progress(description: str, total: int | None, wanted: bool = True) -> Iterator[Advance]:
    """A bar on stderr while it lasts; what it gives is called once for every step."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        wanted = False
    if not wanted or not sys.stderr.isatty():
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
