"""The floors of csrc/README.md are kept, and the check that says so sees a violation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

spec = importlib.util.spec_from_file_location("check_floors", ROOT / "tools/check_floors.py")
check_floors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_floors)

TREE = {
    "csrc/core/dtype.h": "#include <cstdint>",
    "csrc/cpu/vec.h": '#include "core/dtype.h"',
    "csrc/gpu/launch.h": '#include "core/dtype.h"',
    "csrc/gpu/ptx/launch.h": "#include <cuda_runtime.h>",
    "csrc/gpu/sim/launch.h": '#include "gpu/launch.h"',
    "csrc/torch/tensor.h": "#include <torch/csrc/stable/tensor.h>",
    "csrc/norm/params.h": '#include "core/dtype.h"',
    "csrc/norm/ops.h": '#include "norm/params.h"\n#include "torch/tensor.h"',
    "csrc/norm/cpu/forward.cpp": '#include "cpu/vec.h"\n#include "norm/params.h"',
    "csrc/norm/cuda/forward.cu": '#include "gpu/launch.h"\n#include "norm/params.h"',
    "csrc/int8/params.h": "",
    "csrc/python/module.cpp": "#include <pybind11/pybind11.h>",
    "csrc/library.cpp": '#include <torch/csrc/stable/library.h>\n#include "norm/ops.h"',
    "python/weft/ops/norm.py": "import torch",
    "python/weft/nn/norm.py": "from ..ops import norm",
    "python/weft/reference/norm.py": "import torch",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_this_repository_keeps_its_floors():
    assert check_floors.check(ROOT) == []


def test_a_tree_that_keeps_them_passes(tree: Path):
    assert check_floors.check(tree) == []


@pytest.mark.parametrize(
    "file, line",
    [
        ("csrc/core/dtype.h", '#include "cpu/vec.h"'),
        ("csrc/cpu/vec.h", '#include "gpu/launch.h"'),
        ("csrc/cpu/vec.h", "#include <torch/headeronly/util/Half.h>"),
        ("csrc/gpu/launch.h", "#include <cuda_runtime.h>"),
        ("csrc/gpu/sim/launch.h", "#include <cuda_runtime.h>"),
        ("csrc/gpu/sim/launch.h", '#include "gpu/ptx/launch.h"'),
        ("csrc/cpu/vec.h", '#include "torch/tensor.h"'),
        ("csrc/norm/params.h", '#include "int8/params.h"'),
        ("csrc/norm/params.h", "#include <torch/csrc/stable/tensor.h>"),
        ("csrc/norm/params.h", '#include "torch/tensor.h"'),
        ("csrc/norm/cpu/forward.cpp", '#include "gpu/launch.h"'),
        ("csrc/norm/cpu/forward.cpp", "#include <cuda_runtime.h>"),
        ("csrc/norm/cuda/forward.cu", '#include "cpu/vec.h"'),
        ("csrc/norm/cpu/forward.cpp", '#include "norm/cuda/forward.cu"'),
        ("csrc/norm/cpu/forward.cpp", '#include "vec.h"'),
        ("csrc/torch/tensor.h", "#include <ATen/ATen.h>"),
        ("csrc/torch/tensor.h", "#include <torch/extension.h>"),
        ("csrc/torch/tensor.h", "#include <Python.h>"),
        ("csrc/library.cpp", "#include <cuda_runtime.h>"),
        ("python/weft/ops/norm.py", "from weft import reference"),
        ("python/weft/ops/norm.py", "import weft.nn"),
        ("python/weft/ops/norm.py", "from ..nn import norm"),
        ("python/weft/nn/norm.py", "from ..reference.norm import layer_norm"),
    ],
)
def test_a_violation_is_seen(tree: Path, file: str, line: str):
    (tree / file).write_text(f"{TREE[file]}\n{line}\n")
    (violation,) = check_floors.check(tree)
    assert violation.startswith(file)
