"""What autograd must know of tensors that an op has written into."""

from __future__ import annotations

import torch
from torch import Tensor

_is_inference_mode = torch.is_inference_mode_enabled
_is_compiling = torch.compiler.is_compiling
_increment_version = torch.autograd.graph.increment_version


def written(*tensors: Tensor | None) -> None:
    """Counts up the tensors' versions, so that autograd notices where it had saved one of them.

    Compiled code needs no telling, and tensors of inference mode have no version.
    """
    if _is_compiling() or _is_inference_mode():
        return
    for tensor in tensors:
        if tensor is not None and not tensor.is_inference():
            _increment_version(tensor)
