"""bitsandbytes' module, by its name, with its arguments and its checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.int8 import llm_int8_linear, pack_int8_weight
from ._int8_weight import quantize_weight
from .int8 import Device, LLMInt8Linear

ROW = 0  # the one `weight_format` whose weight is plain rows


class _Both(type):
    def __instancecheck__(cls, instance: object) -> bool:
        trained = cls is Linear8bitLt and isinstance(instance, TrainedLinear8bitLt)
        return trained or super().__instancecheck__(instance)


class Linear8bitLt(LLMInt8Linear, metaclass=_Both):
    """bitsandbytes' Linear8bitLt on weft's kernels.

    Its checkpoints are bitsandbytes': `weight` int8 [N, K], `SCB` float32 [N] (the largest |w| of
    each row), `weight_format`, `bias`. Weights of floats are quantised when they are loaded; there
    is no need to move the module for that. Any float dtype of x is computed with, not float16
    alone.

    Args:
        input_features, output_features: K, N.
        bias: have one. Default: True.
        has_fp16_weights: keep the weight in floats, quantise it at every call, and give it its
            gradient: for training. What is made is then a :class:`TrainedLinear8bitLt`, which
            counts as an instance of this class, and which subclasses for training are made of.
            Default: True, as in bitsandbytes.
        threshold: where outliers begin; 0, the default, for no outliers.
        index: nothing, as in bitsandbytes.
        device: of all that it holds.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        trained = kwargs.get("has_fp16_weights", args[3] if len(args) > 3 else True)
        if cls is Linear8bitLt and trained and (args or kwargs):  # nothing at all: a copy
            return TrainedLinear8bitLt(*args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        has_fp16_weights: bool = True,
        threshold: float = 0.0,
        index: Any = None,
        device: Device = None,
    ) -> None:
        if has_fp16_weights:
            raise ValueError(
                f"weft.nn.{type(self).__name__}: has_fp16_weights is True, the default: expected "
                "False, or a subclass of weft.nn.TrainedLinear8bitLt"
            )
        super().__init__(input_features, output_features, bias, device, threshold=threshold)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "SCB"] = destination.pop(prefix + "weight_scale").flatten() * 127
        destination[prefix + "weight_format"] = torch.tensor(ROW, dtype=torch.uint8)

    def _translate(self, given: dict[str, Tensor]) -> Tensor | None:
        layout = given.pop("weight_format", None)
        if layout is not None and int(layout) != ROW:
            raise ValueError(
                f"weight_format is {int(layout)}, expected {ROW} (rows): save the checkpoint again "
                "with bitsandbytes 0.45 or later"
            )
        if "SCB" in given:
            given["weight_scale"] = given.pop("SCB").float() / 127
        return super()._translate(given)


class TrainedLinear8bitLt(nn.Linear):
    """:class:`Linear8bitLt` whose weight is in floats, and a parameter.

    The result is that of the quantised weight; the gradients are those of the linear layer without
    rounding. Arguments and threshold: as there.
    """

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        has_fp16_weights: bool = True,
        threshold: float = 0.0,
        index: Any = None,
        device: Device = None,
    ) -> None:
        super().__init__(input_features, output_features, bias, device)
        self.threshold = threshold

    def forward(self, input: Tensor) -> Tensor:
        values, scale, _ = quantize_weight(self.weight)
        return llm_int8_linear(
            input,
            pack_int8_weight(values),
            scale,
            self.bias,
            threshold=self.threshold,
            weight=self.weight if self.weight.requires_grad else None,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold}"
