"""How far from the truth a contender's result may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.case import SHORT_DTYPE, Case

TOLERANCE = {torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""Relative to |value| + rms of the tensor. Wide on purpose: peers round in different places. The
test suite judges precision; here nobody may be timed computing something else."""


def compare(case: Case, got: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> str:
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
