"""Where ranks stand: the CPUs that they may run on, and the NUMA nodes that those belong to; the
GPUs that they use, and what is between those."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

NODES = Path("/sys/devices/system/node")


class Place(NamedTuple):
    """Of one rank, or of several together."""

    cpus: frozenset[int]
    nodes: frozenset[int]

    def __str__(self) -> str:
        across = f" of {len(self.nodes)} nodes" if len(self.nodes) > 1 else ""
        return f"{len(self.cpus)} CPUs{across}"


class Gpus(NamedTuple):
    """Of all ranks together."""

    name: str
    nvlink: bool  # between any two of them; else PCIe
    multicast: bool  # is to be used

    def __str__(self) -> str:
        link = "NVLink" if self.nvlink else "PCIe"
        return f"{self.name} by {link}{' with multicast' if self.multicast else ''}"


def here() -> Place:
    """Of this process."""
    cpus = frozenset(os.sched_getaffinity(0))
    return Place(cpus, _nodes_of(cpus))


def together(places: Iterable[Place]) -> Place:
    cpus, nodes = zip(*places, strict=True)
    return Place(frozenset().union(*cpus), frozenset().union(*nodes))


def _nodes_of(cpus: frozenset[int]) -> frozenset[int]:
    """None where the system tells of none."""
    lists = {int(file.parent.name[4:]): file.read_text() for file in NODES.glob("node*/cpulist")}
    return frozenset(node for node, text in lists.items() if cpus & _numbers(text))


def _numbers(text: str) -> set[int]:
    """As the kernel writes them: "0-3,8" is 0, 1, 2, 3, 8."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers
