"""What weft can do about the memory of the process."""

from __future__ import annotations

from . import _C


def reuse_memory(enabled: bool = True) -> bool:
    """Lets this process keep the memory that large CPU tensors free, for those that come next.

    By default glibc maps every block beyond 32 MiB (beyond less, in a young process) from the
    system and unmaps it when it is freed. Each new tensor then lies in fresh memory, whose first
    touch in 4 KiB pages runs at 3 to 5 GB/s where copying runs at 50: large elementwise operations
    spend most of their time in page faults, torch's own as much as weft's. With this on, freed
    memory stays with the process and is used again; a repeated ``x + x`` on 64 MiB of bfloat16 went
    from 22 to 4 ms on 2 cores of an EPYC 9004.

    It is a choice for the whole process, so it is off until asked for. What it costs:

    - The process keeps the most memory that it has used at once, until it ends or this is turned
      off; other processes cannot have it meanwhile. Fragmentation adds to that where sizes vary:
      with 500 MiB alive in tensors of 1 to 64 MiB, drawn at random and freed in random order, the
      process came to 1.8 GB, and to 1.1 GB without.
    - Growing a large block with ``realloc`` copies it, where before its pages were moved.

    The first few operations afterwards still touch fresh memory. Not reached are GPU memory and, in
    threads other than the main one, blocks of 64 MiB and more; these, too, if the process was
    started with ``MALLOC_ARENA_MAX=1`` in its environment.

    Args:
        enabled: True to keep freed memory. False goes back to glibc's behaviour and returns what is
            free now to the system; glibc's automatic threshold then stays at its upper end (blocks
            beyond 32 MiB are mapped), as glibc does not let it be reset.

    Returns:
        Whether the C library can do this. False, and nothing is changed, where it is not glibc
        (musl, macOS) or where another allocator stands in for glibc's (jemalloc, tcmalloc).

    See `mallopt(3) <https://man7.org/linux/man-pages/man3/mallopt.3.html>`_: this sets
    ``M_MMAP_MAX``, ``M_TRIM_THRESHOLD`` and ``M_TOP_PAD``.

    >>> weft.reuse_memory()
    True
    """
    return _C.reuse_memory(enabled)
