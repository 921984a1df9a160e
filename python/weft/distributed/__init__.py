"""Ranks that compute together: communicators over shared memory, for processes of one host, and
data, tensor and sequence parallelism over them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import regions
from ._work import Work
from .communicator import Communicator, communicator_of
from .ddp import ddp_hook
from .linear import (
    all_gather_linear,
    copy_linear,
    int8_all_gather_linear,
    int8_linear_all_reduce,
    int8_linear_reduce_scatter,
    linear_all_reduce,
    linear_reduce_scatter,
)
from .norm import (
    all_reduce_layer_norm,
    all_reduce_layer_norm_int8,
    all_reduce_rms_norm,
    all_reduce_rms_norm_int8,
)
from .timeline import Timeline

if TYPE_CHECKING:
    from .fsdp import fsdp_collectives
    from .styles import ColwiseParallel, RowwiseParallel, SequenceParallel

__all__ = [
    "ColwiseParallel",
    "Communicator",
    "RowwiseParallel",
    "SequenceParallel",
    "Timeline",
    "Work",
    "all_gather_linear",
    "all_reduce_layer_norm",
    "all_reduce_layer_norm_int8",
    "all_reduce_rms_norm",
    "all_reduce_rms_norm_int8",
    "communicator_of",
    "copy_linear",
    "ddp_hook",
    "fsdp_collectives",
    "int8_all_gather_linear",
    "int8_linear_all_reduce",
    "int8_linear_reduce_scatter",
    "linear_all_reduce",
    "linear_reduce_scatter",
    "regions",
]


_LATER = {
    "fsdp_collectives": "fsdp",
    "ColwiseParallel": "styles",
    "RowwiseParallel": "styles",
    "SequenceParallel": "styles",
}


def __getattr__(name: str):  # FSDP and DTensor take a while to import
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module 'weft.distributed' has no attribute {name!r}")
