"""What the built libraries need and offer: why one build loads in every torch from 2.10 on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import weft

PACKAGE = Path(weft.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
OP_LIBRARIES = [
    path for path in (PACKAGE / "libweft.so", ROOT / "build/cuda/libweft_cuda.so") if path.exists()
]
SYSTEM = {"libstdc++", "libm", "libgcc_s", "libc", "libpthread", "libdl", "librt", "libgomp"}

each_op_library = pytest.mark.parametrize("library", OP_LIBRARIES, ids=lambda path: path.name)
needs_binutils = pytest.mark.skipif(
    not (shutil.which("readelf") and shutil.which("nm")), reason="binutils are not installed"
)


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed(library: Path) -> set[str]:
    """The names of the libraries that `library` loads, without their versions."""
    names = re.findall(r"\(NEEDED\).*\[(.*?)\.so", output("readelf", "-d", library))
    return {name for name in names if not name.startswith("ld-linux")}


def test_libweft_is_here():
    assert PACKAGE / "libweft.so" in OP_LIBRARIES


@needs_binutils
@each_op_library
def test_op_libraries_know_no_python_and_no_unstable_torch(library: Path):
    torch_libraries = {"libtorch", "libtorch_cpu"}
    if library.name == "libweft_cuda.so":
        torch_libraries.add("libtorch_cuda")
    assert needed(library) - SYSTEM == torch_libraries

    imported = output("nm", "-DC", "--undefined-only", library)
    assert not re.findall(r"\b(?:c10|at|torch)::|\b_?Py[A-Z]\w+", imported)


@needs_binutils
def test_no_path_of_the_build_machine_is_searched():
    for library in [*OP_LIBRARIES, *PACKAGE.glob("_C.*.so")]:
        searched = re.findall(r"(?:RPATH|RUNPATH).*\[(.*)\]", output("readelf", "-d", library))
        assert searched in ([], ["$ORIGIN"]), library


@needs_binutils
def test_libweft_exports_only_its_own_names():
    names = output("nm", "-DC", "--defined-only", PACKAGE / "libweft.so").splitlines()
    symbols = [line.split(maxsplit=2)[2] for line in names if line.split()[1] in "TDBR"]
    linker = {"_init", "_fini", "_edata", "_end", "__bss_start"}
    assert {s for s in symbols if not s.startswith("weft::")} <= linker


@each_op_library
def test_the_audit_finds_the_stable_abi_of_torch_2_10(library: Path):
    auditor = shutil.which("torch-abi-audit", path=Path(sys.executable).parent)
    if auditor is None:
        pytest.skip("torch-abi-audit is not installed")
    report = json.loads(output(auditor, "--json", "--check", "torch", library))
    (found,) = (entry["torch"] for entry in report["bundled_libs"])
    assert found["stable"] and not found["unknown_shim_symbols"]
    assert found["min_torch_version"] == "2.10.0"


@needs_binutils
def test_each_level_keeps_its_code_to_itself():
    """Two levels' copies of one symbol would be merged, and AVX-512 reach older CPUs."""
    trees = ROOT.glob("build/*/CMakeFiles/weft_cpu_*.dir")
    levels = {tree: tree.name.removeprefix("weft_cpu_").removesuffix(".dir") for tree in trees}
    if not levels:
        pytest.skip("no build tree here")
    for tree, level in levels.items():
        for file in tree.rglob("*.o"):
            names = output("nm", "-C", "--defined-only", "--extern-only", file).splitlines()
            symbols = {line.split(maxsplit=2)[2] for line in names if len(line.split()) > 2}
            shared = {s for s in symbols if f"::{level}::" not in s and "DW.ref" not in s}
            assert not shared, file


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is a CPU build")
def test_the_cuda_library_loads_into_a_torch_that_it_was_not_built_with():
    library = ROOT / "build/cuda/libweft_cuda.so"
    if not library.exists():
        pytest.skip("not built here: make cuda")
    torch.ops.load_library(library)
    runtime, _, architectures = torch.ops.weft.cuda_build_info()
    assert runtime >= 12000
    assert {"sm_80", "sm_90a", "compute_80"} <= set(architectures.split())
