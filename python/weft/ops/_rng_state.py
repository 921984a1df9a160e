"""The state that dropout draws from."""

from __future__ import annotations

import torch
from torch import Tensor


def new_rng_state(x: Tensor) -> Tensor:
    """(seed, offset) on x's device, for the kernels to read.

    PyTorch's generator of that device draws it: in a CUDA graph, anew at each replay.
    """
    return torch.randint(2**63 - 1, (2,), dtype=torch.int64, device=x.device)


def rng_state_for(x: Tensor, dropout_p: float, given: Tensor | None) -> Tensor | None:
    """The given state on x's device, or a new one; None where nothing is dropped."""
    if not dropout_p > 0:
        return None
    return new_rng_state(x) if given is None else given.to(x.device)
