"""The instruction-set level: what is found, what is forced, and what is refused."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest

from weft import _C

LEVELS = ["generic", "avx2", "avx512", "avx512_bf16"]  # weakest first
HERE = [name for name, available in _C.isa_levels().items() if available]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = _C.isa_level()
    yield
    _C.force_isa(before)


def level_in_new_process(wanted: str) -> subprocess.CompletedProcess[str]:
    script = "from weft import _C; print(_C.isa_level())"
    environment = {**os.environ, "WEFT_CPU_ISA": wanted}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )


def test_levels_are_known_and_nested():
    """Whoever has a level has all below it."""
    levels = _C.isa_levels()
    assert list(levels) == LEVELS
    assert list(levels.values()) == sorted(levels.values(), reverse=True)
    assert levels["generic"]


def test_what_is_missing_has_a_reason():
    for name, available in _C.isa_levels().items():
        assert bool(_C.isa_why_not(name)) is not available
    with pytest.raises(ValueError, match="'amx' is no level that weft knows"):
        _C.isa_why_not("amx")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="CPUID is an instruction of x86")
def test_features_agree_with_the_levels():
    features = _C.cpu_features()
    if _C.isa_levels()["avx512_bf16"]:
        assert all(features.values())
    if not features["avx2"]:
        assert not _C.isa_levels()["avx2"]


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="asks Linux")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks for flags of x86")
def test_features_agree_with_the_system():
    with open("/proc/cpuinfo") as file:
        flags = next(line.split() for line in file if line.startswith("flags"))
    assert _C.cpu_features() == {name: name in flags for name in _C.cpu_features()}


@pytest.mark.parametrize("name", HERE)
def test_force(name: str):
    _C.force_isa(name)
    assert _C.isa_level() == name


@pytest.mark.parametrize("name", ["amx", "", "AVX2", "avx512_"])
def test_an_unknown_name_is_refused_and_changes_nothing(name: str):
    before = _C.isa_level()
    with pytest.raises(RuntimeError) as error:
        _C.force_isa(name)
    assert str(error.value) == (
        f"weft.force_isa: the level is '{name}', which is no level that weft knows; "
        f"available: {', '.join(HERE)}"
    )
    assert _C.isa_level() == before


@pytest.mark.skipif(len(HERE) == len(LEVELS), reason="every level can run here")
def test_a_level_that_cannot_run_here_is_refused():
    missing = LEVELS[len(HERE)]
    with pytest.raises(RuntimeError, match=f"'{missing}', which is not available here: "):
        _C.force_isa(missing)


def test_environment_chooses_the_level():
    assert level_in_new_process("generic").stdout.strip() == "generic"


def test_a_wrong_environment_is_an_error_at_first_use_and_not_at_import():
    done = level_in_new_process("sse9")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: weft: WEFT_CPU_ISA is 'sse9', which is no level that weft knows; "
        f"available: {', '.join(HERE)}"
    )


def test_an_empty_environment_is_none():
    assert level_in_new_process("").stdout.strip() == HERE[-1]
