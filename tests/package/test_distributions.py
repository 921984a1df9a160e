"""The source distribution and the wheel, built and installed as a user would."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import weft

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
pytest.importorskip("build")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def only(paths: Iterator[Path]) -> Path:
    (path,) = paths
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out)
    return only(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist: what is missing there shows here. Unoptimised, to be quick."""
    out = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(out)
    source = out / sdist.name.removesuffix(".tar.gz")
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out),
        cwd=source,
        CMAKE_BUILD_TYPE="Debug",
        WEFT_CUDA="off",
    )
    return only(out.glob("*.whl"))


def test_sdist_holds_the_sources_and_nothing_built(sdist: Path):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("csrc", "cmake", "python")
    sources = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
        if not any(part.endswith(".egg-info") for part in path.parts)
    }
    top = {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert sources | top <= held
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]


def test_wheel_holds_the_package(wheel: Path):
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(ROOT / "python")) for path in (ROOT / "python/weft").rglob("*.py")
    }
    assert modules | {"weft/py.typed", "weft/libweft.so"} <= held
    native = {name for name in held if name.endswith(".so")}
    extension = {name for name in native if re.match(r"weft/_C\..*\.so", name)}
    assert native == extension | {"weft/libweft.so"} and len(extension) == 1
    assert not [name for name in held if name.startswith(("csrc", "tests", "bench"))]


def test_wheel_runs_from_where_it_is_installed(wheel: Path, tmp_path: Path):
    target = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel)
    probe = (
        "import json, torch, weft; y = weft.rms_norm(torch.full((2, 4), 3.0), (4,), eps=0.0);"
        "print(json.dumps([weft.__file__, weft.__version__, y.tolist()]))"
    )
    printed = run(sys.executable, "-c", probe, cwd=tmp_path, PYTHONPATH=str(target))
    file, version, y = json.loads(printed)
    assert Path(file).is_relative_to(target)
    assert version == weft.__version__ and f"weft-{version}-" in wheel.name
    assert y == [[1.0] * 4] * 2


def test_the_command_line_is_installed(wheel: Path):
    scripts = zipfile.ZipFile(wheel).read(f"weft-{weft.__version__}.dist-info/entry_points.txt")
    assert b"weft = weft.cli:main" in scripts


def test_build_requirements_stand_in_both_places():
    """requirements/build.txt is for builds without isolation, pyproject.toml for those with it."""
    tomllib = pytest.importorskip("tomllib")
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    lines = (ROOT / "requirements/build.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith(("#", "-r"))}
    assert listed == {name for name in required if not name.startswith("torch")}


def configure(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As `make cuda` does."""
    tools = Path(sys.executable).parent
    command = [
        *(tools / "cmake", "-S", ROOT, "-B", tree, "-G", "Ninja", "-DWEFT_CUDA=on"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"),
    ]
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@needs_nvcc
def test_cuda_library_builds_beside_any_torch():
    tree = ROOT / "build/cuda"
    configured = configure(tree)
    assert configured.returncode == 0, configured.stderr
    run(Path(sys.executable).parent / "cmake", "--build", tree, "--target", "weft_cuda")
    needed = run("readelf", "-d", tree / "libweft_cuda.so")
    assert "[libtorch_cuda.so]" in needed
    assert "libcudart" not in needed  # linked in: the one of the CUDA that compiled it


@needs_nvcc
def test_an_architecture_list_that_cannot_be_read_is_an_error(tmp_path: Path):
    configured = configure(tmp_path, TORCH_CUDA_ARCH_LIST="8.0 Hopper")
    assert configured.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST has 'Hopper', expected entries like 8.0" in configured.stderr
