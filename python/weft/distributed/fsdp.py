"""torch's fully_shard over a communicator: its all-gathers and reduce-scatters.

>>> fully_shard(model, mesh=mesh)
>>> fsdp_collectives(model, Communicator(mesh.get_group()))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from .communicator import Communicator


def fsdp_collectives(model: nn.Module, communicator: Communicator) -> None:
    """Lets every module of `model` that `fully_shard` was called on gather its parameters and
    scatter their gradients through `communicator`, of the group of its mesh."""
    found = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not found:
        raise ValueError("weft.distributed.fsdp_collectives: fully_shard has not been called on it")
    for module in found:
        module.set_custom_all_gather(_AllGather(communicator))  # type: ignore[arg-type]
        module.set_custom_reduce_scatter(_ReduceScatter(communicator))  # type: ignore[arg-type]


class _Collective:
    """What torch.distributed.fsdp's AllGather and ReduceScatter, of newer versions, ask for."""

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator

    def check(self, group: dist.ProcessGroup) -> None:
        """The communicator stands for the mesh's group: their ranks are the same, in one order."""
        theirs, ours = dist.get_process_group_ranks(group), self.communicator.ranks
        if theirs != ours:
            raise ValueError(
                f"weft.distributed.fsdp_collectives: the communicator is of ranks {ours}, expected "
                f"those of the mesh, {theirs}"
            )

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Collective):
    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> None:  # done at once: FSDP waits for works of torch's own class alone
        self.check(group)
        self.communicator.all_gather(input_tensor, out=output_tensor)


class _ReduceScatter(_Collective):
    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        self.check(group)
        self.communicator.reduce_scatter(input_tensor, op, out=output_tensor)
