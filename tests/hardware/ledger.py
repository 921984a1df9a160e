"""Which CUDA sources have passed on a real GPU, in the state that they are in.

The simulator says that a kernel is right as far as it models the machine; only a GPU says that it
is. The ledger keeps the hash of every source at which the whole suite last passed on one, and
which GPU, driver and torch that was. Nothing but `record`, after such a pass, writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEDGER = Path(__file__).with_name("ledger.json")

# Of csrc: what the CUDA library is compiled from is all but this.
NOT_CUDA = (
    "gpu/sim/", "cpu/", "python/", "torch/threads.cpp", "torch/libtorch_cuda_stub.cpp",
    "library.cpp", "library_simulator",
)  # fmt: skip
SUFFIXES = (".h", ".cuh", ".cu", ".cpp")


def sources(csrc: Path = ROOT / "csrc") -> dict[str, str]:
    """The SHA-256 of every CUDA source, by its path within csrc."""
    return {
        name: hashlib.sha256((csrc / name).read_bytes()).hexdigest()
        for name in sorted(_names(csrc))
    }


def _names(csrc: Path) -> Iterator[str]:
    for path in csrc.rglob("*"):
        name = path.relative_to(csrc).as_posix()
        other = name.startswith(NOT_CUDA) or "/cpu/" in name
        if path.suffix in SUFFIXES and not other:
            yield name


@dataclass(frozen=True)
class Pass:
    """One pass of the whole suite."""

    gpu: str
    capability: str
    driver: str
    torch: str
    date: str
    commit: str
    passed: int
    skipped: int
    sanitized: int
    """Tests that have passed under compute-sanitizer, too; 0: it was not there."""


@dataclass
class Ledger:
    """Passes, and for every source the hash at which it was last part of one, and of which."""

    passes: list[Pass] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    pass_of: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = LEDGER) -> Ledger:
        if not path.exists():
            return cls()
        data = json.loads(path.read_text())
        return cls([Pass(**p) for p in data["passes"]], data["hashes"], data["pass_of"])

    def write(self, path: Path = LEDGER) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def record(self, new: Pass, current: Mapping[str, str]) -> None:
        """All that was compiled has passed; sources that are gone leave the ledger."""
        self.passes.append(new)
        self.hashes = dict(current)
        self.pass_of = dict.fromkeys(current, len(self.passes) - 1)

    def state(self, name: str, now: str) -> str:
        """`passed`, `changed` since it did, or `never`."""
        if name not in self.hashes:
            return "never"
        return "passed" if self.hashes[name] == now else "changed"
