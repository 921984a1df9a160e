"""Checks what the CUDA compiler made of the kernels, on machines without a GPU.

    python tools/check_cuda.py build/cuda/libweft_cuda.so

reads registers, stack and machine code (SASS) of every kernel and architecture out of the library,
prints them as a table and fails where a kernel spills or uses local memory, or breaks a line of
EXPECTED: a memory-bound kernel that does not move 16 bytes a thread, a matrix kernel without its
matrix instructions. cuobjdump comes with the CUDA toolkit or from PyPI (nvidia-cuda-cuobjdump).
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90a")


@dataclass(frozen=True)
class Expected:
    """What the machine code of the kernels whose names match has to hold.

    An instruction is written as its opcode and the modifiers that matter: "LDG.128" is any load
    from global memory of 16 bytes.
    """

    kernels: str
    holds: dict[str, int] = field(default_factory=dict)
    """Instructions, and how many of each at least."""
    most: dict[str, int] = field(default_factory=dict)
    """… and at most."""
    lacks: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ARCHITECTURES


# Kernels that memory bounds move 16 bytes a thread, rows in and out alike. `true`: of whole chunks.
WIDE = {"LDG.128": 8, "STG.128": 1}
# Matrix products, and the ways of their tiles: global to shared memory, shared memory to registers.
PRODUCTS = {"LDGSTS.128": 8, "LDSM": 8}

# A tensor copy is issued once a warp; where ptxas does not see that one lane is elected, it loops.
LANE_BY_LANE = ("BRA.U.ANY",)

# Collectives: st.release.sys, with the fence that it takes; ld.acquire.sys, with the invalidation
# of L1.
TURNS = {"MEMBAR.SYS": 1, "STG.STRONG.SYS": 1, "LDG.STRONG.SYS": 1, "CCTL.IVALL": 1}


def _attention_sm80(
    kernel: str, operands: str, least: dict[str, int], template: str = ""
) -> Expected:
    operands = f"weft::attention::cuda::Operands<{operands}>"
    return Expected(f"attention::cuda::{kernel}<{operands}{template}", least)


def _attention_sm90(shape: str, products: int, stages: int) -> Expected:
    """Products, none merged with another, and a wait for each stage of them.

    Where ptxas finds their order doubtful, it waits after each.
    """
    return Expected(
        rf"attention::cuda::forward_sm90_kernel<.*Shape<{shape}>",
        {"HGMMA": products, "UTMALDG": 1, "UTMASTG": 1, "STSM": 1, "USETMAXREG": 2},
        {"HGMMA": products, "WARPGROUP.DEPBAR": stages, "WARPGROUP.ARRIVE": stages},
        lacks=LANE_BY_LANE,
        architectures=("sm_90a",),
    )


def _attention_backward_sm90(
    D: int, options: bool, steps: int, queries: int, starts: int, waits: int
) -> Expected:
    """The same of the backward: `steps` of so many queries a block.

    Scores before the loops over masked and whole blocks, dQ of the last block behind them.
    """
    scores, sums, dq = D // 16, queries // 16, 128 // 16
    loops = 1 if options else 2
    products = scores + loops * (steps * 2 * (scores + sums) + dq) + dq
    adds = {"UBLKRED": 1, "FENCE.VIEW.ASYNC.G": 1}
    return Expected(
        rf"attention::cuda::backward_sm90_kernel<.*Shape<{D}, {str(options).lower()}>",
        {"HGMMA": products, "UTMALDG": 4, **adds, "STSM": 8, "USETMAXREG": 2},
        {"HGMMA": products, "WARPGROUP.ARRIVE": starts, "WARPGROUP.DEPBAR": waits},
        architectures=("sm_90a",),
    )


def _int8_sm90(kernel: str, shape: int, columns: int, **holds: int) -> Expected:
    """Four products a stage of one accumulator, none merged, and one wait in the loop over them."""
    product = f"IGMMA.64x{columns}x32.S8.S8"
    return Expected(
        rf"int8::cuda::gemm_sm90_{kernel}_kernel<.*ShapeSm90\){shape}>",
        {product: 4, "UTMALDG": 2, **holds},
        {"IGMMA": 4, "WARPGROUP.DEPBAR": 2, "WARPGROUP.ARRIVE": 2},
        architectures=("sm_90a",),
    )


EXPECTED = (
    Expected("norm::cuda::forward_usual_kernel", WIDE),
    Expected("norm::cuda::forward_any_kernel<.*, true>", WIDE),
    Expected("norm::cuda::backward_usual_kernel", WIDE),
    Expected("norm::cuda::backward_(rows|columns)_kernel<.*, true>", WIDE),
    # The first block of keys, loops over masked and whole ones, the last product.
    _attention_sm90("64, 64, false", 3 * 64 // 16 + 3 * 128 // 16, 6),
    _attention_sm90("128, 128, false", 3 * 128 // 16 + 3 * 128 // 16, 6),
    _attention_sm90("192, 128, false", 3 * 192 // 16 + 3 * 128 // 16, 6),
    _attention_sm90("256, 256, false", 3 * 256 // 16 + 3 * 64 // 16, 6),
    # With options all blocks are masked.
    _attention_sm90("64, 64, true", 2 * 64 // 16 + 2 * 64 // 16, 4),
    _attention_sm90("128, 128, true", 2 * 128 // 16 + 2 * 64 // 16, 4),
    _attention_sm90("192, 128, true", 2 * 192 // 16 + 2 * 64 // 16, 4),
    _attention_backward_sm90(64, False, 2, 64, 20, 20),
    _attention_backward_sm90(128, False, 1, 64, 12, 12),
    _attention_backward_sm90(64, True, 2, 64, 12, 12),
    _attention_backward_sm90(128, True, 2, 32, 12, 12),
    Expected(
        "attention::cuda::backward_finish_kernel",
        {"LDG.128": 8, "STSM": 4, "STG.128": 1},
        architectures=("sm_90a",),
    ),
    *(
        _attention_sm80("forward_sm80_kernel", "weft::b?f16", {"HMMA.16816.F32": n, **PRODUCTS}, t)
        for t, n in ((r".*ForwardKernel\)[24]>", 32), (r", 64, .*\)3>", 16), (r", 128, .*\)3>", 32))
    ),
    _attention_sm80("forward_sm80_kernel", "float", {"HMMA.1688.F32.TF32": 48, "LDGSTS.128": 4}),
    _attention_sm80(
        "forward_sm80_kernel", "weft::gpu::tf32", {"HMMA.1688.F32.TF32": 16, "LDGSTS.128": 4}
    ),
    _attention_sm80(
        "backward_kernel", "weft::b?f16", {"HMMA.16816.F32": 24, "LDGSTS.128": 8, "LDSM": 14}
    ),
    _attention_sm80(
        "backward_kernel", "float", {"HMMA.1688.F32.TF32": 60, "LDGSTS.128": 8, "LDSM": 4}
    ),
    _attention_sm80(
        "backward_kernel", "weft::gpu::tf32", {"HMMA.1688.F32.TF32": 20, "LDGSTS.128": 8, "LDSM": 4}
    ),
    # Eight splits at a time.
    Expected("attention::cuda::merge_splits_kernel", {"LDG.64": 8, "MUFU.EX2": 8}),
    Expected("attention::cuda::append_kernel<.*, true>", {"LDG.128": 2, "STG.128": 2}),
    Expected("attention::cuda::rotary_kernel<.*, true>", {"LDG.128": 2, "STG.128": 2}),
    Expected("attention::cuda::merge_kernel<.*, true>", {"LDG.128": 1}),
    _int8_sm90("registers", 0, 256, UTMASTG=1, STSM=16, USETMAXREG=2),
    _int8_sm90("shared", 1, 128),
    _int8_sm90("shared", 2, 64),
    _int8_sm90("shared", 3, 16),
    *(
        Expected(
            rf"int8::cuda::gemm_sm90_shared_kernel<.*WeightOnlyShape<.*, {rows}u",
            {f"HGMMA.64x{rows}x16.F32": 8, "UTMALDG": 3, "LDS.U16": 32},
            {"HGMMA": 8, "WARPGROUP.DEPBAR": 2, "WARPGROUP.ARRIVE": 2},
            architectures=("sm_90a",),
        )
        for rows in (64, 128)
    ),
    # A stage of K, 128 bytes, of each tile: large, medium, small.
    *(
        Expected(
            rf"int8::cuda::gemm_sm80_kernel<.*GemmShape\){shape}>",
            {"IMMA.16832.S8.S8": products, "LDSM": loads, "LDGSTS.128": 24},
            {"IMMA": products, "LDSM": loads},
        )
        for shape, products, loads in ((0, 64, 24), (1, 32, 16), (2, 16, 12))
    ),
    # Four columns of a part; an outlier's products with 8 rows by four columns.
    Expected("int8::cuda::finish_parts_kernel", {"LDG.128": 4, "STG.128": 1}),
    Expected("int8::cuda::finish_outliers_kernel", {"LDG.128": 4, "LDS.128": 2, "FFMA": 64}),
    Expected("int8::cuda::weight_only_kernel<.*, 8, 8>", {"HMMA.16816.F32": 8, "LDG.128": 8}),
    Expected("int8::cuda::weight_only_kernel<.*, 4, 8>", {"HMMA.16816.F32": 16, "LDG.128": 8}),
    Expected("int8::cuda::weight_only_kernel<.*, 32>", {"HMMA.16816.F32": 32, "LDG.128": 16}),
    Expected("int8::cuda::quantize_kernel<.*, true>", {"LDG.128": 2}),
    # Vectors of all peers under way at once; what is told and awaited at the scope of the system.
    Expected(
        "comm::cuda::(one_shot|two_shot|reduce_scatter)_kernel",
        {"LDG.128": 9, "STG.128": 2, **TURNS},
    ),
    Expected("comm::cuda::all_gather_kernel", {"LDG.128": 2, "STG.128": 1, **TURNS}),
    Expected("comm::cuda::int8_kernel", {"LDG.128": 2, "STG.128": 1, **TURNS}),
    Expected("comm::cuda::multicast_kernel", {"LDGMC": 1, **TURNS}, architectures=("sm_90a",)),
)


@dataclass
class Kernel:
    """One kernel on one architecture."""

    name: str
    architecture: str
    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    """By opcode with all modifiers, as in LDG.E.128.CONSTANT."""

    def count(self, instruction: str) -> int:
        """How many instructions have this opcode and at least these modifiers."""
        opcode, *modifiers = instruction.split(".")
        return sum(
            n
            for text, n in self.instructions.items()
            if (parts := text.split("."))[0] == opcode and set(modifiers) <= set(parts[1:])
        )


def tool(name: str) -> str:
    """cuobjdump or nvdisasm: on PATH, beside nvcc, or the one that PyPI's package brings."""
    nvidia = importlib.util.find_spec("nvidia")
    places = (
        [Path(p) / "cu13/bin" for p in (nvidia.submodule_search_locations or [])] if nvidia else []
    )
    nvcc = shutil.which("nvcc")
    if nvcc:
        places.append(Path(nvcc).resolve().parent)
    for place in (None, *places):
        if found := shutil.which(name, path=place):
            return found
    raise SystemExit(f"{name} was not found: pip install nvidia-cuda-{name}")


def dump(library: Path, option: str) -> str:
    return subprocess.check_output([tool("cuobjdump"), option, str(library)], text=True)


ARCHITECTURE = re.compile(r"^arch = (\w+)$")
FUNCTION = re.compile(r"^\s*Function\s*:?\s+(\w+):?\s*$")
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+ )?([A-Z][A-Za-z0-9_.]*)")


def parse(resources: str, sass: str) -> list[Kernel]:
    """The kernels of cuobjdump's two listings, by mangled name."""
    kernels: dict[tuple[str, str], Kernel] = {}
    for kernel, line in _by_kernel(resources, kernels):
        if found := RESOURCES.search(line):
            kernel.registers, kernel.stack, kernel.shared, kernel.local = map(int, found.groups())
    for kernel, line in _by_kernel(sass, kernels):
        if found := INSTRUCTION.match(line):
            kernel.instructions[found[1]] += 1
    return list(kernels.values())


def _by_kernel(text: str, kernels: dict[tuple[str, str], Kernel]) -> Iterator[tuple[Kernel, str]]:
    """Each line with the kernel that it is about."""
    architecture, kernel = "", None
    for line in text.splitlines():
        if found := ARCHITECTURE.match(line):
            architecture, kernel = found[1], None
        elif found := FUNCTION.match(line):
            key = architecture, found[1]
            kernel = kernels.setdefault(key, Kernel(found[1], architecture))
        elif kernel is not None:
            yield kernel, line


def demangle(kernels: Iterable[Kernel]) -> None:
    """Names as C++ has them, without return type, anonymous namespaces and parameters."""
    kernels = list(kernels)
    names = "\n".join(kernel.name for kernel in kernels)
    plain = subprocess.check_output(["c++filt"], input=names, text=True).splitlines()
    for kernel, name in zip(kernels, plain, strict=True):
        name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", name)
        kernel.name = re.sub(r"^void ", "", name)
        if (end := kernel.name.rfind("(")) > 0:
            kernel.name = kernel.name[:end]


def violations(kernels: Iterable[Kernel], expected: Iterable[Expected]) -> Iterator[str]:
    kernels = list(kernels)
    for kernel in kernels:
        if kernel.stack or kernel.local:
            yield (
                f"{kernel.architecture} {kernel.name}: {kernel.stack} bytes of stack and "
                f"{kernel.local} of local memory, expected none"
            )
    for rule in expected:
        for architecture in rule.architectures:
            meant = [
                k for k in kernels
                if k.architecture == architecture and re.search(rule.kernels, k.name)
            ]  # fmt: skip
            if not meant:
                yield f"{architecture}: no kernel is called {rule.kernels}"
            for kernel in meant:
                for instruction, least in rule.holds.items():
                    if (n := kernel.count(instruction)) < least:
                        yield (
                            f"{architecture} {kernel.name}: {n} of {instruction}, expected at "
                            f"least {least}"
                        )
                for instruction, most in rule.most.items():
                    if (n := kernel.count(instruction)) > most:
                        yield (
                            f"{architecture} {kernel.name}: {n} of {instruction}, expected at "
                            f"most {most}"
                        )
                for instruction in rule.lacks:
                    if n := kernel.count(instruction):
                        yield f"{architecture} {kernel.name}: {n} of {instruction}, expected none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("library", type=Path)
    library = parser.parse_args().library
    kernels = parse(dump(library, "--dump-resource-usage"), dump(library, "-sass"))
    demangle(kernels)
    print(f"{'registers':>9} {'shared':>6} {'SASS':>6} {'LDG.128':>7} {'STG.128':>7}  kernel")
    for kernel in sorted(kernels, key=lambda k: (k.architecture, k.name)):
        total, wide = kernel.instructions.total(), [kernel.count(i) for i in ("LDG.128", "STG.128")]
        print(
            f"{kernel.registers:9} {kernel.shared:6} {total:6} {wide[0]:7} {wide[1]:7}  "
            f"{kernel.architecture} {kernel.name}"
        )
    found = list(violations(kernels, EXPECTED))
    print(*found, sep="\n", file=sys.stderr)
    print(f"{len(kernels)} kernels, {len(found)} violations")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
