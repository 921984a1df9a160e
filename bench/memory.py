"""The memory that outputs come from.

A 32 MiB output lies at the edge of glibc's mmap threshold: the same call finds new pages one time
and kept ones the next, a factor of four apart. So the state is set, not left to chance:

fresh   free memory goes back to the system before every timed call (``malloc_trim``), so that
        every large output touches new pages, as in a program whose allocations vary in size.
reused  ``weft.reuse_memory()``: the allocator keeps what is freed. It holds for the process, so
        weft and its peers all profit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import weft

Mode = Literal["fresh", "reused"]


class MemoryModeUnavailable(RuntimeError):
    """The C library cannot do what the mode asks for."""


@contextmanager
def memory_mode(mode: Mode) -> Iterator[Callable[[], object]]:
    """Sets the mode and yields what to run before every timed call."""
    if mode == "fresh":
        yield give_back_free_memory
        return
    if not weft.reuse_memory(True):
        raise MemoryModeUnavailable("weft.reuse_memory() has no effect on this C library")
    try:
        yield lambda: None
    finally:
        weft.reuse_memory(False)


def give_back_free_memory() -> None:
    """Returns free heap memory to the system; does nothing where the C library has no such call."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def can_give_back() -> bool:
    return _malloc_trim is not None


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
