"""Where a tensor goes from one rank to all, or from all to each: the edges of what the ranks share
out, with the gradients of one loss that they compute together.

Names and gradients are those of Megatron-LM's mappings:

    copy      the same everywhere    x                    gradient: all_reduce
    reduce    all_reduce(x)          the same everywhere  gradient: dy
    scatter   the rank's part        of one dimension     gradient: all_gather
    gather    all parts, in order    of one dimension     gradient: the rank's part
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .communicator import Communicator, communicator_of

Group = Communicator | dist.ProcessGroup


def copy(x: Tensor, group: Group) -> Tensor:
    """x, of whose gradients on the ranks all get the sum."""
    return _Copy.apply(x, communicator_of(group))


def reduce(x: Tensor, group: Group) -> Tensor:
    """The sum of every rank's x, the same on all of them, with a gradient that is so as well."""
    return _Reduce.apply(x, communicator_of(group))


def scatter(x: Tensor, group: Group, dim: int = 0) -> Tensor:
    """The rank's part of x, which is the same everywhere: of W equal parts of ``dim``."""
    return _Scatter.apply(x, communicator_of(group), dim)


def gather(x: Tensor, group: Group, dim: int = 0) -> Tensor:
    """Every rank's x along ``dim``, for what all then do alike."""
    return _Gather.apply(x, communicator_of(group), dim)


def part(x: Tensor, communicator: Communicator, dim: int) -> Tensor:
    """The rank's part of x, a view."""
    if x.shape[dim] % communicator.world_size:
        raise ValueError(
            f"weft: x has shape {list(x.shape)}, expected a dimension {dim} that the "
            f"{communicator.world_size} ranks divide"
        )
    return x.chunk(communicator.world_size, dim)[communicator.rank]


def all_parts(x: Tensor, communicator: Communicator, dim: int) -> Tensor:
    """Every rank's x along ``dim``."""
    dim %= x.dim()
    everyones = communicator.all_gather(x[None])  # [W, …]
    return everyones.movedim(0, dim).flatten(dim, dim + 1)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, communicator):
        ctx.communicator = communicator
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        return ctx.communicator.all_reduce(dy), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, communicator):
        return communicator.all_reduce(x)

    @staticmethod
    def backward(ctx, dy):
        return dy, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, communicator, dim):
        ctx.communicator, ctx.dim = communicator, dim
        return part(x, communicator, dim).contiguous()

    @staticmethod
    def backward(ctx, dy):
        return all_parts(dy, ctx.communicator, ctx.dim), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, communicator, dim):
        ctx.communicator, ctx.dim = communicator, dim
        return all_parts(x, communicator, dim)

    @staticmethod
    def backward(ctx, dy):
        return part(dy, ctx.communicator, ctx.dim).contiguous(), None, None
