"""What every contender of an INT8 case must return, and how far from it rounding may take it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bench.case import Inputs
from bench.int8.cases import Int8Case

TOLERANCE = {"w8a8": 0.15, "w8a16": 0.06, "w4a16": 0.06}
"""Relative to |value| + rms of the tensor: x in int8 by one scale for all is 1 % off in the mean,
and the worst of millions of values six times that. Of the weight alone quantised, what is off is
the rounding of x and y to bfloat16, and of the weight where a contender widens it; or that of x to
int8 by blocks of 128, which onnxruntime does: 3 % in the worst of a million values."""


def truth(case: Int8Case, inputs: Inputs) -> tuple[Tensor, ...]:
    scale = inputs["scale"].double()
    values = inputs["values"].double().unflatten(1, (scale.shape[1], -1))
    return (inputs["x"].double() @ (values * scale[..., None]).flatten(1).t(),)


def compare(case: Int8Case, got: Sequence[Tensor], truth: Sequence[Tensor]) -> str:
    exact = truth[0]
    if got[0].shape != exact.shape:
        return f"output has shape {list(got[0].shape)}, expected {list(exact.shape)}"
    error = (got[0].double() - exact).abs()
    worst = (error / (exact.abs() + exact.square().mean().sqrt())).max().item()
    return (
        "" if worst <= TOLERANCE[case.recipe] else f"output is wrong: {worst:.3g} of its size off"
    )
