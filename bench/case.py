"""What a benchmark measures: a case, the data it must move, and how a contender is offered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from bench.goals import Goal

Output = Literal["fresh", "out", "inplace"]
"""Where a call leaves its result: in new tensors, in the caller's, or in its own inputs."""

Memory = Literal["fresh", "reused", "out=", "in place"]
"""The memory of a row. A fresh-output case gives a row with new pages for every output (fresh) and
one with memory kept by the allocator (reused); for the others the allocator does not matter."""

Roof = Literal["copy", "read", "fp32", "bf16", "int8"]
"""What bounds a case, by its name in `bench.limits.Limits`: bytes per second or operations."""

ARITHMETIC = ("fp32", "bf16", "int8")

Inputs = dict[str, torch.Tensor]
"""The tensors of one call by name; a case has several such sets and rotates over them."""

SHORT_DTYPE = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Traffic:
    """The bytes a perfect kernel reads and writes: every input once, every output once."""

    read: int
    write: int

    @property
    def total(self) -> int:
        return self.read + self.write


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of one operation. A family adds the fields that its operations need.

    ``cold`` cases rotate over more data than the last-level cache holds and are timed call by
    call; the others stay in cache and are timed in batches, because one call is too short.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    output: Output = "fresh"
    cold: bool = True
    goals: tuple[Goal, ...] = ()
    device: str = "cpu"
    """`cpu` or `cuda`."""

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.op}/{shape}/{SHORT_DTYPE[self.dtype]}/{self.output}"

    @property
    def trains(self) -> bool:
        """Whether calls compute gradients; the others run in inference mode."""
        return False

    @property
    def roof(self) -> Roof | None:
        """What bounds it; None where nothing that is measured does, as the data stays in cache."""
        return "copy" if self.cold else None

    @property
    def work(self) -> int:
        """What its roof counts: operations, or bytes."""
        return self.flops if self.roof in ARITHMETIC else self.traffic.total

    @property
    def traffic(self) -> Traffic:
        raise NotImplementedError

    @property
    def flops(self) -> int:
        raise NotImplementedError


@dataclass(frozen=True)
class Bound:
    """A contender with one set of inputs bound to it.

    ``run`` is what is timed. ``outputs`` turns what ``run`` returned into the tensors to check.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Offer:
    """One way of computing a case, or the reason why a peer has none.

    A peer may make several offers (variants); a calibration keeps the fastest, so that every peer
    is shown at its best. ``build`` does the expensive part (compiling, creating a session) and
    returns the function that binds inputs. An offer that does not compete is a yardstick (such as
    the cost of calling any op at all): measured, but neither checked nor ranked.
    """

    peer: str
    variant: str = ""
    build: Callable[[], Callable[[Inputs], Bound]] | None = None
    reason: str = ""
    competes: bool = True


class Family(Protocol):
    """A family of operations: what ``bench/<family>/__init__.py`` provides."""

    def cases(self, device: str) -> Sequence[Case]:
        """What is measured on the device, `cpu` or `cuda`."""

    def sweep(self, device: str) -> Sequence[Case]:
        """Cases of growing size, for a plot with lines; empty where a family has none."""

    def shrink(self, case: Any) -> Case:
        """The case at a size for a smoke test: it shows that all runs, not how fast."""

    def inputs(self, case: Any, seed: int) -> Inputs: ...

    def offers(self, case: Any, threads: int) -> Sequence[Offer]: ...

    def truth(self, case: Any, inputs: Inputs) -> Sequence[torch.Tensor]:
        """What every contender must return, from float64 arithmetic."""

    def compare(self, case: Any, got: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> str:
        """What is wrong with a result, in words; empty if nothing is."""
