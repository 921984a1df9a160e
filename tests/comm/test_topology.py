"""Where ranks stand, by trees such as the kernel shows, and what follows from it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch.distributed as dist

from weft import _C
from weft.distributed import Communicator, _topology
from weft.distributed._topology import Place

from .ranks import run

SLOTS = 2 << 20  # bytes that a rank allocates


def tree(folder: Path, *lists: str) -> Path:
    """Nodes with these CPUs."""
    for node, cpus in enumerate(lists):
        (folder / f"node{node}").mkdir()
        (folder / f"node{node}" / "cpulist").write_text(cpus + "\n")
    return folder


@pytest.mark.parametrize(
    "lists, cpus, nodes, text",
    [
        (["0-3,8-11", "4-7,12-15"], {0, 9}, {0}, "2 CPUs"),
        (["0-3,8-11", "4-7,12-15"], {3, 4}, {0, 1}, "2 CPUs of 2 nodes"),
        (["0-3,8-11", "4-7,12-15"], {15}, {1}, "1 CPUs"),
        (["0", "1", ""], {0, 1}, {0, 1}, "2 CPUs of 2 nodes"),  # the last has memory alone
        ([], {0, 1}, set(), "2 CPUs"),
    ],
)
def test_nodes_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: list, cpus: set, nodes: set, text: str
):
    monkeypatch.setattr(_topology, "NODES", tree(tmp_path, *lists))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cpus)
    place = _topology.here()
    assert place == (cpus, nodes) and str(place) == text
    other = Place(frozenset({99}), frozenset({7}))
    assert _topology.together([place, other]) == (cpus | {99}, nodes | {7})


def test_this_machine():
    place = _topology.here()
    assert place.cpus == os.sched_getaffinity(0)
    if _topology.NODES.exists():
        assert place.nodes


def rows_of(rank: int, world: int, folder: Path) -> str:
    """Why the rows that were found are refused: they say which they are."""
    _topology.NODES = folder
    os.sched_getaffinity = lambda process: {2 * rank, 2 * rank + 1}
    rows = {"2 ranks on 4 CPUs": [[1, False, 1]], "2 ranks on 4 CPUs of 2 nodes": [[1, False, 2]]}
    Path(os.environ["WEFT_COMM_TABLE"]).write_text(json.dumps(rows))
    dist.barrier()
    with pytest.raises(RuntimeError) as refused:
        Communicator(dist.group.WORLD)
    return str(refused.value)


@pytest.mark.parametrize("lists, piece", [(["0-3"], 1), (["0-1", "2-3"], 2), (["0,2", "1,3"], 2)])
def test_rows_are_those_of_as_many_nodes(tmp_path: Path, lists: list, piece: int):
    for message in run(rows_of, 2, tree(tmp_path, *lists)):
        assert f"pieces of {piece} bytes" in message


def test_every_rank_allocates_its_own_slots():
    """Where it runs: the system takes the pages from the node of who asks for them."""
    ranks = []
    for r in range(3):
        name = ranks[0].name if ranks else ""
        ranks.append(_C.Communicator(name, r, 3, 1.0, 3, []))
        there = os.stat(f"/dev/shm{ranks[0].name}").st_blocks * 512
        assert SLOTS * (r + 1) <= there < SLOTS * (r + 2)
    for rank in ranks:
        rank.close()
