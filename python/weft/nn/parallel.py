"""Linear layers that the ranks of a group share out: tensor and sequence parallelism.

    ColumnParallelLinear    each rank has some rows of weight and bias, and makes those columns
                            of y
    RowParallelLinear       each has some columns of the weight, and the same columns of x; what
                            they make is summed

One after the other, what is between them is never whole on any rank. With `sequence_parallel` what
is before and behind them, norms and dropout, is shared out by rows: the first gathers its input,
the second scatters its sum.

Parameters are the rank's own; `state_dict` holds those, and loads those, or the whole layer's, of
which it takes the rank's part. :func:`whole_state_dict` puts them together again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed import regions
from ..distributed.communicator import Communicator, communicator_of
from ..distributed.linear import (
    all_gather_linear,
    copy_linear,
    int8_all_gather_linear,
    int8_linear_all_reduce,
    int8_linear_reduce_scatter,
    linear_all_reduce,
    linear_reduce_scatter,
)
from ..ops.int8 import int8_linear
from .int8 import Int8Linear

Group = Communicator | dist.ProcessGroup
Layer = TypeVar("Layer", bound="_Parallel")


def _nothing(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """A hook's."""


class _Parallel(nn.Linear):
    """The rank's part of a linear layer."""

    shards: Mapping[str, int] = {}  # of which parameter which dimension is shared out
    options: tuple[str, ...] = ("skip_bias_add", "sequence_parallel", "sequence_dim")
    communicator: Communicator
    sequence_parallel = False
    sequence_dim = 0
    skip_bias_add = False

    def _begin(
        self,
        input_size: int,
        output_size: int,
        bias: bool,
        init_method: Callable[[Tensor], object] | None,
        group: Group | None,
        device: Any,
        dtype: torch.dtype | None,
        **options: Any,
    ) -> None:
        nn.Module.__init__(self)
        whole = nn.Linear(input_size, output_size, bias, device, dtype)
        if init_method is not None:
            init_method(whole.weight)
        communicator = communicator_of(group)
        self._take(whole, communicator, self._parts(whole, communicator, options), options)

    @classmethod
    def of(cls: type[Layer], linear: nn.Linear, group: Group | None, **options: Any) -> Layer:
        """Makes `linear`, which is whole and the same on every rank, the rank's part of itself, in
        place: its hooks and everybody who holds it stay. `options` are the arguments by name."""
        communicator = communicator_of(group)
        parts = cls._parts(linear, communicator, options)
        linear.__class__ = cls  # nothing is refused from here on
        assert isinstance(linear, cls)
        linear._take(linear, communicator, parts, options)
        return linear

    @classmethod
    def _parts(
        cls, whole: nn.Linear, communicator: Communicator, options: dict[str, Any]
    ) -> dict[str, nn.Parameter | None]:
        """The rank's parameters, where the options are ones that it takes."""
        unknown = sorted(options.keys() - set(cls.options))
        if unknown:
            raise TypeError(
                f"weft.nn.{cls.__name__}: unknown option {unknown[0]!r}, expected one of "
                f"{', '.join(cls.options)}"
            )
        cls._check({name: getattr(cls, name) for name in cls.options} | options, whole.bias)
        parts: dict[str, nn.Parameter | None] = {"weight": None, "bias": None}
        for name in parts:
            parameter = getattr(whole, name)
            if parameter is None:
                continue
            mine = parameter.detach()
            if name in cls.shards:
                mine = regions.part(mine, communicator, cls.shards[name]).clone()
            parts[name] = nn.Parameter(mine, parameter.requires_grad)
        return parts

    @classmethod
    def _check(cls, options: dict[str, Any], bias: Tensor | None) -> None:
        """ValueError where options contradict each other."""

    def _take(
        self,
        whole: nn.Linear,
        communicator: Communicator,
        parts: dict[str, nn.Parameter | None],
        options: dict[str, Any],
    ) -> None:
        self.communicator = communicator
        self.input_size, self.output_size = whole.in_features, whole.out_features
        for name, value in options.items():
            setattr(self, name, value)
        for name, parameter in parts.items():
            self.register_parameter(name, parameter)
        self.out_features, self.in_features = self.weight.shape
        # torch's encoder layers pass their linear layers by, in inference, and read their weights,
        # unless a layer has a hook.
        self.register_forward_pre_hook(_nothing)

    def quantize_(self) -> nn.Module:
        """The same layer with an int8 weight, a scale for each row that the rank has, in place: for
        inference."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Any:  # y, or y and bias
        y = self._nested(input) if input.is_nested else self._whole(input)
        return (y, self._bias_apart()) if self.skip_bias_add else y

    def _whole(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _bias_apart(self) -> Tensor | None:
        return self.bias

    def _nested(self, x: Tensor) -> Tensor:
        """The rows of all its tensors at once."""
        if self.sequence_parallel or x.layout != torch.strided:
            raise NotImplementedError(
                f"weft.nn.{type(self).__name__}: a nested tensor of layout {x.layout}, expected a "
                "strided one, and that without sequence_parallel"
            )
        parts = x.unbind()
        y = self._whole(torch.cat(parts))
        return torch.nested.as_nested_tensor(list(y.split([len(part) for part in parts])))

    def _first(self, x: Tensor) -> Tensor:
        """What is shared out by rows has them first."""
        return x.transpose(0, self.sequence_dim) if self.sequence_dim else x

    @property
    def _bias(self) -> Tensor | None:
        return None if self.skip_bias_add else self.bias

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **more: Any
    ) -> None:
        own = state_dict
        for name, dim in self.shards.items():
            given = state_dict.get(prefix + name)
            mine = self.in_features if dim == 1 else self.out_features
            if given is not None and given.shape[dim] == mine * self.communicator.world_size:
                own = dict(own) if own is state_dict else own
                own[prefix + name] = regions.part(given, self.communicator, dim)
        super()._load_from_state_dict(own, prefix, *rest, **more)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        of = f"rank {self.communicator.rank} of {self.communicator.world_size}"
        rows = ", sequence_parallel=True" if self.sequence_parallel else ""
        return f"{super().extra_repr()}, of {self.input_size} → {self.output_size}, {of}{rows}"


class _Column(_Parallel):
    shards = {"weight": 0, "bias": 0, "weight_scale": 0}
    options = (*_Parallel.options, "gather_output")
    gather_output = False

    @classmethod
    def _check(cls, options: dict[str, Any], bias: Tensor | None) -> None:
        if options["gather_output"] and options["sequence_parallel"]:
            raise ValueError(
                "weft.nn.ColumnParallelLinear: gather_output with sequence_parallel, expected one "
                "of them"
            )

    def _whole(self, x: Tensor) -> Tensor:
        if self.sequence_parallel:
            return self._first(self._gather(self._first(x)))
        y = self._multiply(x)
        return regions.gather(y, self.communicator, -1) if self.gather_output else y

    def _gather(self, x: Tensor) -> Tensor:
        return all_gather_linear(x, self.weight, self._bias, self.communicator)

    def _multiply(self, x: Tensor) -> Tensor:
        return copy_linear(x, self.weight, self._bias, self.communicator)


class _Row(_Parallel):
    shards = {"weight": 1}
    options = (*_Parallel.options, "input_is_parallel", "reduce_results")
    input_is_parallel = True
    reduce_results = True

    @classmethod
    def _check(cls, options: dict[str, Any], bias: Tensor | None) -> None:
        if options["sequence_parallel"] and not options["input_is_parallel"]:
            raise ValueError("weft.nn.RowParallelLinear: sequence_parallel needs input_is_parallel")
        if options["sequence_parallel"] and not options["reduce_results"]:
            raise ValueError(
                "weft.nn.RowParallelLinear: reduce_results=False leaves out the sum of which "
                "sequence_parallel keeps rows; expected one of them"
            )
        if not options["reduce_results"] and bias is not None and not options["skip_bias_add"]:
            raise ValueError(
                "weft.nn.RowParallelLinear: reduce_results=False would add the bias once for each "
                "rank; expected bias=False or skip_bias_add=True"
            )

    def _whole(self, x: Tensor) -> Tensor:
        x = x if self.input_is_parallel else regions.scatter(x, self.communicator, -1)
        if self.sequence_parallel:
            return self._first(self._scatter(self._first(x)))
        return self._reduce(x) if self.reduce_results else self._multiply(x)

    def _bias_apart(self) -> Tensor | None:
        if self.bias is None or not self.sequence_parallel:
            return self.bias
        return regions.copy(self.bias, self.communicator)  # added to the rank's rows alone

    def _multiply(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)

    def _reduce(self, x: Tensor) -> Tensor:
        return linear_all_reduce(x, self.weight, self._bias, self.communicator)

    def _scatter(self, x: Tensor) -> Tensor:
        return linear_reduce_scatter(x, self.weight, self._bias, self.communicator)


class ColumnParallelLinear(_Column):
    r"""A linear layer of which each rank has some of the outputs.

    .. math:: y_r = x W_r^T + b_r

    Forward needs no communication; backward sums the gradient of x over the ranks while it is
    computed. With `sequence_parallel` the rank's rows of x come in, the others' are gathered while
    its own are multiplied, and the gradient is scattered.

    Weight and bias begin as those of ``nn.Linear(input_size, output_size)`` would, where all ranks
    have the same random state.

    Args:
        input_size, output_size: of the whole layer; the ranks divide output_size.
        bias: have one. Default: True.
        gather_output: return the whole y, on every rank. Default: False.
        init_method: called on the whole weight.
        skip_bias_add: return y without the bias, and the bias. Default: False.
        sequence_parallel: see above. Default: False.
        sequence_dim: of x and y, the dimension whose rows they are: 0, or 1 behind a batch.
        group: a `Communicator`, or a process group, over which one is made.
        device, dtype: as ever.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        bias: bool = True,
        gather_output: bool = False,
        init_method: Callable[[Tensor], object] | None = None,
        skip_bias_add: bool = False,
        sequence_parallel: bool = False,
        sequence_dim: int = 0,
        group: Group | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._begin(
            input_size, output_size, bias, init_method, group, device, dtype,
            gather_output=gather_output,
            skip_bias_add=skip_bias_add,
            sequence_parallel=sequence_parallel,
            sequence_dim=sequence_dim,
        )  # fmt: skip

    def quantize_(self) -> nn.Module:
        return Int8ColumnParallelLinear.of(self, self.weight)


class RowParallelLinear(_Row):
    r"""A linear layer of which each rank has some of the inputs.

    .. math:: y = \sum_r x_r W_r^T + b

    The sum is taken while the product is computed; backward needs no communication. With
    `sequence_parallel` each rank gets its rows of y, and backward gathers their gradient.

    Args:
        input_size, output_size: of the whole layer; the ranks divide input_size.
        bias: have one, the same on every rank, added once. Default: True.
        input_is_parallel: x has the rank's columns already. Default: True.
        init_method: called on the whole weight.
        skip_bias_add: return y without the bias, and the bias. Default: False.
        reduce_results: sum over the ranks. False leaves that to
            :func:`weft.all_reduce_rms_norm`, and needs ``bias=False`` or ``skip_bias_add=True``.
        sequence_parallel, sequence_dim, group, device, dtype: as of `ColumnParallelLinear`.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        bias: bool = True,
        input_is_parallel: bool = True,
        init_method: Callable[[Tensor], object] | None = None,
        skip_bias_add: bool = False,
        reduce_results: bool = True,
        sequence_parallel: bool = False,
        sequence_dim: int = 0,
        group: Group | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._begin(
            input_size, output_size, bias, init_method, group, device, dtype,
            input_is_parallel=input_is_parallel,
            skip_bias_add=skip_bias_add,
            reduce_results=reduce_results,
            sequence_parallel=sequence_parallel,
            sequence_dim=sequence_dim,
        )  # fmt: skip

    def quantize_(self) -> nn.Module:
        return Int8RowParallelLinear.of(self, self.weight)


# ---- INT8: the layers above after quantize_()


class _Int8:
    """What a layer is made and holds its weight by is `Int8Linear`'s; the rest is `_Parallel`'s."""

    @classmethod
    def of(cls, linear: nn.Module, weight: Tensor, **options: Any) -> Any:
        return super(_Parallel, cls).of(linear, weight, **options)  # type: ignore[misc]

    def _take(self, weight: Any) -> None:
        super(_Parallel, self)._take(weight)  # type: ignore[misc]

    @property
    def _weight(self) -> Tensor:
        return self._held()["packed"]  # type: ignore[attr-defined, no-any-return]


class Int8ColumnParallelLinear(_Int8, _Column, Int8Linear):  # type: ignore[misc]
    """`ColumnParallelLinear` after :meth:`ColumnParallelLinear.quantize_`: W8A8, rows of x with
    scales of their own; gathered rows travel as int8."""

    def _gather(self, x: Tensor) -> Tensor:
        return int8_all_gather_linear(
            x, self._weight, self.weight_scale, self._bias, self.communicator
        )

    def _multiply(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            x = regions.copy(x, self.communicator)
        return int8_linear(x, self._weight, self.weight_scale, self._bias)


class Int8RowParallelLinear(_Int8, _Row, Int8Linear):  # type: ignore[misc]
    """`RowParallelLinear` after :meth:`RowParallelLinear.quantize_`: W8A8, scales for the columns
    that the rank has, of each row of x and of the weight."""

    def _multiply(self, x: Tensor) -> Tensor:
        return int8_linear(x, self._weight, self.weight_scale)

    def _reduce(self, x: Tensor) -> Tensor:
        return int8_linear_all_reduce(
            x, self._weight, self.weight_scale, self._bias, self.communicator
        )

    def _scatter(self, x: Tensor) -> Tensor:
        return int8_linear_reduce_scatter(
            x, self._weight, self.weight_scale, self._bias, self.communicator
        )


def whole_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of `module` as if no layer were shared out: on every rank, which all call."""
    state = dict(module.state_dict())
    for name, layer in module.named_modules(remove_duplicate=False):
        if not isinstance(layer, _Parallel):
            continue
        if isinstance(layer, Int8RowParallelLinear):
            raise NotImplementedError(
                f"weft: {name} has int8 scales of each rank's own columns, which no whole layer "
                "has; save it before quantize_()"
            )
        for parameter, dim in layer.shards.items():
            key = f"{name}.{parameter}" if name else parameter
            if key in state:
                state[key] = regions.all_parts(state[key], layer.communicator, dim)
    return state
