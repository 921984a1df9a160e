"""How the ranks' GPUs come to know each other, without a GPU: what they say over the communicator
and the sockets is real, and the GPU is a file whose descriptor goes around."""

from __future__ import annotations

import os
import tempfile
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist

from weft.distributed import Communicator, _table
from weft.distributed._cuda import Node
from weft.distributed._topology import Gpus

from .ranks import run


class Driver:
    """Stands in for ``torch.ops.weft._comm_*`` in this process."""

    def __init__(self, rank: int, broken: str = "") -> None:
        self.rank, self.broken = rank, broken
        self.calls: list[str] = []
        self.files = [tempfile.TemporaryFile() for _ in range(2 if rank == 0 else 1)]
        self.seen: list[bytes] = []
        for i, file in enumerate(self.files):
            file.write(f"{rank} {i}".encode())
            file.flush()
        torch.cuda.device = lambda device: nullcontext()
        torch.cuda.get_device_name = lambda device: f"Loom {100 + rank % 2}"
        self._library = torch.library.Library("weft", "FRAGMENT")
        for schema, function in (
            ("open(int c, int r, int w, float t, int b, bool m) -> str", self.open),
            ("descriptors(int c) -> int[]", self.descriptors),
            ("connect(int c, str addresses, int[] descriptors) -> bool", self.connect),
            ("bind(int c) -> ()", lambda c: self.note("bind")),
            ("agree(int c, bool nvlink, int[] bytes, str algorithms) -> ()", self.agree),
            ("failure(int c) -> str", lambda c: "what the GPU says"),
            ("close(int c) -> ()", lambda c: self.note("close")),
            ("leave(int c) -> ()", lambda c: self.note("leave")),
        ):
            name = schema.partition("(")[0]
            self._library.define(f"_comm_{schema}")
            self._library.impl(f"_comm_{name}", function, "CompositeImplicitAutograd")

    def note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.broken:
            raise RuntimeError(f"{call} does not work")

    def open(self, c, rank, world, timeout, blocks, multicast) -> str:
        self.note("open")
        return f"memory{rank} gpu{rank}"

    def descriptors(self, c) -> list[int]:
        return [os.dup(file.fileno()) for file in self.files]

    def agree(self, c, nvlink, sizes, algorithms) -> None:
        self.note(f"agree {nvlink} {sizes} {algorithms}")

    def connect(self, c, addresses, descriptors) -> bool:
        self.note(f"connect {addresses}")
        self.seen = [os.pread(descriptor, 9, 0) for descriptor in descriptors]
        return self.rank != 1  # as if its link were slow


def check_connect(rank: int, world: int, multicast: bool) -> None:
    driver = Driver(rank)
    before = len(os.listdir("/proc/self/fd"))
    with Communicator(dist.group.WORLD) as communicator:
        node = Node(communicator, torch.device("cpu"), 4, multicast)
        addresses = " ".join(f"memory{r} gpu{r}" for r in range(world))
        bind = ["bind"] if multicast else []
        assert driver.calls == ["open", f"connect {addresses}", "agree False [] ", *bind]
        others = [f"{r} {i}".encode() for r in range(world) for i in range(2 if r == 0 else 1)
                  if r != rank]  # fmt: skip
        assert driver.seen == (others if multicast else [])
        assert node.failure == "what the GPU says"
        node.close()
        node.close()
        assert driver.calls[-2:] == ["close", "leave"] and driver.calls.count("close") == 1
        assert node.failure == "what the GPU says"  # it outlasts the GPU's half
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        assert (communicator.all_reduce(torch.ones(3)) == world).all()


@pytest.mark.parametrize("multicast", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_find_each_other(world: int, multicast: bool):
    run(check_connect, world, multicast)


def check_broken(rank: int, world: int, step: str) -> None:
    driver = Driver(rank, step if rank == 1 else "")
    with Communicator(dist.group.WORLD) as communicator:
        with pytest.raises(RuntimeError, match=rf"^{step} does not work \(rank 1\)$"):
            Node(communicator, torch.device("cpu"), 4, True)
        assert driver.calls[-1] == "leave"
        assert (communicator.all_reduce(torch.ones(3)) == world).all()


def check_different(rank: int, world: int) -> None:
    driver = Driver(rank)
    with Communicator(dist.group.WORLD) as communicator:
        for blocks, multicast in ((4 + rank, False), (4, rank == 1)):
            with pytest.raises(RuntimeError, match=r"rank 1 asks for .*, rank 0 for blocks=4, mu"):
                Node(communicator, torch.device("cpu"), blocks, multicast)
        assert driver.calls == []
        assert (communicator.all_reduce(torch.ones(3)) == world).all()


def test_ranks_that_ask_for_different_things():
    run(check_different, 2)


ROWS = [(4096, "one_shot"), (1 << 40, "two_shot")]
AGREED = "agree False [4096, 1099511627776] one_shot two_shot"


def check_table(rank: int, world: int) -> None:
    driver = Driver(rank)
    with Communicator(dist.group.WORLD) as communicator:

        def connect(**options: object) -> str:
            Node(communicator, torch.device("cpu"), 4, False, **options).close()
            return next(call for call in driver.calls if call.startswith("agree"))

        assert connect(table=ROWS) == AGREED
        driver.calls.clear()
        if rank == 0:
            _table.save(world, Gpus("Loom 100 and Loom 101", False, False), ROWS)
            _table.save(world, Gpus("Loom 100 and Loom 101", False, True), ROWS[:1])
            _table.save(world + 1, Gpus("Loom 100 and Loom 101", False, False), ROWS[1:])
        dist.barrier()
        assert connect() == AGREED  # as the file has it for such GPUs
        driver.calls.clear()
        assert connect(table=[]) == "agree False [] "
        driver.calls.clear()
        message = (
            r"rank 1 asks for table=\[\(8, 'two_shot'\)\], rank 0 for table=\[\(8, 'one_shot'\)\]"
        )
        with pytest.raises(RuntimeError, match=message):
            connect(table=[(8, "two_shot" if rank else "one_shot")])
        with pytest.raises(RuntimeError, match=r"table is .*, expected rows of .* \(rank 1\)$"):
            connect(table=[("a" if rank else 8, "one_shot")])
        if rank == 0:
            _table.path().write_text("[]")
        dist.barrier()
        with pytest.raises(RuntimeError, match="is no table of algorithms"):
            connect()
        assert driver.calls[-1] == "leave" and not any("agree" in call for call in driver.calls)
        assert (communicator.all_reduce(torch.ones(3)) == world).all()


def test_all_ranks_have_one_table():
    run(check_table, 2)


@pytest.mark.parametrize("step", ["open", "bind"])
def test_one_that_cannot_is_heard_by_all(step: str):
    run(check_broken, 2, step)
