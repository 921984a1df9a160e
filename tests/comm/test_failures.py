"""Whatever a rank does, the others' calls end, and say who it was."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from weft.distributed import Communicator

from .ranks import processes, result, run


def failure_of(call) -> str:
    with pytest.raises(RuntimeError) as raised:
        call()
    return str(raised.value)


def named_segments() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("weft-comm-*")}


MISMATCHES = {
    "dtype": lambda c, odd: c.all_reduce(torch.ones(1000, dtype=torch.float16 if odd else None)),
    "size": lambda c, odd: c.all_reduce(torch.ones(500_000 if odd else 3)),
    "op": lambda c, odd: c.all_reduce(torch.ones(1000), "max" if odd else "sum"),
    "collective": lambda c, odd: (c.all_gather if odd else c.all_reduce)(torch.ones(8)),
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


def killed(rank: int, world: int, n: int) -> tuple[str, float]:
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
    return message, time.monotonic()


@pytest.mark.parametrize("n", [100, 3_000_000])
def test_a_killed_rank_is_named_at_once(n: int):
    before = named_segments()
    with processes(killed, 3, n) as started:
        started[1][0].join()
        gone = time.monotonic()
        for rank in (0, 2):
            message, when = result(started[rank][1])
            assert "weft.all_reduce: rank 1 has died" in message or (
                "has given up, because of rank 1" in message
            )
            assert f"seen from rank {rank} of 3" in message and "call " in message
            assert when - gone < 20  # and not the timeout of 60 s
    assert named_segments() <= before


def stopped(rank: int, world: int) -> str:
    communicator = Communicator(dist.group.WORLD, timeout=2)
    x = torch.ones(1000)
    while True:
        try:
            communicator.all_reduce(x)
        except RuntimeError as error:
            return str(error)


def test_a_stopped_rank_is_named_in_time_and_fails_when_it_goes_on():
    with processes(stopped, 3) as started:
        time.sleep(4)  # they are at work by now, or will find rank 1 missing at the start
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


def missing(rank: int, world: int) -> str:
    if rank == 1:
        time.sleep(4)
        return ""
    return failure_of(lambda: Communicator(dist.group.WORLD, timeout=1))


def test_a_rank_that_makes_none_is_missed():
    message, _ = run(missing, 2)
    assert "1" in message and "monitoredBarrier" in message


def leaves_no_name(rank: int, world: int) -> list[str]:
    before = named_segments()
    with Communicator(dist.group.WORLD) as communicator:
        dist.barrier()
        names = named_segments() - before
        communicator.all_reduce(torch.ones(1))
    return sorted(names)


def test_nothing_is_left_in_shared_memory():
    assert run(leaves_no_name, 2) == [[], []]
