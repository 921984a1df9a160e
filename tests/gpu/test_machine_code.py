"""What nvcc makes of the matrix words, read out of the test kernels: as many instructions as the
kernels say, none merged, none serialised. For machines where `make cuda` has been run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import BUILD, CUDA_LIBRARY

# By kernel: the instructions of its body, whose K loops are unrolled. ptxas may merge equal wgmmas,
# and where it finds their order doubtful it adds ARRIVE and DEPBAR to each: so all are counted.
LDMATRIX = "LDSM.16"
STAGE = {"WARPGROUP.ARRIVE": 1, "WARPGROUP.DEPBAR": 1}
STEPS = 8  # of K, in wgmma_kernel
TENSOR_SPELLINGS = {
    rf"tensor_spellings_kernel<{R}>": {
        f"UTMALDG.{R}D": 2, f"UTMALDG.{R}D.MULTICAST": 1,
        f"UTMASTG.{R}D": 1, f"UTMAREDG.{R}D.ADD": 1,
    }
    for R in range(1, 6)
}  # fmt: skip
STRONG_SPELLINGS = {
    rf"strong_spellings_kernel<.*Scope\){number}, unsigned {word}>": {
        f"LDG.E{bits}.STRONG.{scope}": 2, f"STG.E{bits}.STRONG.{scope}": 2,
        f"ATOMG.E.MAX{bits}.STRONG.{scope}": 1, f"ATOMG.E.MIN{bits}.STRONG.{scope}": 1,
        f"ATOMG.E.EXCH{bits}.STRONG.{scope}": 1, f"ATOMG.E.CAS{bits}.STRONG.{scope}": 1,
    }
    for number, scope in ((0, "SM"), (2, "GPU"), (3, "SYS"))
    for word, bits in (("int", ""), ("long", ".64"))
}  # fmt: skip
EXPECTED = {
    "sm_90a": {
        r"mma_kernel<weft::bf16, float": {"HMMA.16816.F32.BF16": 6, LDMATRIX: 12},
        r"mma_kernel<weft::f16, float": {"HMMA.16816.F32": 6, LDMATRIX: 12},
        r"mma_kernel<weft::f16, weft::f16": {"HMMA.16816.F16": 6, LDMATRIX: 12},
        r"mma_kernel<weft::gpu::tf32": {"HMMA.1688.F32.TF32": 6, LDMATRIX: 12},
        r"mma_kernel<signed char": {"IMMA.16832.S8.S8": 6, LDMATRIX: 12},
        r"mma_chain_kernel": {"HMMA.16816": 4, LDMATRIX: 3},
        r"ldmatrix_kernel<\d, false>": {"LDSM.16.M88": 1},
        r"ldmatrix_kernel<\d, true>": {"LDSM.16.MT88": 1},
        r"stmatrix_kernel<\d, false>": {"STSM.16.M88": 1},
        r"stmatrix_kernel<\d, true>": {"STSM.16.MT88": 1},
        r"movmatrix_kernel": {"MOVM.16.MT88": 1},
        r"wgmma_kernel<.*WgmmaCase<weft::bf16, N,.*Source\)0": {
            "HGMMA.64xNx16.F32.BF16": STEPS, **STAGE
        },
        r"wgmma_kernel<.*WgmmaCase<weft::bf16, N,.*Source\)1": {
            "HGMMA.64xNx16.F32.BF16": STEPS, LDMATRIX: STEPS, **STAGE
        },
        r"wgmma_kernel<.*WgmmaCase<weft::f16, N,": {"HGMMA.64xNx16.F32": STEPS, **STAGE},
        r"wgmma_kernel<.*WgmmaCase<signed char, N,": {"IGMMA.64xNx32.S8.S8": STEPS, **STAGE},
        r"multimem_kernel<": {"LDGMC": 1, "STG": 2, "REDG": 2, "MEMBAR": 1},
        **TENSOR_SPELLINGS,
        **STRONG_SPELLINGS,
        r"remote_spellings_kernel<1>": {"LD.E": 1, "ST.E": 1, "STAS": 1},
        r"remote_spellings_kernel<2>": {"LD.E.64": 1, "ST.E.64": 1, "STAS.64": 1},
        r"remote_spellings_kernel<4>": {"LD.E.128": 1, "ST.E.128": 1, "STAS.128": 1},
        r"fence_spellings_kernel": {
            "FENCE.VIEW.ASYNC.S": 1, "FENCE.VIEW.ASYNC.G": 1, "UBLKRED.G.S.ADD": 1, "UCGABAR_ARV": 1
        },
        r"wgmma_gemm_kernel": {
            "HGMMA.64x128x16.F32.BF16": 4, "WARPGROUP.ARRIVE": 2, "WARPGROUP.DEPBAR": 2,
            "UTMALDG": 2, "USETMAXREG": 2
        },
        r"wgmma_chain_kernel": {
            "HGMMA.64x64x16.F32.BF16": 8, "WARPGROUP.ARRIVE": 2, "WARPGROUP.DEPBAR": 3
        },
    },
    # What needs sm_90a traps there.
    "sm_80": {
        r"mma_kernel<weft::bf16, float": {"HMMA.16816.F32.BF16": 6, LDMATRIX: 12},
        r"mma_kernel<weft::gpu::tf32": {"HMMA.1688.F32.TF32": 6, LDMATRIX: 12},
        r"mma_kernel<signed char": {"IMMA.16832.S8.S8": 6, LDMATRIX: 12},
        r"ldmatrix_kernel<\d, true>": {"LDSM.16.MT88": 1},
        r"movmatrix_kernel": {"MOVM.16.MT88": 1},
    },
}  # fmt: skip


def check_cuda() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tools/check_cuda.py"
    spec = importlib.util.spec_from_file_location("check_cuda", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["check_cuda"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernels() -> list:
    if not CUDA_LIBRARY.exists():
        pytest.skip(f"{CUDA_LIBRARY.name} is not built: make cuda")
    root = BUILD.parent
    sources = [*(root / "csrc/gpu").rglob("*.h"), *(root / "tests/gpu/kernels").iterdir()]
    if CUDA_LIBRARY.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        pytest.skip(f"{CUDA_LIBRARY.name} is older than its kernels: make cuda")
    tool = check_cuda()
    try:
        found = tool.parse(
            tool.dump(CUDA_LIBRARY, "--dump-resource-usage"), tool.dump(CUDA_LIBRARY, "-sass")
        )
    except (SystemExit, subprocess.CalledProcessError) as missing:
        pytest.skip(f"no cuobjdump: {missing}")
    tool.demangle(found)
    return found


@pytest.mark.parametrize(
    "architecture, pattern", [(a, pattern) for a in EXPECTED for pattern in EXPECTED[a]]
)
def test_machine_code(kernels: list, architecture: str, pattern: str):
    matching = re.compile(r"tests::" + pattern.replace("N,", r"(\d+),"))
    count = 0
    for kernel in kernels:
        found = matching.search(kernel.name)
        if not found or kernel.architecture != architecture:
            continue
        count += 1
        assert kernel.local == 0 and kernel.stack == 0, kernel.name
        for instruction, times in EXPECTED[architecture][pattern].items():
            if "xN" in instruction:
                instruction = instruction.replace("xN", f"x{found[1]}")
            seen = sum(n for text, n in kernel.instructions.items() if text.startswith(instruction))
            assert seen == times, f"{kernel.name}: {kernel.instructions}"
    assert count > 0, f"no kernel is called {pattern}"
