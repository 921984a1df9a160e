"""Runs a function in several processes of this host, as torchrun would."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 120.0
"""Seconds that a test's processes have, on a machine that does other things as well."""


@contextmanager
def processes(
    function: Callable[..., Any], world: int, *args: Any, start: str = "forkserver"
) -> Iterator[list[tuple[Any, Connection]]]:
    """Processes that run ``function(rank, world, *args)`` in a gloo group of ``world``, each with
    the pipe that its result comes through. They are killed at the end."""
    context = multiprocessing.get_context(start)
    if start == "forkserver":  # imports once, then forks: a process starts in no time
        context.set_forkserver_preload(
            ["torch", "weft.distributed.fsdp", "weft.distributed.styles"]
        )
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        started = []
        for rank in range(world):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_rank, args=(theirs, function, rank, world, store, args), daemon=True
            )
            process.start()
            theirs.close()
            started.append((process, mine))
        try:
            yield started
        finally:
            for process, _ in started:
                process.kill()
            for process, _ in started:
                process.join()


def result(connection: Connection, patience: float = PATIENCE) -> Any:
    """What one rank returned. Fails with its traceback, or where it is late or has died."""
    if not connection.poll(patience):
        raise AssertionError(f"a rank did not end within {patience} s")
    try:
        error, value = pickle.loads(connection.recv_bytes())
    except EOFError:
        raise AssertionError("a rank died") from None
    if error:
        raise AssertionError(error)
    return value


def run(function: Callable[..., Any], world: int, *args: Any, start: str = "forkserver") -> list:
    """What ``function(rank, world, *args)`` returns on each rank."""
    with processes(function, world, *args, start=start) as started:
        end = time.monotonic() + PATIENCE
        return [result(c, max(end - time.monotonic(), 0.1)) for _, c in started]


def _rank(
    connection: Connection, function: Callable[..., Any], rank: int, world: int, store: str, args
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["WEFT_COMM_TABLE"] = f"{store}.json"  # none: not what this machine was tuned to
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(store, world), rank=rank, world_size=world,
            timeout=timedelta(seconds=PATIENCE),
        )  # fmt: skip
        value = function(rank, world, *args)
        message = ("", value)
    except BaseException:
        message = (f"rank {rank}: {traceback.format_exc()}", None)
    # By plain pickle: multiprocessing's own would leave tensors to be fetched from this process.
    connection.send_bytes(pickle.dumps(message))
    connection.close()
    os._exit(0)  # a gloo group whose peers are gone may not end in peace
