"""``weft doctor``: what is installed, what this machine offers, and which kernels can run on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from . import _C, _library

Report = dict[str, Any]


def examine(limits: bool = False) -> Report:
    """The whole report, fit for JSON.

    Args:
        limits: also measure the machine's limits with one thread and with all; some seconds.
    """
    report: Report = {
        "weft": {**_C.build_info(), "path": str(Path(__file__).parent)},
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "path": str(Path(torch.__file__).parent),
        },
        "cpu": _cpu(),
        "threads": {
            "torch": torch.get_num_threads(),
            "cpus": os.cpu_count(),
            "usable_cpus": _usable_cpus(),
        },
        "memory": _memory(),
        "cuda": _cuda(),
    }
    report["kernels"] = kernels(report["cpu"]["error"], report["cuda"]["why_not"])
    if limits:
        report["limits"] = _limits()
    return report


def kernels(why_no_cpu: str | None, why_no_cuda: str | None) -> dict[str, dict[str, Report]]:
    """For each op and backend of torch's dispatcher: can it run here, and if not, why not.

    An argument that is no None is what keeps the whole backend from running.
    """
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    table: dict[str, dict[str, Report]] = {}
    for op in sorted(torch._C._dispatch_get_all_op_names()):
        if not op.startswith("weft::") or has_kernel(op, "CompositeImplicitAutograd"):
            continue  # another library's op, or a question that needs no kernel
        row = table[op.removeprefix("weft::")] = {}
        for backend, why_no_backend in (("CPU", why_no_cpu), ("CUDA", why_no_cuda)):
            why_not = why_no_backend
            if not has_kernel(op, backend) and _registered(backend):
                why_not = f"weft has no {backend} kernel for it"
            row[backend] = {"available": why_not is None, "why_not": why_not}
    return table


def _registered(backend: str) -> bool:
    """Whether the backend's library is loaded. Without it no op has a kernel there."""
    return backend == "CPU" or _library.why_no_cuda is None


def _cpu() -> Report:
    try:
        level, error = _C.isa_level(), None
    except RuntimeError as wrong:  # WEFT_CPU_ISA asks for a level that cannot run here
        level, error = None, str(wrong)
    levels = {name: _C.isa_why_not(name) or None for name in _C.isa_levels()}
    return {
        "model": cpu_model(),
        "level": level,
        "error": error,
        "forced_by_environment": os.environ.get("WEFT_CPU_ISA") or None,
        "levels": {
            name: {"available": why_not is None, "why_not": why_not}
            for name, why_not in levels.items()
        },
        "features": _C.cpu_features(),
    }


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> Report:
    on = _C.reusing_memory()
    possible = _C.reuse_memory(on)  # asks for what holds already: changes nothing
    return {
        "huge_pages": _C.huge_pages(),
        "reuse_memory": on,
        "reuse_memory_why_not": None if possible else "malloc is not glibc's in this process",
    }


def _cuda() -> Report:
    built: Report | None = None
    why_not = _library.why_no_cuda
    if why_not is None:
        runtime, driver, architectures = torch.ops.weft.cuda_build_info()
        built = {
            "runtime": _cuda_version(runtime),
            "driver": _cuda_version(driver) if driver else None,
            "architectures": architectures.split(),
        }
    gpus = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(i)
            gpus.append({"name": torch.cuda.get_device_name(i), "capability": f"{major}.{minor}"})
    if why_not is None and not gpus:
        why_not = "torch finds no GPU" if built and built["driver"] else "there is no GPU driver"
    return {"library": built, "gpus": gpus, "why_not": why_not}


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _limits() -> dict[str, Report]:
    return {
        str(threads): {
            "bytes_per_s": dict(_C.memory_bandwidth(threads)),
            "operations_per_s": dict(_C.peaks(threads)),
            "fork_join_s": _C.fork_join(threads),
        }
        for threads in sorted({1, torch.get_num_threads()})
    }


# ---- as text


def as_text(report: Report) -> str:
    """For people: aligned lines, no colours, no third-party package."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    weft, of_torch, cpu, cuda = (report[name] for name in ("weft", "torch", "cpu", "cuda"))
    commit = f" ({weft['git_commit']})" if weft["git_commit"] else ""
    yield f"weft {weft['version']}{commit}"
    yield from _table(
        [
            ("path", weft["path"]),
            ("built with", _join(weft["compiler"], weft["build_type"], _built_with(weft))),
            ("torch", f"{of_torch['version']}, CUDA {of_torch['cuda'] or 'none'}"),
            ("python", of_torch["python"]),
        ]
    )
    yield ""
    yield f"CPU: {cpu['model']}"
    by_whom = " (WEFT_CPU_ISA)" if cpu["forced_by_environment"] else ""
    rows = [("level", cpu["error"] or cpu["level"] + by_whom)]
    rows += [(f"  {name}", _verdict(state)) for name, state in cpu["levels"].items()]
    threads, memory = report["threads"], report["memory"]
    rows.append(("threads", f"{threads['torch']} of {threads['usable_cpus']} usable CPUs"))
    rows.append(("huge pages", _huge_pages(memory["huge_pages"])))
    off = memory["reuse_memory_why_not"] or "off; weft.reuse_memory() turns it on"
    rows.append(("reuse memory", "on" if memory["reuse_memory"] else off))
    yield from _table(rows)
    yield ""
    yield f"CUDA: {cuda['why_not'] or 'yes'}"
    rows = []
    if cuda["library"]:
        built = cuda["library"]
        rows.append(("built for", f"{' '.join(built['architectures'])}, CUDA {built['runtime']}"))
        rows.append(("driver", f"CUDA {built['driver']}" if built["driver"] else "none"))
    for gpu in cuda["gpus"]:
        rows.append(("GPU", f"{gpu['name']}, compute capability {gpu['capability']}"))
    yield from _table(rows)
    yield ""
    yield "kernels"
    yield from _kernel_lines(report["kernels"])
    for threads_used, limits in report.get("limits", {}).items():
        yield ""
        yield f"limits with {threads_used} thread{'' if threads_used == '1' else 's'}"
        yield from _table(_limit_rows(limits))


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        yield f"  {name:<{width}}  {value}"


def _kernel_lines(table: Mapping[str, Mapping[str, Report]]) -> Iterator[str]:
    """The reasons stand below the table, each once."""
    footnotes: list[str] = []

    def cell(state: Report) -> str:
        if state["available"]:
            return "yes"
        if state["why_not"] not in footnotes:
            footnotes.append(state["why_not"])
        return f"no [{footnotes.index(state['why_not']) + 1}]"

    if not table:
        yield "  none"
        return
    backends = list(next(iter(table.values())))
    width = max(map(len, table))
    yield f"  {'':<{width}}  " + "  ".join(f"{backend:<7}" for backend in backends).rstrip()
    for op, row in table.items():
        cells = "  ".join(f"{cell(row[backend]):<7}" for backend in backends)
        yield f"  {op:<{width}}  {cells}".rstrip()
    for number, reason in enumerate(footnotes, 1):
        yield f"  [{number}] {reason}"


def _limit_rows(limits: Report) -> Iterator[tuple[str, str]]:
    for name, rate in limits["bytes_per_s"].items():
        yield name.replace("_", " "), f"{rate / 1e9:.1f} GB/s"
    for name, rate in limits["operations_per_s"].items():
        yield name, f"{rate / 1e9:.0f} G operations/s" if rate else "no instruction at this level"
    yield "fork and join", f"{limits['fork_join_s'] * 1e6:.2f} µs"


def _verdict(state: Report) -> str:
    return "available" if state["available"] else f"not available: {state['why_not']}"


def _built_with(weft: Report) -> str | None:
    if not weft["torch_version"]:
        return None
    return f"for torch >= {weft['torch_target']}, with {weft['torch_version']}"


def _huge_pages(pages: Report) -> str:
    if pages["mode"] is None:
        return "none on this system"
    meaning = {
        "always": "the system uses them by itself",
        "madvise": "weft asks for them",
        "never": "turned off: large fresh outputs pay for a fault every 4 KiB",
    }.get(pages["mode"], "")
    size, used = pages["page_bytes"] >> 20, pages["process_bytes"] >> 20
    return _join(f"{pages['mode']} ({meaning})", f"{size} MiB each", f"{used} MiB in use")


def _join(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)
