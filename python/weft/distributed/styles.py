"""weft's layers as styles of torch's `parallelize_module`, over a dimension of a DeviceMesh.

>>> mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
>>> plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
>>> parallelize_module(model, mesh["tp"], plan)

The layouts are what torch's styles of these names take; tensors and parameters are plain, the
rank's own, and no DTensors.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.compiler import is_compiling
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle
from torch.utils.weak import WeakTensorKeyDictionary

from ..nn.parallel import ColumnParallelLinear, RowParallelLinear
from .communicator import Communicator, communicator_of


class _Style(ParallelStyle):
    def __init__(self, name: str, outer: Placement, use_local_output: bool) -> None:
        super().__init__()
        if not use_local_output:
            raise ValueError(
                f"{name}: use_local_output is False, expected True: weft has no DTensor"
            )
        self.name, self.outer = name, outer

    def _linear(self, module: nn.Module, mesh: DeviceMesh) -> nn.Linear:
        """`module`, the same on every rank: as `src_data_rank` has it."""
        if type(module) is not nn.Linear:
            raise NotImplementedError(f"{self.name}: {type(module).__name__}, expected nn.Linear")
        source = getattr(self, "src_data_rank", 0)
        if source is not None:
            group = mesh.get_group()
            for parameter in module.parameters():
                dist.broadcast(parameter.detach(), dist.get_global_rank(group, source), group=group)
        return module

    def _rows(self) -> dict[str, object]:
        """What is shared out by rows on the outer side."""
        if isinstance(self.outer, Shard):
            return {"sequence_parallel": True, "sequence_dim": self.outer.dim}
        return {}


class ColwiseParallel(_Style):
    """`weft.nn.ColumnParallelLinear` in the place of an nn.Linear.

    Args:
        input_layouts: Replicate(), the default, or Shard(0) or Shard(1): the rank's rows, which are
            gathered.
        output_layouts: Shard(-1), the default, or Replicate(): all columns, gathered.
        use_local_output: True.
    """

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        super().__init__("ColwiseParallel", input_layouts or Replicate(), use_local_output)
        self.output = output_layouts or Shard(-1)
        if self.outer not in (Replicate(), Shard(0), Shard(1)):
            raise ValueError(
                f"ColwiseParallel: input_layouts is {self.outer}, expected Replicate(), Shard(0) "
                "or Shard(1)"
            )
        if self.output not in (Replicate(), Shard(-1)):
            raise ValueError(
                f"ColwiseParallel: output_layouts is {self.output}, expected Shard(-1) or "
                "Replicate()"
            )

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return ColumnParallelLinear.of(
            self._linear(module, device_mesh),
            device_mesh.get_group(),
            gather_output=self.output == Replicate(),
            **self._rows(),
        )


class RowwiseParallel(_Style):
    """`weft.nn.RowParallelLinear` in the place of an nn.Linear.

    Args:
        input_layouts: Shard(-1), the default, or Replicate(): all columns, of which the rank takes
            its own.
        output_layouts: Replicate(), the default, or Shard(0) or Shard(1): the rank's rows.
        use_local_output: True.
    """

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        super().__init__("RowwiseParallel", output_layouts or Replicate(), use_local_output)
        self.input = input_layouts or Shard(-1)
        if self.input not in (Replicate(), Shard(-1)):
            raise ValueError(
                f"RowwiseParallel: input_layouts is {self.input}, expected Shard(-1) or Replicate()"
            )
        if self.outer not in (Replicate(), Shard(0), Shard(1)):
            raise ValueError(
                f"RowwiseParallel: output_layouts is {self.outer}, expected Replicate(), Shard(0) "
                "or Shard(1)"
            )

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return RowParallelLinear.of(
            self._linear(module, device_mesh),
            device_mesh.get_group(),
            input_is_parallel=self.input == Shard(-1),
            **self._rows(),
        )


class SequenceParallel(ParallelStyle):
    """For a module that works on rows alone, such as a norm: it stays as it is, on the rank's rows,
    and the gradients of its parameters are summed over the ranks."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        hook = _SumsGradients(communicator_of(device_mesh.get_group()))
        hook(module, None)
        module.register_forward_pre_hook(hook)
        return module


class _SumsGradients:
    """Before each forward, hooks what parameters the module then has: loading, moving and copying
    may have put others in their place."""

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator
        self.hooked = WeakTensorKeyDictionary()

    def __call__(self, module: nn.Module, inputs: object) -> None:
        if is_compiling():
            return
        for parameter in module.parameters():
            if parameter.requires_grad and parameter not in self.hooked:
                self.hooked[parameter] = parameter.register_hook(self.communicator.all_reduce)

    def __deepcopy__(self, memo: object) -> _SumsGradients:
        return _SumsGradients(self.communicator)
