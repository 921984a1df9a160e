"""What a result was measured on: hardware, software, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench.rotation import last_level_cache
from weft import _C

PACKAGES = ("weft", "torch", "onnxruntime", "numpy")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    last_level_cache: int
    memory_gib: int
    huge_pages: str
    kernel: str
    python: str
    packages: dict[str, str]
    isa: str
    torch_isa: str
    threads: int
    commit: str
    date: str
    gpu: str = ""
    """Of a result that was measured on one."""
    driver: str = ""
    cuda: str = ""

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @property
    def slug(self) -> str:
        """The folder that results of this kind of machine live in: the GPU, or CPU, family, model,
        cores."""
        kind = self.gpu or f"{self.cpu} {self.cores}c"
        return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def describe(threads: int, device: str = "cpu") -> Machine:
    return Machine(
        **(_gpu() if device == "cuda" else {}),
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        last_level_cache=last_level_cache(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        huge_pages=_chosen(HUGE_PAGES),
        kernel=f"{platform.system()} {platform.release().partition('-')[0]}",
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := _version(name))},
        isa=_C.isa_level(),
        torch_isa=torch.backends.cpu.get_cpu_capability(),
        threads=threads,
        commit=_commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _gpu() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {
        "gpu": torch.cuda.get_device_name(0), "driver": driver, "cuda": torch.version.cuda or "",
    }  # fmt: skip


def _cpu_name() -> str:
    """The model name, with family and model number: virtual machines often hide the rest."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields and "model" in fields:
        name += f" family {fields['cpu family']} model {fields['model']}"
    return name


def _chosen(path: Path) -> str:
    """The option in brackets of a sysfs file such as ``always [madvise] never``."""
    try:
        match = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return "unknown"
    return match.group(1) if match else "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit of the working tree, marked where the sources differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent, check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip

    try:
        changed = git("status", "--porcelain", "--", "../csrc", "../python", "../bench/*.py")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
