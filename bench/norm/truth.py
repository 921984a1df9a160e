"""What every contender of a norm case must return."""

from __future__ import annotations

import torch

from bench.case import Inputs
from bench.norm.cases import NormCase
from bench.norm.plain import recipe
from bench.peers import as_tuple


def truth(case: NormCase, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """The recipe in float64. In-place cases work on these copies, never on ``inputs``."""
    names = [n for n in inputs if n not in ("out", "residual_out", "scale_out")]
    exact = {n: inputs[n].detach().double().requires_grad_(inputs[n].requires_grad) for n in names}
    return tuple(t.detach() for t in as_tuple(recipe(case)(**exact)))
