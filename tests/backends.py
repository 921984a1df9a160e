"""Where the kernels of this machine run: the table that every test of a kernel goes through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from weft import _C


@dataclass(frozen=True)
class Backend:
    """Where kernels run: a torch device and, on the CPU, an instruction set level."""

    name: str
    device: str = "cpu"
    isa: str | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        before = _C.isa_level()
        if self.isa is not None:
            _C.force_isa(self.isa)
        try:
            yield
        finally:
            _C.force_isa(before)


def cpu_levels() -> list[Backend]:
    return [Backend(f"cpu-{isa}", isa=isa) for isa, here in _C.isa_levels().items() if here]


def cuda() -> list[Backend]:
    built = torch._C._dispatch_has_kernel_for_dispatch_key("weft::norm_forward", "CUDA")
    return [Backend("cuda", "cuda")] if built and torch.cuda.is_available() else []


BACKENDS = [*cpu_levels(), *cuda()]  # a new backend adds itself to this line
