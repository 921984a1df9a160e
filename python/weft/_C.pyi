"""weft's control plane: the build, the machine, its limits."""

from typing import Literal, TypedDict

IsaLevel = Literal["generic", "avx2", "avx512", "avx512_bf16"]

class BuildInfo(TypedDict):
    version: str
    git_commit: str | None
    compiler: str
    build_type: str | None
    torch_version: str | None
    """The torch whose headers this was built with."""
    torch_target: str | None
    """The oldest torch that it loads into."""
    isa_levels: list[str]

class HugePages(TypedDict):
    mode: str | None
    """The system's choice: always, madvise or never; None where it has no huge pages."""
    defrag: str | None
    page_bytes: int
    process_bytes: int
    """How much of this process lies in huge pages now."""

class MemoryBandwidth(TypedDict):
    """Bytes per second."""

    read: float
    copy: float
    """Bytes read plus bytes written."""
    touch_small_pages: float
    """Writing fresh memory in 4 KiB pages."""
    touch_huge_pages: float

class Peaks(TypedDict):
    """Operations per second; a multiplication and an addition are two. 0: no such instruction."""

    fp32: float
    bf16: float
    int8: float

def build_info() -> BuildInfo: ...
def isa_levels() -> dict[str, bool]: ...
def isa_why_not(name: str) -> str: ...
def isa_level() -> str: ...
def force_isa(name: str) -> None: ...
def cpu_features() -> dict[str, bool]: ...
def memory_bandwidth(threads: int) -> MemoryBandwidth: ...
def peaks(threads: int) -> Peaks: ...
def stream_copy(to: int, from_: int, bytes: int, threads: int) -> None: ...
def stream_read(from_: int, bytes: int, threads: int) -> None: ...
def run_operations(
    kind: Literal["fp32", "bf16", "int8"], operations: float, threads: int
) -> None: ...
def fork_join(threads: int) -> float: ...
def reuse_memory(on: bool) -> bool: ...
def reusing_memory() -> bool: ...
def huge_pages() -> HugePages: ...

class Communicator:
    """This process's rank in a group that shares memory."""

    def __init__(
        self, name: str, rank: int, world: int, timeout: float, cpus: int,
        table: list[tuple[int, bool, int]],
    ) -> None: ...  # fmt: skip
    @property
    def name(self) -> str: ...
    @property
    def handle(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def failure(self) -> str: ...
    def all_here(self) -> None: ...
    def close(self) -> None: ...
    def all_reduce_at(self, data: int, n: int, dtype: int, reduction: int) -> None: ...

def communicator_world(handle: int) -> int: ...
def default_table(world: int, cpus: int) -> list[tuple[int, bool, int]]: ...
