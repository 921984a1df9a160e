"""bitsandbytes' module, by its name, with its arguments and its checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.int8 import int8_linear
from .int8 import Device, LLMInt8Linear

ROW = 0  # the one `weight_format` whose weight is plain rows


class Linear8bitLt(LLMInt8Linear):
    """bitsandbytes' Linear8bitLt on weft's kernels, for inference.

    Its checkpoints are bitsandbytes': `weight` int8 [N, K], `SCB` float32 [N] (the largest |w| of
    each row), `weight_format`, `bias`. Weights of floats are quantised when they are loaded; there
    is no need to move the module for that. Any float dtype of x is computed with, not float16
    alone.

    Args:
        input_features, output_features: K, N.
        bias: have one. Default: True.
        has_fp16_weights: only False is there: weights that are trained stay with torch.nn.Linear.
        threshold: where outliers begin; 0, the default, for no outliers.
        index: nothing, as in bitsandbytes' inference.
        device: of all that it holds.
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
        if has_fp16_weights:
            raise NotImplementedError(
                "weft.nn.Linear8bitLt keeps its weight in int8: pass has_fp16_weights=False"
            )
        super().__init__(input_features, output_features, bias, device, threshold=threshold)

    def forward(self, input: Tensor) -> Tensor:
        if self.threshold == 0:
            return int8_linear(input, self._weight(), self.weight_scale, self.bias)
        return super().forward(input)

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
