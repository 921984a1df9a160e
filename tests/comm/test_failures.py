"""Whatever a rank does, the others' calls end, and say who it was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import weft
from weft import _C
from weft.distributed import Communicator, _bootstrap

from .ranks import PATIENCE, processes, result, run


def failure_of(call) -> str:
    with pytest.raises(RuntimeError) as raised:
        call()
    return str(raised.value)


SHARED = Path("/dev/shm")


def has_a_name(segment: str) -> bool:
    return (SHARED / segment.lstrip("/")).exists()


MISMATCHES = {
    "dtype": lambda c, odd: c.all_reduce(torch.ones(1000, dtype=torch.float16 if odd else None)),
    "size": lambda c, odd: c.all_reduce(torch.ones(500_000 if odd else 3)),
    "op": lambda c, odd: c.all_reduce(torch.ones(1000), "max" if odd else "sum"),
    "collective": lambda c, odd: (c.all_gather if odd else c.all_reduce)(torch.ones(8)),
    "product": lambda c, odd: weft.linear_all_reduce(
        torch.ones(40, 3), torch.ones(30 if odd else 20, 3), None, c
    ),
    "product or not": lambda c, odd: (
        c.all_reduce(torch.ones(40, 20))
        if odd
        else weft.linear_reduce_scatter(
            torch.ones(40 * c.world_size, 3), torch.ones(20, 3), None, c
        )
    ),
    "INT8 product": lambda c, odd: (
        weft.int8_linear_all_reduce(
            torch.ones(40, 3),
            weft.pack_int8_weight(torch.ones(20, 3, dtype=torch.int8)),
            torch.ones(20),
            None,
            c,
        )
        if odd
        else weft.linear_all_reduce(torch.ones(40, 3), torch.ones(20, 3), None, c)
    ),
    "gathered": lambda c, odd: weft.all_gather_linear(
        torch.ones(40 if odd else 20, 3), torch.ones(20, 3), None, c
    ),
    "compression": lambda c, odd: c.all_reduce_(torch.ones(8), compression="int8" if odd else None),
    "group size": lambda c, odd: c.all_reduce(
        torch.ones(8), compression="int8", group_size=128 if odd else 64
    ),
}


def mismatch(rank: int, world: int, what: str) -> str:
    communicator = Communicator(dist.group.WORLD)
    for _ in range(3):
        communicator.all_reduce(torch.ones(10))
    first = failure_of(lambda: MISMATCHES[what](communicator, rank == 1))
    assert (
        communicator.failure == first == failure_of(lambda: communicator.all_reduce(torch.ones(1)))
    )
    assert "failed" in repr(communicator)
    return first


@pytest.mark.parametrize("what", MISMATCHES)
def test_a_mismatch_is_an_error_on_every_rank(what: str):
    for rank, message in enumerate(run(mismatch, 3, what)):
        assert "call 4 of the communicator" in message
        other = re.search(
            r"rank (\d) calls (\w+)\((.*?)\), rank (\d) calls (\w+)\((.*?)\)", message
        )
        assert other, message
        assert 1 in (int(other[1]), rank) and int(other[4]) == rank
        assert other.group(2, 3) != other.group(5, 6)


def killed(rank: int, world: int, n: int) -> tuple[str, float, str]:
    communicator = Communicator(dist.group.WORLD, timeout=60)
    x = torch.ones(n)
    for _ in range(20):
        communicator.all_reduce(x)
    if rank == 1:
        # Inside a collective: the signal comes from a timer.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        while True:
            communicator.all_reduce(x)
    message = failure_of(lambda: [communicator.all_reduce(x) for _ in range(1_000_000)])
    return message, time.monotonic(), communicator._native.name


@pytest.mark.parametrize("n", [100, 3_000_000])
def test_a_killed_rank_is_named_at_once(n: int):
    with processes(killed, 3, n) as started:
        started[1][0].join()
        gone = time.monotonic()
        for rank in (0, 2):
            message, when, segment = result(started[rank][1])
            assert "weft.all_reduce: rank 1 has died" in message or (
                "has given up, because of rank 1" in message
            )
            assert f"seen from rank {rank} of 3" in message and "call " in message
            assert when - gone < 20  # and not the timeout of 60 s
            assert not has_a_name(segment)


def killed_in_a_product(rank: int, world: int, name: str) -> str:
    communicator = Communicator(dist.group.WORLD, timeout=60)
    x, weight = torch.ones(60, 64), torch.ones(4000, 64)
    call = getattr(weft, name)
    call(x, weight, None, communicator)
    if rank == 1:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    return failure_of(lambda: [call(x, weight, None, communicator) for _ in range(1_000_000)])


@pytest.mark.parametrize(
    "name", ["linear_all_reduce", "linear_reduce_scatter", "all_gather_linear"]
)
def test_a_rank_killed_in_a_product_is_named(name: str):
    with processes(killed_in_a_product, 3, name) as started:
        for rank in (0, 2):
            message = result(started[rank][1])
            assert f"weft.{name}: rank 1 has died" in message or (
                "has given up, because of rank 1" in message
            )


def stopped(rank: int, world: int, folder: str) -> str:
    dist.barrier()  # some may start slowly
    communicator = Communicator(dist.group.WORLD, timeout=2)
    x = torch.ones(1000)
    while True:
        try:
            communicator.all_reduce(x)
            Path(folder, str(rank)).touch()
        except RuntimeError as error:
            return str(error)


def test_a_stopped_rank_is_named_in_time_and_fails_when_it_goes_on(tmp_path: Path):
    with processes(stopped, 3, str(tmp_path)) as started:
        end = time.monotonic() + PATIENCE
        while len(list(tmp_path.iterdir())) < 3:  # until all are at work
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(started[1][0].pid, signal.SIGSTOP)
        for rank in (0, 2):
            message = result(started[rank][1])
            assert re.search(
                r"rank 1 did not come within 2 s|has given up, because of rank 1", message
            ), message
        os.kill(started[1][0].pid, signal.SIGCONT)
        assert re.search(r"rank [02] (has given up|has died)", result(started[1][1]))


def late(rank: int, world: int) -> tuple[str, float]:
    communicator = Communicator(dist.group.WORLD, timeout=1)
    begin = time.monotonic()
    if rank == 0:
        time.sleep(4)
    message = failure_of(lambda: communicator.reduce_scatter(torch.ones(4)))
    dist.barrier()
    return message, time.monotonic() - begin


def test_a_late_rank_is_named_and_told():
    (first, _), (second, _) = run(late, 2)
    assert "weft.reduce_scatter: rank 0 did not come within 1 s (call 1" in second
    assert "rank 1 has given up, because of rank 0" in first


def closes(rank: int, world: int) -> str:
    communicator = Communicator(dist.group.WORLD)
    communicator.all_reduce(torch.ones(100_000))
    if rank == 0:
        communicator.close()
    return failure_of(lambda: communicator.all_reduce(torch.ones(1)))


def test_a_closed_communicator_is_no_hang():
    first, second = run(closes, 2)
    assert "the communicator is closed" in first
    assert "rank 0 has closed its communicator (call 2" in second


def ends_early(rank: int, world: int) -> float:
    communicator = Communicator(dist.group.WORLD)
    if rank == 1:
        time.sleep(0.3)
    return communicator.all_reduce(torch.ones(1000)).sum().item()


def test_a_rank_that_did_its_part_may_go():
    for _ in range(3):
        assert run(ends_early, 2) == [2000.0, 2000.0]


def rebuilds(rank: int, world: int) -> float:
    communicator = Communicator(dist.group.WORLD, timeout=20)
    communicator.all_reduce(torch.ones(10))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    failure_of(lambda: [communicator.all_reduce(torch.ones(10)) for _ in range(10)])
    communicator.close()
    left = dist.new_group([0, 2], use_local_synchronization=True)
    with Communicator(left) as again:
        for _ in range(100):
            y = again.all_reduce(torch.tensor([float(rank)]))
        return y.item()


def test_the_ranks_that_are_left_make_another():
    with processes(rebuilds, 3) as started:
        assert [result(started[rank][1]) for rank in (0, 2)] == [2.0, 2.0]


def after_mismatch(rank: int, world: int) -> float:
    for _ in range(3):
        communicator = Communicator(dist.group.WORLD)
        failure_of(lambda c=communicator: c.all_reduce(torch.ones(rank + 1)))
        communicator.close()
    with Communicator(dist.group.WORLD) as communicator:
        return communicator.all_reduce(torch.ones(1)).item()


def test_a_group_makes_another_after_a_failure():
    assert run(after_mismatch, 2) == [2.0, 2.0]


def forks(rank: int, world: int) -> str:
    communicator = Communicator(dist.group.WORLD)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            communicator.all_reduce_(torch.ones(1))
        except RuntimeError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    message = os.read(read, 1000).decode()
    assert communicator.all_reduce(torch.ones(1)).item() == world  # the parent's goes on
    return message


def test_a_child_does_not_speak_for_its_parent():
    for message in run(forks, 2):
        assert "belongs to the process that was forked" in message


def forks_within(rank: int, world: int) -> list[str]:
    """A child of rank 0, made while another thread of it is in a call."""
    communicator = Communicator(dist.group.WORLD)
    said: list[str] = []
    if rank == 0:
        work = communicator.all_reduce(torch.ones(1), async_op=True)
        while communicator._worker.pending == 0:
            time.sleep(0.01)
        time.sleep(0.2)  # it waits for rank 1
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            for call in (
                lambda: communicator.all_reduce(torch.ones(1)),
                lambda: communicator.all_reduce_(torch.ones(1), async_op=True).wait(),
                lambda: torch.ops.weft.all_reduce(torch.ones(1), communicator.handle, "sum"),
            ):
                try:
                    call()
                except RuntimeError as error:
                    os.write(write, f"{error}\n".encode())
            os.write(write, f"{communicator.failure}\n".encode())
            communicator.close()
            del communicator
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            end = threading.Timer(30, os.kill, (child, signal.SIGKILL))
            end.start()
            said = pipe.read().splitlines()
        assert os.waitpid(child, 0)[1] == 0
        end.cancel()
    dist.barrier()
    if rank == 1:
        work = communicator.all_reduce(torch.ones(1), async_op=True)
    assert work.wait().item() == 2
    communicator.close()
    return said


def test_a_child_that_was_forked_during_a_call_does_not_hang():
    said, _ = run(forks_within, 2)
    assert len(said) == 4
    assert all("belongs to the process that was forked" in line for line in said)


def missing(rank: int, world: int) -> str:
    if rank == 1:
        time.sleep(4)
        return ""
    return failure_of(lambda: Communicator(dist.group.WORLD, timeout=1))


def test_a_rank_that_makes_none_is_missed():
    message, _ = run(missing, 2)
    assert re.search(r"Ranks 1 failed to pass monitoredBarrier in 1000 ms", message), message


def leaves_nothing(rank: int, world: int) -> None:
    communicator = Communicator(dist.group.WORLD)
    segment = communicator._native.name
    assert not has_a_name(segment)
    assert segment in Path("/proc/self/maps").read_text()
    communicator.all_reduce(torch.ones(1))
    communicator.close()
    assert segment not in Path("/proc/self/maps").read_text()


def test_nothing_is_left_in_shared_memory():
    run(leaves_nothing, 2)


def test_nothing_is_left_of_what_was_not_made():
    before = set(SHARED.glob("weft-comm-*"))
    with pytest.raises(RuntimeError, match="pieces of 1 bytes"):
        _C.Communicator("", 0, 2, 1.0, 2, [(1 << 40, False, 1)])
    made = set(SHARED.glob("weft-comm-*")) - before
    end = time.monotonic() + 20
    while any(path.exists() for path in made):  # other tests' have a name for an instant
        assert time.monotonic() < end
        time.sleep(0.05)


def breaks_off(rank: int, world: int) -> None:
    names = []

    def exchange(group, report, timeout):
        names.append(report.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return [report] * world

    _bootstrap._exchange = exchange
    with pytest.raises(KeyboardInterrupt) as broken:  # which keeps all that was on its way
        Communicator(dist.group.WORLD)
    assert broken.tb and names[1] and not has_a_name(names[1])


def test_nothing_is_left_of_an_introduction_that_broke_off():
    run(breaks_off, 1)


def bad_table(rank: int, world: int, table: object) -> str:
    path = Path(os.environ["WEFT_COMM_TABLE"])
    if table == "a folder" and rank == 0:
        path.mkdir()
    rows = table if table != "a folder" and rank == 0 else None
    return failure_of(lambda: Communicator(dist.group.WORLD, timeout=60, table=rows))


@pytest.mark.parametrize(
    "table, reason", [([("a", False, 1)], "incompatible"), ("a folder", "Is a directory")]
)
def test_a_bad_table_is_an_error_on_every_rank(table: object, reason: str):
    for message in run(bad_table, 2, table):
        assert reason in message and "(rank 0, on" in message


def breaks_within(rank: int, world: int) -> str:
    communicator = Communicator(dist.group.WORLD, timeout=60)
    if rank == 1:
        os.environ["WEFT_CPU_ISA"] = "abacus"  # looked at by the first kernel, in the midst

    def calls():  # rank 0 may have all it needs of rank 1 before that one breaks: not of the next
        for _ in range(2):
            communicator.all_reduce(torch.ones(1000))

    message = failure_of(calls)
    assert communicator.failure == message
    dist.barrier()
    return message


def test_whatever_breaks_within_a_call_ends_the_peers_calls_too():
    first, second = run(breaks_within, 2, start="spawn")
    assert "abacus" in second
    assert "rank 1 has given up" in first


def late_for_a_long_timeout(rank: int, world: int) -> float:
    with Communicator(dist.group.WORLD, timeout=1e10) as communicator:
        if rank == 0:
            time.sleep(0.5)
        return communicator.all_reduce(torch.ones(1)).item()


def test_a_timeout_of_centuries():
    assert run(late_for_a_long_timeout, 2) == [2.0, 2.0]


# A program that ends without a word: neither wait() nor close().
ENDS = """
import sys, time, torch, torch.distributed as dist
from weft.distributed import Communicator
rank = int(sys.argv[1])
store = dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
communicator = Communicator(dist.group.WORLD, timeout=60)
dist.destroy_process_group()
if rank == 1:
    time.sleep(1)
work = communicator.all_reduce(torch.ones(1), async_op=True)
if rank == 1:
    assert work.wait().item() == 2
"""


def test_a_program_that_ends_finishes_what_it_has_started(tmp_path: Path):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ENDS, str(rank), str(tmp_path / "store")],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=PATIENCE)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
