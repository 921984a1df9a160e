"""Builds weft's native libraries with CMake and ninja, and puts them into the package.

Read from the environment: WEFT_CUDA (auto, on, off), WEFT_SANITIZE, WEFT_BUILD_DIR, CMAKE_ARGS,
CMAKE_BUILD_TYPE, CMAKE_BUILD_PARALLEL_LEVEL; and what CMake itself reads: CXX, CXXFLAGS, CUDACXX…
"""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str, directory: str) -> str:
    """The executable that the PyPI package `name` brings, or else the one on PATH.

    The package's attribute `directory` says where the executable lies: going by it finds the one of
    a virtual environment that is not activated.
    """
    try:
        path = getattr(importlib.import_module(name), directory)
    except (ImportError, AttributeError):
        path = ""
    found = shutil.which(name, path=path) or shutil.which(name)
    if found is None:
        raise SystemExit(f"weft needs {name} to build: pip install {name}")
    return found


def cmake(*arguments: str | Path) -> None:
    subprocess.check_call([tool("cmake", "CMAKE_BIN_DIR"), *arguments], cwd=ROOT)


class CleanBuild(build):
    """Starts from an empty package: setuptools would ship what earlier builds left there."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """The tree is kept, one for each Python, so that building again costs only what changed."""

    def run(self) -> None:
        package = (ROOT / "python" if self.inplace else Path(self.build_lib).resolve()) / "weft"
        python_tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        tree = os.environ.get("WEFT_BUILD_DIR", f"build/{python_tag}")
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(len(os.sched_getaffinity(0))))
        # All of them each time: the tree remembers the last, and pip's paths differ in each build.
        options = {
            "CMAKE_BUILD_TYPE": os.environ.get("CMAKE_BUILD_TYPE", "Release"),
            "CMAKE_MAKE_PROGRAM": tool("ninja", "BIN_DIR"),
            "Python_EXECUTABLE": sys.executable,
            "WEFT_CUDA": os.environ.get("WEFT_CUDA", "auto"),
            "WEFT_SANITIZE": os.environ.get("WEFT_SANITIZE", ""),
        }
        settings = [f"-D{name}={value}" for name, value in options.items()]
        settings += shlex.split(os.environ.get("CMAKE_ARGS", ""))

        cmake("-S", ROOT, "-B", tree, "-G", "Ninja", *settings)
        cmake("--build", tree, "--parallel", jobs)
        for pattern in ("libweft*.so", "_C.*.so"):
            for old in package.glob(pattern):
                old.unlink()
        cmake("--install", tree, "--prefix", package)


setup(
    ext_modules=[Extension("weft._C", sources=[])],  # CMake knows the sources
    cmdclass={"build": CleanBuild, "build_ext": CMakeBuild},
)
