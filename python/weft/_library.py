"""Loads the native libraries that lie beside this file."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch  # first: its libraries hold what ours are linked to

_DIRECTORY = Path(__file__).parent
_MINIMUM_TORCH = (2, 10)

why_no_cuda: str | None = None
"""Why libweft_cuda.so is not loaded; None if it is."""


def load() -> None:
    """Registers ``torch.ops.weft``. ImportError where that cannot be."""
    _check_torch()
    library = _DIRECTORY / "libweft.so"
    if not library.exists():
        raise ImportError(
            f"weft is not built: {library} does not exist. "
            "In a source tree run `pip install -e .`, or `make`"
        )
    torch.ops.load_library(library)
    global why_no_cuda
    why_no_cuda = _load_cuda()
    try:
        from . import _C  # noqa: F401
    except ModuleNotFoundError:
        raise ImportError(
            f"weft is built, but not for this Python: {_DIRECTORY} holds no weft._C for it. "
            "Install weft again with this Python"
        ) from None


def _check_torch() -> None:
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < _MINIMUM_TORCH:
        minimum = ".".join(map(str, _MINIMUM_TORCH))
        raise ImportError(f"weft needs torch >= {minimum}, found {torch.__version__}")


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    library = _DIRECTORY / "libweft_cuda.so"
    if not library.exists():
        return "this build of weft has no CUDA library (WEFT_CUDA=on builds it)"
    try:
        torch.ops.load_library(library)
    except OSError as error:  # the CPU side works without it
        logging.getLogger("weft").warning("weft's CUDA library does not load: %s", error)
        return f"libweft_cuda.so does not load: {error}"
    return None
