"""Norms on GPUs as torch uses them: CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

import weft
from backends import NEEDS_GPU, captured

pytestmark = NEEDS_GPU


def test_a_graph_of_dropout() -> None:
    """Each replay drops other elements, and backward those of its forward."""
    x = torch.ones(64, 256, device="cuda", requires_grad=True)

    def kept() -> Tensor:
        """[2, N, C]: by what is added to the residual, by dx."""
        _, z = weft.layer_norm_fn(x, None, None, dropout_p=0.5, prenorm=True)
        (dx,) = torch.autograd.grad(z, x, torch.ones_like(z))
        return torch.stack([z, dx]).ne(0)

    graph, found = captured(kept)
    seen = []
    for _ in range(3):
        graph.replay()
        assert torch.equal(found[0], found[1])
        seen.append(found[0].clone())
    for a, b in zip(seen, seen[1:], strict=False):
        assert abs((a == b).float().mean().item() - 0.5) < 0.05
