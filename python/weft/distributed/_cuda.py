"""A communicator's GPUs: a piece of memory on each rank's, which all the others reach."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._work import Work

if TYPE_CHECKING:
    from .communicator import Communicator

BLOCKS = 32
_LINE = 256  # bytes of a rank's word to the others
_CREDENTIALS = struct.Struct("3i")  # of a process: number, user, group


class Node:
    """This rank's GPU among those of its peers.

    Every rank makes one at the same time. What they have to say to each other goes over the
    communicator itself, with its deadlines; RuntimeError on all where one cannot."""

    def __init__(
        self, communicator: Communicator, device: torch.device, blocks: int, multicast: bool
    ) -> None:
        self._communicator = communicator
        self.device = device
        self._side: torch.cuda.Stream | None = None
        self._closed = False
        handle = communicator.handle
        with torch.cuda.device(device):
            try:
                addresses = self._exchange(
                    lambda: torch.ops.weft._comm_open(
                        handle, communicator.rank, communicator.world_size, communicator.timeout,
                        blocks, multicast,
                    )
                )  # fmt: skip
                theirs = self._share() if multicast else []
                fast = self._exchange(
                    lambda: str(torch.ops.weft._comm_connect(handle, " ".join(addresses), theirs))
                )
                torch.ops.weft._comm_agree(handle, all(answer == "True" for answer in fast))
                if multicast:
                    self._exchange(lambda: torch.ops.weft._comm_bind(handle) or "")
                self._try()
            except BaseException:
                self.close()
                raise

    def run(self, run: Callable[[], Tensor], async_op: bool) -> Tensor | Work:
        """A collective in the current stream or, asynchronously, in one of its own behind it."""
        if not async_op:
            return run()
        current = torch.cuda.current_stream(self.device)
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)
        self._side.wait_stream(current)
        work = Work([self.device])
        with torch.cuda.stream(self._side):
            result = run()
            result.record_stream(self._side)
            work._future.set_result(result)
        return work

    @property
    def failure(self) -> str:
        return "" if self._closed else torch.ops.weft._comm_failure(self._communicator.handle)

    def close(self) -> None:
        """Waits for what the GPU has to do, and for the peers to let go of its memory."""
        if self._closed:
            return
        self._closed = True
        handle = self._communicator.handle
        with suppress(RuntimeError):  # of a GPU that is lost, or was never there
            torch.ops.weft._comm_close(handle)
        with suppress(RuntimeError):  # where a peer is gone there is nobody to wait for
            self._communicator.all_gather(torch.zeros(1, dtype=torch.uint8))
        torch.ops.weft._comm_leave(handle)

    def _exchange(self, word: Callable[[], str]) -> list[str]:
        """What every rank has to say. Raises the errors of those that had one."""
        try:
            mine = "+" + word()
        except (RuntimeError, OSError) as error:
            mine = f"-{error}"
        line = torch.frombuffer(bytearray(mine.encode()[:_LINE].ljust(_LINE)), dtype=torch.uint8)
        lines = self._communicator.all_gather(line).view(-1, _LINE)
        words = [bytes(each.tolist()).decode(errors="replace").rstrip() for each in lines]
        failed = [f"{w[1:]} (rank {r})" for r, w in enumerate(words) if w[0] == "-"]
        if failed:
            raise RuntimeError("; ".join(failed))
        return [word[1:] for word in words]

    def _share(self) -> list[int]:
        """The other ranks' file descriptors, in order, as this process's: through sockets."""
        own: list[int] = []

        def describe() -> str:
            own.extend(torch.ops.weft._comm_descriptors(self._communicator.handle))
            return ""

        self._exchange(describe)
        try:
            with ExitStack() as opened:
                return self._trade(own, opened)
        finally:
            for descriptor in own:
                os.close(descriptor)

    def _trade(self, own: list[int], opened: ExitStack) -> list[int]:
        rank, world = self._communicator.rank, self._communicator.world_size

        def make() -> socket.socket:
            made = opened.enter_context(socket.socket(socket.AF_UNIX))
            made.settimeout(self._communicator.timeout)
            return made

        door = make()
        door.bind("")  # the system finds a name
        door.listen(world)
        names = self._exchange(lambda: door.getsockname().hex())

        def trade() -> str:
            links = {r: make() for r in range(world) if r != rank}
            for r, link in links.items():
                link.connect(bytes.fromhex(names[r]))
            for _ in links:
                guest = opened.enter_context(door.accept()[0])
                asks = guest.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                if _CREDENTIALS.unpack(asks)[1] == os.getuid():
                    socket.send_fds(guest, [b"weft"], own)
            for link in links.values():
                theirs.extend(socket.recv_fds(link, 4, 2)[1])
            return ""

        theirs: list[int] = []
        self._exchange(trade)
        return theirs

    def _try(self) -> None:
        """One collective, as there are machines whose GPUs say that they reach each other and then
        read zeros."""
        rank, world = self._communicator.rank, self._communicator.world_size

        def gather() -> str:
            x = torch.arange(4.0, device=self.device) + rank
            y = torch.ops.weft.all_gather(x, self._communicator.handle)
            want = torch.arange(4.0) + torch.arange(float(world))[:, None]
            if not torch.equal(y.cpu().view(world, 4), want):
                raise RuntimeError(
                    self.failure
                    or f"weft: {self.device} reads from its peers what they have not written"
                )
            return ""

        self._exchange(gather)
