"""The processes that a collective is measured in.

`measure` starts them: through ``mpirun`` where MPI is here, so that all contenders run in the same
processes, else as plain ones. A round takes a sample of each contender, in an order that turns from
round to round; a sample is a number of calls between two barriers, and its time that of the slowest
rank. Each rank has one thread.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.timing import Spread

WEFT, GLOO, MPI, DEEPSPEED, NCCL = "weft", "gloo", "MPI", "DeepSpeed", "NCCL"
SAMPLE = 0.02
"""Seconds that a sample should last, unless five calls take longer."""


@dataclass
class Row:
    world: int
    bytes: int
    dtype: str
    times: dict[str, Spread] = field(default_factory=dict)

    @property
    def best_peer(self) -> str | None:
        peers = [name for name in self.times if name != WEFT]
        return min(peers, key=lambda name: self.times[name].median) if peers else None

    @property
    def speedup(self) -> float | None:
        """The best peer's time over weft's."""
        best = self.best_peer
        if best is None or WEFT not in self.times:
            return None
        return self.times[best].median / self.times[WEFT].median


def why_no_mpi() -> str:
    """Why MPI cannot run here; empty if it can."""
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    return "" if shutil.which("mpirun") else "mpirun is not on the path"


def measure(
    world: int,
    cases: Sequence[tuple[int, str]],
    rounds: int,
    tables: dict[str, list] | None = None,
    device: str = "cpu",
) -> list[Row]:
    """A row for each case, of bytes and dtype. With ``tables``, the contenders are weft with each
    of these instead. On ``cuda`` every rank has a GPU."""
    if not cases:
        return []
    job = (world, list(cases), rounds, tables, device)
    peers = tables is None and device == "cpu"
    if peers and has_deepspeed():
        deepspeed()  # built before the processes ask for it
    mpi = peers and not why_no_mpi()
    return launch(world, "bench.comm.ranks", job, mpi)


def launch(world: int, module: str, job: tuple, mpi: bool = False) -> list:
    """What rank 0 returns of ``module.rank_main(job, rank)``, run in `world` processes."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job").write_bytes(pickle.dumps((world, module, job)))
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
            # By which DeepSpeed knows who is on this host, and names its memory.
            "LOCAL_SIZE": str(world), "MASTER_ADDR": Path(folder).name, "MASTER_PORT": "0",
        }  # fmt: skip
        program = "import sys; from bench.comm.ranks import main; main(*sys.argv[1:])"
        command = [sys.executable, "-c", program, folder]
        try:
            _run(command, world, environment, mpi)
        finally:
            for left in Path("/dev/shm").glob(f"deepspeed*{Path(folder).name}*"):
                left.unlink()
        return pickle.loads((Path(folder) / "rows").read_bytes())


def _run(command: list[str], world: int, environment: dict[str, str], mpi: bool) -> None:
    if mpi:
        subprocess.run([*_mpirun(world), *command], env=environment, check=True)
        return
    started = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(world)]
    codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError(f"a rank of the benchmark failed: {codes}")


def _mpirun(world: int) -> list[str]:
    said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout
    if "Open MPI" not in said:
        return ["mpirun", "-n", str(world)]
    options = ["--oversubscribe", "--allow-run-as-root", "--bind-to", "none"]
    return ["mpirun", *options, "-n", str(world)]


# ---- in each of the processes


def _contenders(tables: dict[str, list] | None, device: torch.device) -> dict[str, Callable]:
    """Each takes a tensor and reduces it in place."""
    from weft.distributed import Communicator

    if device.type == "cuda" and tables is not None:
        return {name: c.all_reduce_ for name, c in _communicators(tables).items()}
    if device.type == "cuda":
        nccl = dist.new_group(backend="nccl")
        return {
            WEFT: Communicator(dist.group.WORLD).all_reduce_,
            NCCL: lambda x: dist.all_reduce(x, group=nccl),
        }

    if tables is not None:
        communicators = {
            name: Communicator(dist.group.WORLD, table=rows) for name, rows in tables.items()
        }
        return {name: c.all_reduce_ for name, c in communicators.items()}
    found: dict[str, Callable] = {WEFT: Communicator(dist.group.WORLD).all_reduce_}
    found[GLOO] = dist.all_reduce
    if loaded_mpi() is not None:
        found[MPI] = through_mpi
    if has_deepspeed():
        deepspeed().initialize(dist.get_world_size(), dist.get_rank())
        found[DEEPSPEED] = torch.ops.deepspeed.inference_all_reduce_
    return found


def _communicators(tables: dict[str, list]) -> dict[str, Any]:
    """On GPUs, by their tables; but for those whose rows ask for what the GPUs do not have."""
    from weft.distributed import Communicator

    made = {}
    for name, rows in tables.items():
        communicator = Communicator(dist.group.WORLD)
        multicast = any(algorithm == "multicast" for _, algorithm in rows)
        try:
            communicator.connect_cuda(multicast=multicast, table=rows)
            made[name] = communicator
        except RuntimeError as error:
            if not multicast:
                raise
            communicator.close()
            if dist.get_rank() == 0:
                print(f"Without {name}: {error}")
    return made


def has_deepspeed() -> bool:
    spec = importlib.util.find_spec("deepspeed")
    return spec is not None and spec.origin is not None  # and no mere folder of that name


def deepspeed() -> Any:
    """DeepSpeed's all-reduce through shared memory, from its sources: built at the first call."""
    from torch.utils.cpp_extension import load

    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.submodule_search_locations
    cpu = Path(spec.submodule_search_locations[0], "ops/csrc/cpu")
    os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)  # ninja's
    return load(
        "deepspeed_shm",
        [str(cpu / "comm" / name) for name in ("shm_interface.cpp", "shm.cpp")],
        extra_include_paths=[str(cpu / "includes")],
        extra_cflags=["-O2", "-fopenmp"],
    )


def loaded_mpi():
    """mpi4py's MPI where `mpirun` has started this process; None elsewhere."""
    return sys.modules.get("mpi4py.MPI")


def through_mpi(x: torch.Tensor) -> torch.Tensor:
    """MPI's sum, in place. It knows no bfloat16."""
    mpi = loaded_mpi()
    mpi.COMM_WORLD.Allreduce(mpi.IN_PLACE, x.numpy())
    return x


def sample(call: Callable, x: torch.Tensor, calls: int) -> float:
    """Seconds per call, of the slowest rank."""
    done = torch.cuda.synchronize if x.is_cuda else lambda: None
    dist.barrier()
    call(x)
    done()
    begin = time.perf_counter()
    for _ in range(calls):
        call(x)
    done()
    taken = torch.tensor([(time.perf_counter() - begin) / calls], dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.item()


def _row(
    row: Row, contenders: dict[str, Callable], rounds: int, rank: int, device: torch.device
) -> Row:
    dtype = getattr(torch, row.dtype)
    n = row.bytes // dtype.itemsize
    names = [name for name in contenders if name != MPI or dtype == torch.float32]
    calls = {}
    for name in names:
        x = torch.full((n,), float(rank + 1), dtype=dtype, device=device)
        contenders[name](x)
        want = row.world * (row.world + 1) / 2
        assert (x == want).all(), f"{name} is wrong"
        x.zero_()
        calls[name] = max(5, min(5000, int(SAMPLE / sample(contenders[name], x, 5))))
    times: dict[str, list[float]] = {name: [] for name in names}
    x = torch.zeros(n, dtype=dtype, device=device)
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            times[name].append(sample(contenders[name], x, calls[name]))
    for name, seconds in times.items():
        quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        row.times[name] = Spread(
            statistics.median(seconds), quarters[0], quarters[2], min(seconds), max(seconds), rounds
        )
    return row


def rank_main(job: tuple, rank: int) -> list[Row]:
    world, cases, rounds, tables, kind = job
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    contenders = _contenders(tables, device)
    return [_row(Row(world, *case), contenders, rounds, rank, device) for case in cases]


def main(where: str, number: str = "") -> None:
    """One of the processes: `where` the job lies, and its rank unless mpirun says it."""
    folder = Path(where)
    world, module, job = pickle.loads((folder / "job").read_bytes())
    rank = int(number) if number else _mpi_rank()
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    rows = importlib.import_module(module).rank_main(job, rank)
    if rank == 0:
        (folder / "rows").write_bytes(pickle.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()  # gloo's threads would meet an interpreter that has gone


def _mpi_rank() -> int:
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank()
