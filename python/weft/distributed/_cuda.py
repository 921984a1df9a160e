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

from . import _table
from ._topology import Gpus
from ._work import Work

if TYPE_CHECKING:
    from .communicator import Communicator

BLOCKS = 32
_LINE = 1024  # bytes of a rank's word to the others
_CREDENTIALS = struct.Struct("3i")  # of a process: number, user, group


class Node:
    """This rank's GPU among those of its peers.

    Every rank makes one at the same time. What they have to say to each other goes over the
    communicator itself, with its deadlines; RuntimeError on all where one cannot."""

    def __init__(
        self,
        communicator: Communicator,
        device: torch.device,
        blocks: int,
        multicast: bool,
        table: _table.CudaTable | None = None,
    ) -> None:
        self._communicator = communicator
        self.device = device
        self._side: torch.cuda.Stream | None = None
        self._closed = False
        self._reason = ""  # of a failure, once it is closed
        handle = communicator.handle
        self._agree(lambda: f"blocks={blocks}, multicast={multicast}")
        with torch.cuda.device(device), ExitStack() as received:
            try:
                addresses = self._exchange(
                    lambda: torch.ops.weft._comm_open(
                        handle, communicator.rank, communicator.world_size, communicator.timeout,
                        blocks, multicast,
                    )
                )  # fmt: skip
                theirs = self._share(received) if multicast else []
                fast = self._exchange(
                    lambda: str(torch.ops.weft._comm_connect(handle, " ".join(addresses), theirs))
                )
                names = self._exchange(lambda: torch.cuda.get_device_name(device))
                nvlink = all(answer == "True" for answer in fast)
                self.gpus = Gpus(" and ".join(sorted(set(names))), nvlink, multicast)
                sizes, algorithms = self._table(table)
                torch.ops.weft._comm_agree(handle, nvlink, sizes, algorithms)
                if multicast:
                    self._exchange(lambda: torch.ops.weft._comm_bind(handle) or "")
                self._try()
            except BaseException:
                self.close()
                raise

    def run(self, x: Tensor, run: Callable[[], Tensor], async_op: bool) -> Tensor | Work:
        """A collective of x in the current stream or, asynchronously, in a stream behind it."""
        if not async_op:
            return run()
        current = torch.cuda.current_stream(self.device)
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)
        self._side.wait_stream(current)
        work = Work([self.device])
        with torch.cuda.stream(self._side):
            x.record_stream(self._side)  # who called may let go of it at once
            work._future.set_result(run())
        return work

    @property
    def failure(self) -> str:
        if self._closed:
            return self._reason
        return torch.ops.weft._comm_failure(self._communicator.handle)

    def close(self) -> None:
        """Waits for what the GPU has to do, and for the peers to let go of its memory."""
        if self._closed:
            return
        self._closed = True
        handle = self._communicator.handle
        with suppress(RuntimeError), torch.cuda.device(self.device):
            torch.ops.weft._comm_close(handle)  # of a GPU that is lost, or was never there
        with suppress(RuntimeError):
            self._reason = torch.ops.weft._comm_failure(handle)
        with suppress(RuntimeError):  # where a peer is gone there is nobody to wait for
            self._communicator.all_gather(torch.zeros(1, dtype=torch.uint8))
        torch.ops.weft._comm_leave(handle)

    def _table(self, given: _table.CudaTable | None) -> tuple[list[int], str]:
        """Sizes and algorithms of the table that all ranks were given, or else find."""
        rows: list[tuple[int, str]] = []

        def ask() -> str:
            world = self._communicator.world_size
            found = _table.load_cuda(world, self.gpus) if given is None else given
            try:
                rows.extend((int(size), str(algorithm)) for size, algorithm in found)
            except (TypeError, ValueError):
                raise RuntimeError(
                    f"weft: connect_cuda: table is {given}, expected rows of (bytes, algorithm)"
                ) from None
            return f"table={rows}"

        self._agree(ask)
        return [size for size, _ in rows], " ".join(algorithm for _, algorithm in rows)

    def _agree(self, word: Callable[[], str]) -> None:
        """Every rank asks for the same, or RuntimeError on all."""
        asked = self._exchange(word)
        for r, other in enumerate(asked):
            if other != asked[0]:
                raise RuntimeError(
                    f"weft: connect_cuda: rank {r} asks for {other}, rank 0 for {asked[0]}"
                )

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

    def _share(self, received: ExitStack) -> list[int]:
        """The other ranks' file descriptors, in order, as this process's: through sockets.
        `received` closes them."""
        own: list[int] = []

        def describe() -> str:
            own.extend(torch.ops.weft._comm_descriptors(self._communicator.handle))
            return ""

        self._exchange(describe)
        try:
            with ExitStack() as opened:
                return self._trade(own, opened, received)
        finally:
            for descriptor in own:
                os.close(descriptor)

    def _trade(self, own: list[int], opened: ExitStack, received: ExitStack) -> list[int]:
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
                for descriptor in socket.recv_fds(link, 4, 2)[1]:
                    received.callback(os.close, descriptor)
                    theirs.append(descriptor)
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
