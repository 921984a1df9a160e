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

# On the outer side of the two layers all rows, or the rank's; on the inner one columns.
_OUTER = (Replicate(), Shard(0), Shard(1)), "Replicate(), Shard(0) or Shard(1)"
_INNER = (Shard(-1), Replicate()), "Shard(-1) or Replicate()"


class _Style(ParallelStyle):
    def __init__(self, use_local_output: bool) -> None:
        super().__init__()
        self.name = type(self).__name__
        if not use_local_output:
            raise ValueError(
                f"{self.name}: use_local_output is False, expected True: weft has no DTensor"
            )

    def _layout(
        self, argument: str, layout: Placement | None, side: tuple[tuple[Placement, ...], str]
    ) -> Placement:
        """What was given for `argument`, or the first that its side may have."""
        choices, words = side
        if layout is not None and layout not in choices:
            raise ValueError(f"{self.name}: {argument} is {layout}, expected {words}")
        return layout or choices[0]

    def _place(
        self,
        layer: type[ColumnParallelLinear | RowParallelLinear],
        module: nn.Module,
        mesh: DeviceMesh,
        outer: Placement,
        **options: object,
    ) -> nn.Module:
        """`layer` in the place of `module`, once that is the same on every rank: as `src_data_rank`
        has it."""
        if type(module) is not nn.Linear:
            raise NotImplementedError(f"{self.name}: {type(module).__name__}, expected nn.Linear")
        group, source = mesh.get_group(), getattr(self, "src_data_rank", 0)
        if source is not None:
            for parameter in module.parameters():
                dist.broadcast(parameter.detach(), dist.get_global_rank(group, source), group=group)
        if isinstance(outer, Shard):
            options |= {"sequence_parallel": True, "sequence_dim": outer.dim}
        return layer.of(module, group, **options)


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
        super().__init__(use_local_output)
        self.input = self._layout("input_layouts", input_layouts, _OUTER)
        self.output = self._layout("output_layouts", output_layouts, _INNER)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        gather = self.output == Replicate()
        return self._place(
            ColumnParallelLinear, module, device_mesh, self.input, gather_output=gather
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
        super().__init__(use_local_output)
        self.input = self._layout("input_layouts", input_layouts, _INNER)
        self.output = self._layout("output_layouts", output_layouts, _OUTER)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        parallel = self.input == Shard(-1)
        return self._place(
            RowParallelLinear, module, device_mesh, self.output, input_is_parallel=parallel
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
