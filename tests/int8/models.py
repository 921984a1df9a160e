"""Small models to quantise, and one with planted outliers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

C = 48


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(C, C) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v)[:, 0])


class Block(nn.Module):
    """Pre-norm: each norm is read by linear layers alone."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = norm(C), Attention(), norm(C)
        self.up, self.down = nn.Linear(C, 2 * C), nn.Linear(2 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x).flatten(0, 1)))).view_as(x)


class PostNorm(Block):
    """The sum after attention is normalised, and the norm's output is added to again."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


LINEAR = ("attention.q", "attention.k", "attention.v", "attention.o", "up", "down")


@torch.no_grad()
def plant_outliers(block: Block, factor: float = 300.0, offset: float = 300.0) -> Block:
    """The same function, with four channels of each norm's output large and off centre: undone in
    the weights and biases that read them."""
    readers = {
        block.norm1: (block.attention.q, block.attention.k, block.attention.v),
        block.norm2: (block.up,),
    }
    for norm, linears in readers.items():
        for channel in (3, 11, 17, 40):
            norm.weight[channel] *= factor
            if getattr(norm, "bias", None) is not None:
                norm.bias[channel] = norm.bias[channel] * factor + offset
            for linear in linears:
                linear.weight[:, channel] /= factor
                if getattr(norm, "bias", None) is not None:
                    linear.bias -= linear.weight[:, channel] * offset
    return block
