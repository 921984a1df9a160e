"""weft.attention in 16 bits over several tiles of queries and blocks of keys, whole and cut off.

Kernels have tiles of their own for each head size, loops of their own for blocks that need a mask,
and blocks that take one tile after the other.
"""

from __future__ import annotations

import pytest
import torch

from backends import Backend

from .cases import Shape, check, name, problem

each_half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
HEADS = ((64, 64), (128, 128), (192, 128), (256, 256), (80, 72), (160, 96))
WINDOWS = {"full": {}, "causal": {"causal": True}, "window": {"window_size": (150, 20)}}


@each_half
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("D, Dv", HEADS)
def test_head_sizes(backend: Backend, dtype: torch.dtype, D: int, Dv: int, window: str) -> None:
    shape = Shape(B=1, S=200, T=330, H=2, K=1, D=D, Dv=Dv)
    check(problem(("sinks",), dtype, shape, backend.device) | WINDOWS[window])


OPTIONS = (
    ("causal", "softcap", "bias_of_heads"),
    ("mask", "alibi"),
    ("causal", "dropout"),
    ("scale", "bias_float32", "mask_of_keys", "dropout"),
)


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_options(backend: Backend, options: tuple[str, ...], D: int) -> None:
    shape = Shape(B=1, S=140, T=205, H=2, K=2, D=D, Dv=D)
    check(problem(options, torch.bfloat16, shape, backend.device))


@pytest.mark.parametrize("window", ["full", "causal"])
def test_rounds(backend: Backend, window: str) -> None:
    """More tiles than a grid has blocks, more queries than keys."""
    shape = Shape(B=2, S=300, T=170, H=6, K=3, D=64, Dv=64)
    check(problem((), torch.bfloat16, shape, backend.device) | WINDOWS[window])


@pytest.mark.parametrize("D", [64, 128, 256])
def test_lengths(backend: Backend, D: int) -> None:
    """Full, empty, half, one: tiles in which a sequence ends, and tiles of nothing."""
    options = ("causal", "seqused_q", "seqused_k")
    shape = Shape(B=4, S=150, T=200, H=1, K=1, D=D, Dv=D)
    check(problem(options, torch.bfloat16, shape, backend.device))
