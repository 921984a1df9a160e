"""Checks that weft keeps its floors: who may include, and who may import, whom.

    python tools/check_floors.py [root]

prints a line for each violation, and fails where there is one. csrc/README.md draws the map.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# In csrc: what each room stands on, besides itself. Any other folder is a family (norm, …); weft._C
# knows one of them, as communicators are objects and no ops.
ROOMS = {
    "core": set(),
    "cpu": {"core"},
    "gpu": {"core"},
    "torch": {"core", "cpu", "gpu"},
    "python": {"core", "cpu", "gpu", "comm"},
}
FAMILY = {"core", "cpu", "gpu"}
# Within a family: the device that a backend's folder has no business with.
OTHER_DEVICE = {"cpu": {"gpu"}, "cuda": {"cpu"}}

# Libraries that are not for everyone: the start of the header's name, and who may include it.
LIBRARIES = {
    "torch's stable ABI": (
        ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/"),
        {"torch", "ops.h", "library"},
    ),
    "pybind11 and Python": (("pybind11/", "Python.h"), {"python"}),
    "CUDA": (
        ("cuda", "cooperative_groups", "nvtx3/"),
        {"ptx", "device.cu", "cuda", "library_cuda"},
    ),
    # Not stable: what includes these loads in one version of torch only.
    "torch's unstable ABI": (("torch/", "ATen/", "c10/"), set()),
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}

# In python/weft: what must not be imported from the package named; "" is all other code.
PYTHON_FORBIDDEN = {
    "ops": {"nn", "quantization", "distributed", "integrations", "reference"},
    "nn": {"integrations", "reference"},
    "quantization": {"integrations", "reference"},
    "distributed": {"integrations", "reference"},
    "": {"reference"},
}


def roles(path: Path) -> set[str]:
    """What a file of csrc is, for LIBRARIES: room, backend folder, or what its name says."""
    found = {path.parts[0] if len(path.parts) > 1 else path.stem, *path.parts[1:-1]}
    if path.name in ("ops.h", "device.cu"):
        found.add(path.name)
    if path.stem.startswith("library"):
        found.add("library")
    return found


def allowed_rooms(path: Path, families: set[str]) -> set[str]:
    """The folders of csrc that `path`, relative to csrc, may include from."""
    room = path.parts[0]
    if len(path.parts) == 1:  # library.cpp, library_norm.h, …: where all comes together
        own = {f"library_{which}{x}.h" for which in ("", "simulator_") for x in families}
        return set(ROOMS) | families | own | {"library_fused.h", "library_simulator.h"}
    if room in ROOMS:
        return ROOMS[room] | {room}
    if path.name == "ops.h":
        return FAMILY | {room, "torch"}
    return FAMILY - OTHER_DEVICE.get(path.parts[1], set()) | {room}


def check_includes(csrc: Path) -> Iterator[str]:
    families = {p.name for p in csrc.iterdir() if p.is_dir()} - set(ROOMS)
    for file in sorted(p for p in csrc.rglob("*") if p.suffix in SUFFIXES):
        path = file.relative_to(csrc)
        for bracket, header in INCLUDE.findall(file.read_text()):
            if bracket == "<":
                yield from check_library(path, header)
                continue
            if not (csrc / header).is_file():
                yield f'csrc/{path}: "{header}" names no file, going from csrc/ on'
                continue
            room = Path(header).parts[0]
            if room not in allowed_rooms(path, families):
                yield f'csrc/{path}: may not include "{header}", which is in {room}/'
            elif room == path.parts[0] and crosses_backends(path, Path(header)):
                yield f'csrc/{path}: may not include "{header}", which is another backend'


def crosses_backends(path: Path, header: Path) -> bool:
    """norm/cpu/… including norm/cuda/…, gpu/sim/… including gpu/ptx/…, or the other way round."""
    folders = {p.parts[1] for p in (path, header) if len(p.parts) > 2}
    return folders >= {"cpu", "cuda"} or folders >= {"ptx", "sim"}


def check_library(path: Path, header: str) -> Iterator[str]:
    for library, (prefixes, users) in LIBRARIES.items():
        if header.startswith(prefixes):
            if not roles(path) & users:
                yield f"csrc/{path}: may not include <{header}>: {library}"
            return


def imported_modules(file: Path, package: tuple[str, ...]) -> Iterator[str]:
    """The full names of what a Python file imports; `package` is the one it belongs to."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def check_imports(python: Path) -> Iterator[str]:
    for file in sorted((python / "weft").rglob("*.py")):
        path = file.relative_to(python)
        floor = path.parts[1] if len(path.parts) > 2 else ""
        if floor == "reference":
            continue
        forbidden = PYTHON_FORBIDDEN.get(floor, PYTHON_FORBIDDEN[""])
        for module in imported_modules(file, path.parts[:-1]):
            parts = module.split(".")
            if parts[0] == "weft" and len(parts) > 1 and parts[1] in forbidden:
                yield f"python/{path}: may not import {module}"


def check(root: Path) -> list[str]:
    """All violations under the repository's root, a line each."""
    return [*check_includes(root / "csrc"), *check_imports(root / "python")]


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    violations = check(root)
    print("\n".join(violations) or "Floors: kept.")
    return bool(violations)


if __name__ == "__main__":
    raise SystemExit(main())
