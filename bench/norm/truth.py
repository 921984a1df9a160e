"""What every contender of a norm case must return, and how far from it is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.case import SHORT_DTYPE, Inputs
from bench.norm.cases import NormCase
from bench.norm.plain import recipe
from bench.peers import as_tuple

TOLERANCE = {torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 4e-2}
"""Relative to |value| + rms of the tensor. Wide on purpose: peers round in different places. The
test suite judges precision; here nobody may be timed computing something else."""


def truth(case: NormCase, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """The recipe in float64. In-place cases work on these copies, never on ``inputs``."""
    names = [n for n in inputs if n not in ("out", "residual_out", "scale_out")]
    exact = {n: inputs[n].detach().double().requires_grad_(inputs[n].requires_grad) for n in names}
    return tuple(t.detach() for t in as_tuple(recipe(case)(**exact)))


def compare(case: NormCase, got: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> str:
    if len(got) < len(truth):
        return f"returned {len(got)} tensors, expected {len(truth)}"
    for i, (ours, exact) in enumerate(zip(got, truth, strict=False)):
        if ours.numel() != exact.numel():
            return f"output {i} has shape {list(ours.shape)}, expected {list(exact.shape)}"
        error = (ours.detach().double().reshape(exact.shape) - exact).abs()
        if exact.dtype == torch.int8:
            limit = torch.ones_like(error)  # a value near a boundary may round either way
        else:
            limit = TOLERANCE[case.dtype] * (exact.abs() + exact.square().mean().sqrt())
        if not bool((error <= limit).all()):
            worst = (error / limit).nan_to_num(nan=float("inf")).max().item()
            return (
                f"output {i} is wrong: {worst:.3g} times the tolerance for "
                f"{SHORT_DTYPE[case.dtype]}"
            )
    return ""
