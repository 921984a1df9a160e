"""NVIDIA Apex's norm modules: its names, arguments and state_dict keys."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..ops.norm_apex import (
    fused_layer_norm,
    fused_layer_norm_affine,
    fused_rms_norm,
    fused_rms_norm_affine,
    mixed_dtype_fused_layer_norm_affine,
    mixed_dtype_fused_rms_norm_affine,
)
from .norm import LayerNorm, RMSNorm


class FusedLayerNorm(LayerNorm):
    """Apex's FusedLayerNorm; the output has the input's dtype.

    Args:
        normalized_shape: an int or the last dimensions of the input.
        eps: added to the variance. Default: 1e-5.
        elementwise_affine: have a weight and a bias. Default: True.
        memory_efficient: keep the output for backward, not the input. Default: False.

    Under autocast, inputs and parameters are cast to autocast's dtype, as Apex does.
    """

    eps: float

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__(
            normalized_shape, eps, elementwise_affine, memory_efficient=memory_efficient
        )

    def forward(self, input: Tensor) -> Tensor:
        shape, eps, efficient = self.normalized_shape, self.eps, self.memory_efficient
        if self.weight is None:
            return fused_layer_norm(input, shape, eps, efficient)
        return fused_layer_norm_affine(input, self.weight, self.bias, shape, eps, efficient)


class FusedRMSNorm(RMSNorm):
    """Apex's FusedRMSNorm; the output has the input's dtype.

    Args:
        normalized_shape: an int or the last dimensions of the input.
        eps: added to the mean square. Default: 1e-5.
        elementwise_affine: have a weight. Default: True.
        memory_efficient: keep the output for backward, not the input. Default: False.

    Under autocast, inputs and parameters are cast to autocast's dtype, as Apex does.
    """

    eps: float

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__(
            normalized_shape, eps, elementwise_affine, memory_efficient=memory_efficient
        )

    def forward(self, input: Tensor) -> Tensor:
        shape, eps, efficient = self.normalized_shape, self.eps, self.memory_efficient
        if self.weight is None:
            return fused_rms_norm(input, shape, eps, efficient)
        return fused_rms_norm_affine(input, self.weight, shape, eps, efficient)


class MixedFusedLayerNorm(FusedLayerNorm):
    """Apex's MixedFusedLayerNorm: as FusedLayerNorm, but the output has the parameters' dtype.

    Always affine: `elementwise_affine` draws a warning, and a RuntimeError if it is False.
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size | tuple[int, ...],
        eps: float = 1e-5,
        *,
        memory_efficient: bool = False,
        **kwargs: object,
    ) -> None:
        _always_affine(type(self).__name__, kwargs)
        super().__init__(normalized_shape, eps, True, memory_efficient)

    def forward(self, input: Tensor) -> Tensor:
        return mixed_dtype_fused_layer_norm_affine(
            input, self.weight, self.bias, self.normalized_shape, self.eps, self.memory_efficient
        )


class MixedFusedRMSNorm(FusedRMSNorm):
    """Apex's MixedFusedRMSNorm: as FusedRMSNorm, but the output has the weight's dtype.

    Always affine: `elementwise_affine` draws a warning, and a RuntimeError if it is False.
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size | tuple[int, ...],
        eps: float = 1e-5,
        *,
        memory_efficient: bool = False,
        **kwargs: object,
    ) -> None:
        _always_affine(type(self).__name__, kwargs)
        super().__init__(normalized_shape, eps, True, memory_efficient)

    def forward(self, input: Tensor) -> Tensor:
        return mixed_dtype_fused_rms_norm_affine(
            input, self.weight, self.normalized_shape, self.eps, self.memory_efficient
        )


def _always_affine(name: str, kwargs: dict[str, object]) -> None:
    affine = kwargs.pop("elementwise_affine", None)
    if kwargs:
        raise TypeError(f"{name} takes no argument {next(iter(kwargs))!r}")
    if affine is not None:
        warnings.warn(f"{name} does not support `elementwise_affine`", stacklevel=3)
        if not affine:
            raise RuntimeError(f"{name} does not support `elementwise_affine = False`")
