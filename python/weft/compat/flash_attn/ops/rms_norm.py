"""``flash_attn.ops.rms_norm``, but for its functions over subsets of rows."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import init

from ....nn import DropoutAddRMSNorm
from .layer_norm import dropout_add_layer_norm, dropout_add_layer_norm_parallel_residual

__all__ = [
    "DropoutAddRMSNorm",
    "RMSNorm",
    "dropout_add_rms_norm",
    "dropout_add_rms_norm_parallel_residual",
    "rms_norm",
]

dropout_add_rms_norm = partial(dropout_add_layer_norm, is_rms_norm=True)
dropout_add_rms_norm_parallel_residual = partial(
    dropout_add_layer_norm_parallel_residual, is_rms_norm=True
)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm over the last dimension."""
    return dropout_add_rms_norm(x, None, weight, None, 0.0, epsilon)


class RMSNorm(torch.nn.Module):
    """RMSNorm over the last dimension, of size `hidden_size`; `eps` is added to the mean square."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
