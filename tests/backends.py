"""Where the kernels of this machine run: the table that every test of a kernel goes through."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch

from weft import _C
from weft.ops import _attention_dispatch

_BUILD = Path(__file__).resolve().parents[1] / "build"
SIMULATED_OPS = (
    Path(os.environ.get("WEFT_SIMULATOR_DIR", _BUILD / "simulator")) / "libweft_simulated_ops.so"
)

FAMILIES = ("norm", "attention", "int8")  # with kernels on CUDA


@dataclass(frozen=True)
class Backend:
    """Where kernels run: a torch device and, on the CPU, an instruction set level."""

    name: str
    device: str = "cpu"
    isa: str | None = None
    float64: bool = True  # as the CPU has it, for checking gradients
    families: tuple[str, ...] | None = None  # whose kernels it has; None: all of them
    reads_indices: bool = True  # refuses index tensors for what they hold, as a host can

    @property
    def dtypes(self) -> str:
        """Those that there are kernels for, as messages name them."""
        return "float32, bfloat16" + (
            ", float16 or float64" if self.float64 else " or float16 (on CUDA)"
        )

    def runs(self, family: str, file: str, test: str, parameters: dict[str, Any]) -> bool:
        """Whether a test is worth its time here."""
        return not self.reads_indices or file != "test_unchecked"

    def orders(self) -> Iterator[None]:
        """Again and again, in other orders of threads where they can be chosen."""
        for _ in range(8):
            yield

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


def has_cuda() -> bool:
    """Is there a GPU here, and weft with CUDA?"""
    built = torch._C._dispatch_has_kernel_for_dispatch_key("weft::norm_forward", "CUDA")
    return built and torch.cuda.is_available()


NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_cuda(), reason="no GPU, or weft without CUDA"),
]
"""Marks of tests that take no backend and need a GPU."""


def captured(call: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A call as a CUDA graph, and its result, which each replay writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


def cuda() -> list[Backend]:
    if not has_cuda():
        return []
    found: list[Backend] = [
        Backend("cuda", "cuda", float64=False, families=FAMILIES, reads_indices=False)
    ]
    if torch.cuda.get_device_capability()[0] == 9:
        # sm_90's attention kernels take small calls, too; and those of sm_80, which Hopper would
        # hardly run, take all of them.
        for name, switch, families in (
            ("cuda-sm90", "_prefer_sm90", ("attention",)),
            ("cuda-sm80", "_as_sm80", FAMILIES),
        ):
            found.append(
                Switched(
                    name,
                    "cuda",
                    float64=False,
                    families=families,
                    reads_indices=False,
                    switch=switch,
                )
            )
    return found


@dataclass(frozen=True)
class Switched(Backend):
    """A GPU where other kernels take some calls."""

    switch: str = ""

    @contextmanager
    def active(self) -> Iterator[None]:
        switch = getattr(torch.ops.weft, self.switch)
        switch(True)
        try:
            yield
        finally:
            switch(False)


@dataclass(frozen=True)
class Simulator(Backend):
    """CUDA kernels on CPU tensors: `torch.ops.weft.*` goes to the simulator while it is active.

    Each test has an order of threads of its own, and early or late completion, drawn from its name.
    """

    FILES: ClassVar = (
        "test_forward",
        "test_backward",
        "test_fused",
        "test_int8",
        "test_determinism",
    )
    clusters: bool = True  # as sm_90 has them
    namespace: str = "weft_simulator"

    def runs(self, family: str, file: str, test: str, parameters: dict[str, Any]) -> bool:
        """Half of the kernels' own tests: each with two of four pairs of norm and dtype.

        Where clusters would share long rows, the other half runs without them: nothing else is
        different there.
        """
        shape = parameters.get("shape", ())
        if not self.reads_indices:
            return file in ("test_unchecked", "test_errors")
        if family == "attention":
            return self._runs_attention(file, test, parameters)
        if family == "int8":
            return self._runs_int8(file, test, parameters)
        long = "wide" in test or max(shape, default=0) > 16384
        if file not in self.FILES or torch.Size(shape).numel() > 2**17:
            return False
        if not long and not self.clusters:
            return False
        if "norm" not in parameters or "dtype" not in parameters:
            return True
        is_layer_norm = str(parameters["norm"]) == "layer_norm"
        is_half = parameters["dtype"] != torch.float32
        first = zlib.crc32(test.encode()) % 2 == 0
        return self.clusters == ((is_layer_norm == is_half) == first)

    ATTENTION_FILES: ClassVar = (
        "test_forward",
        "test_backward",
        "test_sequences",
        "test_options",
        "test_plain",
        "test_dropout",
        "test_determinism",
        "test_cache",
        "test_tiles",
        "test_tf32",
        "test_with_kvcache",
        "test_far_apart",
    )

    def _runs_attention(self, file: str, test: str, parameters: dict[str, Any]) -> bool:
        """Of the many cases of a test a part: they cost a second each.

        Without clusters what in 16 bits sm_90's kernels take with them.
        """
        if file not in self.ATTENTION_FILES or test == "test_64k_keys":
            return False
        shape = parameters.get("shape")
        if test == "test_backward" and shape is not None and shape.S * shape.T > 2**11:
            return False
        if test in ("test_many_blocks_of_keys", "test_rows_of_whole_blocks_of_words"):
            return self.clusters
        draw = zlib.crc32(f"{test}-{sorted(map(str, parameters.values()))}".encode())
        if not self.clusters:
            if file == "test_tiles":
                return test == "test_backward" and parameters["window"] == "causal"
            is_half = parameters.get("dtype") in (torch.bfloat16, torch.float16)
            return file in ("test_forward", "test_backward") and is_half and draw % 8 == 4
        return file in ("test_tiles", "test_tf32", "test_far_apart") or draw % 4 == 0

    INT8_FILES: ClassVar = (
        "test_linear",
        "test_llm_int8",
        "test_packed",
        "test_quantizers",
        "test_tiles",
        "test_tiles_sm90",
        "test_weight_only",
    )

    def _runs_int8(self, file: str, test: str, parameters: dict[str, Any]) -> bool:
        """Without clusters a third: there only the products of int8 have kernels of their own."""
        if file not in self.INT8_FILES:
            return False
        if "long_sums" in test:  # which no kernel of sm_90's own takes; many rows take a minute
            return not self.clusters and "many" not in test
        draw = zlib.crc32(f"{test}-{sorted(map(str, parameters.values()))}".encode())
        return self.clusters or file in ("test_linear", "test_tiles") or draw % 3 == 0

    def orders(self) -> Iterator[None]:
        for seed in range(1, 5):
            torch.ops.weft_simulator.configure(seed, bool(seed & 1), self.clusters)
            yield

    @contextmanager
    def active(self) -> Iterator[None]:
        if not SIMULATED_OPS.exists():
            pytest.skip("the simulator is not built: make build/simulator/.built")
        torch.ops.load_library(SIMULATED_OPS)
        draw = zlib.crc32(os.environ["PYTEST_CURRENT_TEST"].encode())
        torch.ops.weft_simulator.configure(draw >> 1, bool(draw & 1), self.clusters)
        library = torch.library.Library("weft", "IMPL")
        with warnings.catch_warnings():  # torch's, that these had kernels
            warnings.simplefilter("ignore")
            for op in _ops_of(self.namespace):
                library.impl(op.partition("::")[2], _op(op), "CPU")
        try:
            with mock.patch.object(_attention_dispatch, "has_tf32", lambda q: True):
                yield
        finally:
            library._destroy()


def _ops_of(namespace: str) -> list[str]:
    """The names of all that stands behind weft's own ops: "weft_simulator::layer_norm.out"."""
    names = set(torch._C._dispatch_get_all_op_names())
    own = [n for n in names if n.startswith(f"{namespace}::")]
    return sorted(n for n in own if n.replace(namespace, "weft", 1) in names)


def _op(name: str) -> torch._ops.OpOverload:
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def simulators() -> list[Backend]:
    return [
        Simulator("simulator-sm90", float64=False, families=FAMILIES),
        Simulator("simulator-sm80", float64=False, families=FAMILIES, clusters=False),
        Simulator(
            "simulator-unchecked",
            float64=False,
            families=("attention",),
            reads_indices=False,
            namespace="weft_simulator_unchecked",
        ),
    ]


BACKENDS = [*cpu_levels(), *cuda(), *simulators()]  # a new backend adds itself to this line
