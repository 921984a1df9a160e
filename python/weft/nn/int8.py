"""Linear layers with INT8 weights. :func:`weft.quantize_` puts them into a model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.int8 import int8_linear, llm_int8_linear, weight_only_linear
from ._quantized_linear import QuantizedLinear

Device = torch.device | str | int | None


class Int8Linear(QuantizedLinear):
    r"""W8A8: the input is quantised within, and the product is one of integers.

    .. math:: y = s_x s_w \, (q_x - z_x) \, q_w^T + b

    With `input_scale` that is the scale, found by calibration; without, every row gets its own.
    See :func:`weft.int8_linear` and, of the arguments not named here, :class:`QuantizedLinear`.

    Args:
        symmetric: scales of rows have no zero point. Default: True.
        static: have an `input_scale` and `input_zero_point`, to be loaded. Default: False.
    """

    symmetric = True
    optional = ("input_scale", "input_zero_point", "input_shift", "input_smooth")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        symmetric: bool = True,
        static: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.symmetric = symmetric
        if static:
            self.input_scale = torch.ones(1, device=device)
            self.input_zero_point = torch.zeros(1, device=device, dtype=torch.int32)

    def forward(self, input: Tensor) -> Tensor:
        held = self._held()
        x_scale = held["input_scale"]
        return int8_linear(
            input,
            held["packed"],
            held["weight_scale"],
            self._parameters["bias"],
            x_scale=x_scale,
            x_zero_point=held["input_zero_point"],
            symmetric=self.symmetric or x_scale is not None,
            shift=held["input_shift"],
            smooth=held["input_smooth"],
        )

    def _options(self) -> list[str]:
        if self.input_scale is not None:
            return ["static"]
        return ["dynamic" if self.symmetric else "dynamic, asymmetric"]


class WeightOnlyLinear(QuantizedLinear):
    r"""W8A16 and W4A16: only the weight is quantised, and the product is one of floats.

    .. math:: y = x \, (s_w (q_w - z_w))^T + b

    See :func:`weft.weight_only_linear` and, of the arguments not named here,
    :class:`QuantizedLinear`.

    Args:
        bits: 8 or 4. Default: 8.
        group_size: so many weights of a row share a scale: a multiple of 8 that divides K.
            Default: None, all of them.
        symmetric: scales have no zero point, 4-bit ones either. Default: True.
    """

    optional = ("weight_zero_point",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bits: int = 8,
        group_size: int | None = None,
        symmetric: bool = True,
    ) -> None:
        self.__dict__.update(bits=bits, group_size=group_size, symmetric_weight=symmetric)
        super().__init__(in_features, out_features, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        held = self._held()
        return weight_only_linear(
            input,
            held["packed"],
            held["weight_scale"],
            self._parameters["bias"],
            weight_zero_point=held["weight_zero_point"],
            bits=self.bits,
        )

    def _options(self) -> list[str]:
        options = [f"bits={self.bits}"]
        options += [] if self.group_size is None else [f"group_size={self.group_size}"]
        return options if self.symmetric_weight else [*options, "asymmetric"]


class LLMInt8Linear(QuantizedLinear):
    """LLM.int8 (arXiv 2208.07339): W8A8 with a scale for each row, but input channels in which any
    value reaches the threshold are multiplied as they are.

    See :func:`weft.llm_int8_linear` and, of the arguments not named here, :class:`QuantizedLinear`.

    Args:
        threshold: where outliers begin. Default: 6.0.
    """

    threshold = 6.0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        threshold: float = 6.0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.threshold = threshold

    def forward(self, input: Tensor) -> Tensor:
        held = self._held()
        return llm_int8_linear(
            input,
            held["packed"],
            held["weight_scale"],
            self._parameters["bias"],
            threshold=self.threshold,
        )

    def _options(self) -> list[str]:
        return [f"threshold={self.threshold}"]


class HybridLinear(QuantizedLinear):
    """W8A8 for many rows, where arithmetic is what takes time; W8A16, more exact, for few, where
    reading the weight is. Both read the same packed weight.

    See, of the arguments not named here, :class:`QuantizedLinear`.

    Args:
        crossover: from that many rows on it is W8A8. Default: 32; `weft tune` measures it.
        symmetric: the scales of rows have no zero point. Default: True.
    """

    crossover = 32
    symmetric = True
    optional = ("input_shift", "input_smooth")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        crossover: int = 32,
        symmetric: bool = True,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.crossover = crossover
        self.symmetric = symmetric

    def forward(self, input: Tensor) -> Tensor:
        held = self._held()
        packed, scale, bias = held["packed"], held["weight_scale"], self._parameters["bias"]
        shift, smooth = held["input_shift"], held["input_smooth"]
        if input.numel() >= self.crossover * self.in_features:
            return int8_linear(
                input, packed, scale, bias, symmetric=self.symmetric, shift=shift, smooth=smooth
            )
        x = input  # smoothed in float32: the bias holds the shift's share exactly
        if shift is not None:
            x = x.float() - shift
        if smooth is not None:
            x = x.float() / smooth
        return weight_only_linear(x.to(input.dtype), packed, scale, bias)

    def _options(self) -> list[str]:
        return [f"crossover={self.crossover}"]
