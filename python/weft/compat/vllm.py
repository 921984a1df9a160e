"""The norms of ``vllm._custom_ops``: in place, for inference."""

from __future__ import annotations

from torch import Tensor

from .. import ops


def rms_norm(out: Tensor, input: Tensor, weight: Tensor, epsilon: float) -> None:
    """Writes the RMSNorm of `input` [*N, C] over its last dimension to `out` [*N, C]."""
    ops.rms_norm(input, input.shape[-1:], weight, epsilon, out=out)


def fused_add_rms_norm(input: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> None:
    """``residual += input``, then ``input = rms_norm(residual)``, both [*N, C], in place."""
    ops.fused_add_rms_norm(input, residual, weight, epsilon)
