"""What the library says of itself, and what it says where it is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import weft
from weft import _C, _library


def test_build_info():
    info = _C.build_info()
    assert info["version"] == weft.__version__
    assert re.match(r"(gcc|clang) \d+", info["compiler"])
    assert info["isa_levels"][0] == "generic"
    assert info["build_type"] in {"Debug", "Release", "RelWithDebInfo", "MinSizeRel"}
    assert re.match(r"\d+\.\d+", info["torch_version"])
    assert info["torch_target"] == "2.10"
    assert info["git_commit"] is None or re.fullmatch(
        r"[0-9a-f]{7,40}(-dirty)?", info["git_commit"]
    )


@pytest.mark.parametrize("version", ["2.9.1", "1.13.1+cu117", "2.9.0a0+git1234567"])
def test_an_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch, version: str):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(
        ImportError, match=r"^weft needs torch >= 2\.10, found " + re.escape(version)
    ):
        _library.load()


def test_a_missing_build_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(_library, "_DIRECTORY", tmp_path)
    with pytest.raises(ImportError, match="weft is not built: .* does not exist"):
        _library.load()


def test_why_there_is_no_cuda():
    if torch.version.cuda is None:
        assert _library.why_no_cuda == "this build of torch has no CUDA"
    else:
        assert _library.why_no_cuda is None or "libweft_cuda" in _library.why_no_cuda
