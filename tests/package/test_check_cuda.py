"""tools/check_cuda.py finds spills and missing instructions."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("check_cuda", ROOT / "tools/check_cuda.py")
check_cuda = importlib.util.module_from_spec(spec)
__import__("sys").modules["check_cuda"] = check_cuda  # dataclasses look their module up
spec.loader.exec_module(check_cuda)
Expected = check_cuda.Expected

COPY = "_ZN4weft4norm36_GLOBAL__N__89b8bf71_4_t_cu_0078bb215copy4IiEEvPK6float4PS3_i"
RESOURCES = f"""
Fatbin elf code:
================
arch = sm_80
host = linux

Resource usage:
 Common:
  GLOBAL:0
 Function {COPY}:
  REG:10 STACK:0 SHARED:16 LOCAL:0 CONSTANT[0]:372 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Function {COPY}:
  REG:14 STACK:8 SHARED:16 LOCAL:4 CONSTANT[0]:548 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = "".join(
    f"""
Fatbin elf code:
================
arch = {architecture}

	code for {architecture}
		Function : {COPY}
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;         /* 0x00000a0000017a02 */
                                                                  /* 0x000fe40000000f00 */
        /*0010*/              @!P0 {load} R4, [R2.64] ;  /* 0x00005c0000007a02 */
        /*0020*/               @P0 EXIT ;                         /* 0x0000000000007a02 */
        /*0030*/                   STG.E.128 [R4.64], R8 ;        /* 0x0000000000007a02 */
"""
    for architecture, load in (("sm_80", "LDG.E.128.CONSTANT"), ("sm_90a", "LDG.E.64"))
)


@pytest.fixture
def kernels() -> list:
    found = check_cuda.parse(RESOURCES, SASS)
    if shutil.which("c++filt"):
        check_cuda.demangle(found)
        assert {k.name for k in found} == {"weft::norm::copy4<int>"}
    return found


def test_listings_are_read(kernels: list) -> None:
    old, new = kernels
    assert (old.architecture, old.registers, old.stack, old.shared) == ("sm_80", 10, 0, 16)
    assert (new.architecture, new.registers, new.stack, new.local) == ("sm_90a", 14, 8, 4)
    assert old.instructions.total() == new.instructions.total() == 4
    assert old.count("LDG.128") == 1 and old.count("LDG.64") == 0 and old.count("STG.128") == 1
    assert new.count("LDG.128") == 0 and new.count("LDG") == 1 and new.count("EXIT") == 1


def test_violations_name_kernel_and_architecture(kernels: list) -> None:
    rules = [Expected("copy4", {"LDG.128": 1, "STG.128": 1}, lacks=("EXIT",))]
    local, *found = check_cuda.violations(kernels, rules)
    assert local.startswith("sm_90a") and "8 bytes of stack and 4 of local memory" in local
    assert [text.partition(" ")[0] for text in found] == ["sm_80", "sm_90a", "sm_90a"]
    assert "1 of EXIT, expected none" in found[0]
    assert "0 of LDG.128, expected at least 1" in found[1]


def test_more_than_the_most_is_a_violation(kernels: list) -> None:
    rule = Expected("copy4", most={"EXIT": 0}, architectures=("sm_80",))
    *_, found = check_cuda.violations(kernels, [rule])
    assert found.startswith("sm_80") and found.endswith("1 of EXIT, expected at most 0")


def test_a_rule_must_mean_some_kernel(kernels: list) -> None:
    found = list(check_cuda.violations(kernels, [Expected("gone", architectures=("sm_80",))]))
    assert found[1:] == ["sm_80: no kernel is called gone"]
