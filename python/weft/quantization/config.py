"""What :func:`weft.quantize_` makes of a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import nn as weft_nn
from ..nn._quantized_linear import QuantizedLinear
from .observers import AbsMax, Observer
from .smoothing import Activation, Smoothing


@dataclass(frozen=True)
class W8A8Dynamic:
    """INT8 products; every row of the input gets its own scale when it comes.

    Args:
        symmetric: the scales of rows have no zero point.
        smoothing: one of :class:`SmoothQuant`, :class:`ShiftSmoothQuant` and
            :class:`AdaptiveSmoothQuant`; needs calibration. None: no smoothing.
    """

    module: ClassVar[type[QuantizedLinear]] = weft_nn.Int8Linear
    activation: ClassVar[Activation] = "token"

    symmetric: bool = True
    smoothing: Smoothing | None = None

    def options(self) -> dict[str, Any]:
        return {"symmetric": self.symmetric}


@dataclass(frozen=True)
class W8A8Static:
    """INT8 products; one scale for a layer's inputs, from calibration.

    Args:
        observer: makes what watches a layer's inputs: a class of `weft.quantization`, such as
            ``Percentile``, or a function without arguments.
        symmetric: the scale has no zero point.
        smoothing: as in :class:`W8A8Dynamic`.
    """

    module: ClassVar[type[QuantizedLinear]] = weft_nn.Int8Linear
    activation: ClassVar[Activation] = "tensor"

    observer: Callable[[], Observer] = AbsMax
    symmetric: bool = True
    smoothing: Smoothing | None = None

    def options(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class W8A16:
    """8-bit weights, products of floats.

    Args:
        group_size: so many weights of a row share a scale. None: all of them.
    """

    module: ClassVar[type[QuantizedLinear]] = weft_nn.WeightOnlyLinear

    group_size: int | None = None

    def options(self) -> dict[str, Any]:
        return {"group_size": self.group_size}


@dataclass(frozen=True)
class W4A16:
    """4-bit weights, products of floats.

    Args:
        group_size: so many weights of a row share a scale. None: all of them.
        symmetric: scales have no zero point.
    """

    module: ClassVar[type[QuantizedLinear]] = weft_nn.WeightOnlyLinear

    group_size: int | None = 128
    symmetric: bool = False

    def options(self) -> dict[str, Any]:
        return {
            "bits": 4,
            "group_size": self.group_size,
            "symmetric_weight": self.symmetric,
        }


@dataclass(frozen=True)
class LLMInt8:
    """:class:`W8A8Dynamic`, but input channels with outliers are multiplied as they are.

    Args:
        threshold: where outliers begin: a value of the activations, not of the weights.
    """

    module: ClassVar[type[QuantizedLinear]] = weft_nn.LLMInt8Linear

    threshold: float = 6.0

    def options(self) -> dict[str, Any]:
        return {"threshold": self.threshold}


@dataclass(frozen=True)
class Hybrid:
    """:class:`W8A8Dynamic` for many rows, :class:`W8A16` for few, from one packed weight.

    Args:
        crossover: from that many rows on it is W8A8. None: what `weft tune` measured on this
            machine, or else :data:`weft.quantization.crossover.DEFAULT`.
        symmetric, smoothing: as in :class:`W8A8Dynamic`.
    """

    module: ClassVar[type[QuantizedLinear]] = weft_nn.HybridLinear
    activation: ClassVar[Activation] = "token"

    crossover: int | None = None
    symmetric: bool = True
    smoothing: Smoothing | None = None

    def options(self) -> dict[str, Any]:
        from .crossover import stored

        rows = stored() if self.crossover is None else self.crossover
        return {"crossover": rows, "symmetric": self.symmetric}


Config = W8A8Dynamic | W8A8Static | W8A16 | W4A16 | LLMInt8 | Hybrid
