"""The arguments of `weft::norm_forward`, by name and in the order of its schema."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NormArgs(NamedTuple):
    x: Tensor  # [*N, *C]
    normalized_ndim: int  # how many dimensions C has
    weight: Tensor | None = None  # [*C], or [H, C] with H the last of N
    bias: Tensor | None = None
    weight1: Tensor | None = None
    bias1: Tensor | None = None
    x_bias: Tensor | None = None  # [*C]
    residual: Tensor | None = None  # [*N, *C]
    residual2: Tensor | None = None  # [*N, *C]
    x1: Tensor | None = None  # [*N, *C]
    rowscale: Tensor | None = None  # [*N]
    layerscale: Tensor | None = None  # [*C]
    rng_state: Tensor | None = None  # [2], int64: (seed, offset)
    dropout_p: float = 0.0
    residual_alpha: float = 1.0
    eps: float = 1e-5
    is_rms_norm: bool = False
    zero_centered_weight: bool = False
    memory_efficient: bool = False
    save_stats: bool = False
    return_residual: bool = False
    return_dropout_mask: bool = False
    residual_dtype: torch.dtype | None = None
    out_dtype: torch.dtype | None = None

    @property
    def adds(self) -> bool:
        """Whether z, which is normalised, is anything else than x."""
        return self.dropout_p > 0 or any(
            t is not None
            for t in (
                self.x_bias,
                self.residual,
                self.residual2,
                self.x1,
                self.rowscale,
                self.layerscale,
            )
        )

    @property
    def z_dtype(self) -> torch.dtype:
        """The dtype of residual_out."""
        if self.residual_dtype is not None:
            return self.residual_dtype
        return self.x.dtype if self.residual is None else self.residual.dtype

    def tensors(self) -> list[Tensor]:
        return [value for value in self if isinstance(value, Tensor)]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the kernels compute in, statistics included: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
