"""PyTorch's norm modules on weft's kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import init

from ..ops.norm import layer_norm, rms_norm


class LayerNorm(torch.nn.LayerNorm):
    r""":class:`torch.nn.LayerNorm`, its arguments and state_dict keys, on weft's kernels.

    .. math:: y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot w + b

    (arXiv 1607.06450.) Input and output are [\*N, \*normalized_shape], in one dtype of float32,
    bfloat16, float16 and float64; the parameters may have another. See :func:`weft.layer_norm`.

    Args:
        normalized_shape: an int or the last dimensions of the input.
        eps: added to the variance. Default: 1e-5.
        elementwise_affine: have a weight. Default: True.
        bias: have a bias too. Default: True.
        device, dtype: of the parameters.
        zero_centered_weight: multiply by ``weight + 1``; the weight starts at 0. Default: False.
        memory_efficient: keep the output for backward, not the input. Default: False.
    """

    # On the class, so that an instance of torch's class becomes one of these by changing its class.
    zero_centered_weight: bool = False
    memory_efficient: bool = False

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        zero_centered_weight: bool = False,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.memory_efficient = memory_efficient
        self.zero_centered_weight = zero_centered_weight
        if zero_centered_weight:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.zero_centered_weight and self.weight is not None:
            init.zeros_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            zero_centered_weight=self.zero_centered_weight,
            memory_efficient=self.memory_efficient,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + _extras(self)


class RMSNorm(torch.nn.RMSNorm):
    r""":class:`torch.nn.RMSNorm`, its arguments and state_dict keys, on weft's kernels.

    .. math:: y = \frac{x}{\sqrt{\mathrm{E}[x^2] + \epsilon}} \cdot w

    (arXiv 1910.07467.) Input and output are [\*N, \*normalized_shape], in one dtype of float32,
    bfloat16, float16 and float64; the weight may have another. See :func:`weft.rms_norm`.

    Args:
        normalized_shape: an int or the last dimensions of the input.
        eps: added to the mean square. Default: None, the machine epsilon that :func:`weft.rms_norm`
            says.
        elementwise_affine: have a weight. Default: True.
        device, dtype: of the weight.
        zero_centered_weight: multiply by ``weight + 1``; the weight starts at 0. Default: False.
        memory_efficient: keep the output for backward, not the input. Default: False.
    """

    zero_centered_weight: bool = False
    memory_efficient: bool = False

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size | tuple[int, ...],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        zero_centered_weight: bool = False,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.memory_efficient = memory_efficient
        self.zero_centered_weight = zero_centered_weight
        if zero_centered_weight:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.zero_centered_weight and self.weight is not None:
            init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(
            x,
            self.normalized_shape,
            self.weight,
            self.eps,
            zero_centered_weight=self.zero_centered_weight,
            memory_efficient=self.memory_efficient,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + _extras(self)


def _extras(module: LayerNorm | RMSNorm) -> str:
    """The options beyond torch's, where they are on."""
    names = ("zero_centered_weight", "memory_efficient")
    return "".join(f", {name}=True" for name in names if getattr(module, name))
