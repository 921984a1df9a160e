"""Collectives that go on beside the caller, on a thread that takes them in order."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from .. import _C


class Work:
    """A collective that has been started with ``async_op=True``."""

    def __init__(self, devices: list[int | str | torch.device] | None = None) -> None:
        self._future: torch.futures.Future[Any] = torch.futures.Future(devices=devices)

    def wait(self) -> Tensor:
        """Its result, once it is there. Raises what the collective raised."""
        return self._future.wait()

    def is_completed(self) -> bool:
        """Whether wait() would return, or raise, at once."""
        return self._future.done()

    def get_future(self) -> torch.futures.Future:
        """A future of the result, as communication hooks return them."""
        return self._future


class Worker:
    """The thread. It starts with the first collective, and `stop` ends it after the last; so does
    the end of the program, which waits for each of them no longer than its deadline."""

    def __init__(self, name: str, native: _C.Communicator) -> None:
        self._name, self._native = name, native
        self._process = os.getpid()
        self._queue: SimpleQueue[tuple[Callable[[], Tensor], Work] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self.pending = 0
        """Collectives that are not done yet."""

    def submit(self, run: Callable[[], Tensor]) -> Work:
        if os.getpid() != self._process:  # where there is no such thread
            raise RuntimeError(
                "weft: this communicator belongs to the process that was forked; make one in the "
                "child"
            )
        work = Work()
        with self._lock:
            if self._stopped:
                raise RuntimeError("weft: the communicator is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
                self._thread.start()
                _running.add(self)
            self._count(1)
            self._queue.put((run, work))
        return work

    @property
    def is_here(self) -> bool:
        return os.getpid() == self._process

    def is_current(self) -> bool:
        """Whether the caller is the thread: a callback of a work."""
        return self._thread is threading.current_thread()

    def stop(self) -> None:
        if os.getpid() != self._process:
            return
        with self._lock:  # behind all that is submitted, and nothing comes behind it
            self._stopped = True
            self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
        _running.discard(self)

    def _loop(self) -> None:
        while (item := self._queue.get()) is not None:
            run, work = item
            self._native.serve(True)
            try:
                result = run()
            except Exception as error:
                self._done()
                work._future.set_exception(error)
            else:
                self._done()
                work._future.set_result(result)

    def _done(self) -> None:
        self._native.serve(False)
        with self._lock:
            self._count(-1)

    def _count(self, more: int) -> None:
        self.pending += more
        self._native.queue(self.pending)


_running: set[Worker] = set()


@atexit.register  # a thread in a collective, out of reach of an interpreter that ends, would abort
def _stop_all() -> None:
    for worker in list(_running):
        worker.stop()
