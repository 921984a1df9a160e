"""weft.attention in 16 bits over several tiles of queries and blocks of keys, whole and cut off.

Kernels have tiles of their own for each head size, loops of their own for blocks that need a mask,
and blocks that take one tile after the other.
"""

from __future__ import annotations

import pytest
import torch

import weft
from backends import Backend

from .cases import (
    Shape,
    check,
    check_backward,
    integers,
    name,
    pack_keys,
    pack_queries,
    page,
    problem,
    quantize_cache,
    quantize_out,
)

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


@pytest.mark.parametrize("D, Dv", HEADS[:3])
@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_options(backend: Backend, options: tuple[str, ...], D: int, Dv: int) -> None:
    shape = Shape(B=1, S=140, T=205, H=2, K=2, D=D, Dv=Dv)
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


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("options", [("causal", "sinks"), *OPTIONS[:3]], ids=name)
def test_few_rows(backend: Backend, options: tuple[str, ...], D: int) -> None:
    """Decoding: a tile whose rows the warps of a block share."""
    shape = Shape(B=1, S=2, T=330, H=8, K=1, D=D, Dv=D - 8)
    check(problem((*options, "splits"), torch.bfloat16, shape, backend.device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("by_row", [True, False])
def test_few_rows_of_int8(backend: Backend, by_row: bool, dtype: torch.dtype) -> None:
    shape = Shape(B=2, S=1, T=150, H=12, K=1, D=128, Dv=128)
    call = problem(("seqused_k",), dtype, shape, backend.device)
    check(page(quantize_cache(call, by_row), 16))


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("paged", [False, True])
def test_packed(backend: Backend, paged: bool, D: int) -> None:
    """Prefill and decoding in one call: tiles of all sequences, one after the other."""
    shape = Shape(B=5, S=200, T=210, H=2, K=1, D=D, Dv=D)
    call = problem(("causal",), torch.bfloat16, shape, backend.device)
    call = pack_queries(call, [200, 1, 0, 130, 3])
    check(page(call, 16) if paged else pack_keys(call, [210, 1, 7, 130, 90]))


@pytest.mark.parametrize(
    "D, window, options, page_size",
    [
        (64, "full", (), 64),
        (64, "window", ("alibi",), 16),
        (128, "causal", ("sinks",), 48),
        (128, "window", (), 256),
        (192, "causal", (), 16),
        (256, "window", (), 32),
    ],
    ids=name,
)
def test_pages(
    backend: Backend, D: int, window: str, options: tuple[str, ...], page_size: int
) -> None:
    """A chunk of a prompt over pages that blocks of keys have parts of, or that have blocks."""
    shape = Shape(B=3, S=140, T=330, H=2, K=1, D=D, Dv=D)
    call = problem(options, torch.bfloat16, shape, backend.device) | WINDOWS[window]
    call["seqused_k"] = integers([330, 0, 161], backend.device)
    found = check(page(call, page_size))
    if backend.name.endswith("sm90"):  # whose kernel is the same
        assert torch.equal(found, check(call))


@pytest.mark.parametrize("D", [64, 200])
def test_decoding_beside_prompts(backend: Backend, D: int) -> None:
    """Each kind has the bits that it has without the other; who decodes has its keys split."""
    shape = Shape(B=3, S=40, T=330, H=6, K=2, D=D, Dv=D)
    call = problem(("causal", "sinks"), torch.bfloat16, shape, backend.device)
    call["seqused_k"] = integers([330, 77, 290], backend.device)
    call = pack_queries(page(call, 16), [1, 40, 5])
    both = check(call)
    check(quantize_out(call, D))
    for used in ([0, 40, 0], [1, 0, 5]):
        alone = weft.attention(**call, seqused_q=integers(used, backend.device))
        for first, n in zip((0, 1, 41), used, strict=True):
            assert torch.equal(alone[first : first + n], both[first : first + n])


# ---------------------------------------------------------------------------------------- backward


TRAINED = (
    *((D, D, torch.bfloat16, window) for D in (64, 128) for window in WINDOWS),
    (80, 72, torch.float16, "causal"),
    (24, 128, torch.float16, "causal"),
)


@pytest.mark.parametrize("D, Dv, dtype, window", TRAINED, ids=name)
def test_backward(backend: Backend, D: int, Dv: int, dtype: torch.dtype, window: str) -> None:
    shape = Shape(B=1, S=140, T=270, H=2, K=1, D=D, Dv=Dv)
    check_backward(problem(("sinks",), dtype, shape, backend.device) | WINDOWS[window])


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("options", (*OPTIONS, ("window", "bias", "alibi_of_batch")), ids=name)
def test_backward_options(backend: Backend, options: tuple[str, ...], D: int) -> None:
    """The last: blocks of bias that no query sees have gradients, too."""
    shape = Shape(B=1, S=140, T=270, H=2, K=1, D=D, Dv=D)
    check_backward(problem(options, torch.bfloat16, shape, backend.device))


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("S, T, window", [(230, 140, (-1, 40)), (70, 400, (20, 0))])
def test_backward_windows(
    backend: Backend, S: int, T: int, window: tuple[int, int], D: int
) -> None:
    """Queries that see nothing, keys that nobody sees."""
    call = problem((), torch.bfloat16, Shape(B=2, S=S, T=T, H=1, K=1, D=D, Dv=D), backend.device)
    check_backward(call | {"window_size": window})


@pytest.mark.parametrize("D", [64, 128])
def test_backward_lengths(backend: Backend, D: int) -> None:
    options = ("causal", "seqused_q", "seqused_k")
    shape = Shape(B=4, S=100, T=150, H=2, K=1, D=D, Dv=D)
    check_backward(problem(options, torch.bfloat16, shape, backend.device))


@pytest.mark.parametrize("D", [64, 128])
def test_backward_packed(backend: Backend, D: int) -> None:
    """Sequences that end within tiles, with their neighbours' rows behind them."""
    lengths = [140, 3, 64]
    shape = Shape(B=3, S=140, T=140, H=2, K=2, D=D, Dv=D)
    call = problem(("causal",), torch.bfloat16, shape, backend.device)
    check_backward(pack_keys(pack_queries(call, lengths), lengths))


def test_sinks_of_many_rows(backend: Backend) -> None:
    """Their gradients are made of several parts."""
    shape = Shape(B=2, S=2100, T=3, H=1, K=1, D=1, Dv=1)
    check_backward(problem(("sinks",), torch.float32, shape, backend.device))
