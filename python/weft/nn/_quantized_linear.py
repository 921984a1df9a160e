"""The base of the linear layers with INT8 weights: how the weight is held, moved, copied and saved.

Held is the weight in the kernels' own packed form. `weight`, int8 [N, K], is made of it whenever
it is asked for, and is what copies and checkpoints hold, so that they fit every machine:

    weight              int8 [N, K]; of 4 bits, `weight_packed` int32 [N, ceil(K / 8)]
    weight_scale        float32 [N, 1] or [N, K / group_size]
    weight_zero_point   float32, the same, of asymmetric 4-bit weights
    input_scale, input_zero_point    float32 [1], int32 [1], of static quantisation
    input_shift, input_smooth        float32 [K]: the layer computes with (x - shift) / smooth
    bias                as ever
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._int8_weight import (
    Quantized,
    along_columns,
    from_int32,
    has_kernel,
    is_finite,
    pack,
    quantize_weight,
    to_int32,
    unpack,
)

FLOATS = ("weight_scale", "weight_zero_point", "input_scale", "input_shift", "input_smooth")
OPTIONAL = (*FLOATS[1:], "input_zero_point")


class QuantizedLinear(nn.Linear):
    """A linear layer for inference whose weight is made of integers.

    Its scales stay float32 under `.to(dtype)`; the output has the dtype of the input. Checkpoints
    of :func:`weft.quantize_`, of compressed-tensors, and of floats, which are quantised as they
    are loaded, all load.

    Args:
        in_features, out_features: K, N.
        bias: have one. Default: True.
        device: of all that it holds.
        dtype: of the bias.
    """

    bits = 8
    group_size: int | None = None
    symmetric_weight = True
    optional: tuple[str, ...] = ()  # those of OPTIONAL that forward computes with

    packed: Tensor | None  # the weight is either in the form of the kernels
    plain: Tensor | None  # or, on a device that has none, int8 [N, K]
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    input_shift: Tensor | None
    input_smooth: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        zeros = torch.zeros(out_features, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)
        self._take(self.quantized(torch.zeros(out_features, in_features, device=device)))

    def quantized(self, weight: Tensor) -> Quantized:
        """`weight` [N, K] as this layer would have it."""
        found = quantize_weight(weight, self.bits, self.group_size, self.symmetric_weight)
        if not is_finite(found.scale):
            raise ValueError("weight holds NaN or infinity")
        return found

    def _take(self, weight: Quantized) -> None:
        self.register_buffer("packed", None, persistent=False)
        self.register_buffer("plain", None, persistent=False)
        self.register_buffer("weight_scale", along_columns(weight.scale))
        for name in OPTIONAL:
            self.register_buffer(name, None)
        self.weight_zero_point = along_columns(weight.zero_point)
        self._hold(weight.values)

    @classmethod
    def of(cls, linear: nn.Module, weight: Tensor | Quantized, **options: Any) -> QuantizedLinear:
        """Makes `linear` an instance of this class, in place: its hooks, its bias and everybody
        who holds it stay.

        Args:
            linear: torch's Linear, or transformers' Conv1D.
            weight: [N, K], in floats or quantised.
            options: attributes of the instance.
        """
        for name in ("weight", "nf", "nx"):  # Conv1D has the others
            linear._parameters.pop(name, None)
            linear.__dict__.pop(name, None)
        linear.__class__ = cls
        assert isinstance(linear, cls)
        linear.__dict__.update(options)
        found = weight if isinstance(weight, Quantized) else linear.quantized(weight)
        linear.out_features, linear.in_features = found.values.shape
        linear._take(found)
        return linear

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """int8 [N, K]."""
        if self.plain is not None:
            return self.plain
        assert self.packed is not None
        return unpack(self.packed)

    def dequantized_weight(self) -> Tensor:
        """float32 [N, K], by which (x - shift) / smooth is multiplied."""
        scale = self.weight_scale.reshape(self.out_features, -1, 1)  # [N, G, 1]
        w = self.weight.float().view(self.out_features, scale.shape[1], -1)
        if self.weight_zero_point is not None:
            w = w - self.weight_zero_point.reshape(scale.shape)
        return (w * scale).view(self.out_features, self.in_features)

    def _hold(self, values: Tensor) -> None:
        here = has_kernel(values.device)
        self.packed = pack(values, self.bits) if here else None
        self.plain = None if here else values

    def _held(self) -> dict[str, Any]:
        """All buffers, the weight packed. A look-up by attribute takes as long as a small layer."""
        held = self._buffers
        if held["packed"] is None:
            raise RuntimeError(
                f"weft.nn.{type(self).__name__}: its weight is on the device "
                f"{self.weight_scale.device}, for which weft has no INT8 kernel here"
            )
        return held

    def _get_name(self) -> str:
        return f"weft.{super()._get_name()}"

    def extra_repr(self) -> str:
        named = {"shift": self.input_shift, "smooth": self.input_smooth}
        smoothing = [f"{name}=True" for name, t in named.items() if t is not None]
        return ", ".join([super().extra_repr(), *self._options(), *smoothing])

    def _options(self) -> list[str]:
        """What tells this layer from others of its class, as in repr."""
        return []

    # ------------------------------------------------------------------------- moving and copying

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Scales keep their dtype; a weight that changes its device is packed there."""
        name = "plain" if self.packed is None else "packed"
        held = self._buffers[name]
        assert held is not None
        device = fn(held.new_empty(0)).device
        values = fn(self.weight).to(torch.int8) if device != held.device else None
        floats = {name: self._buffers[name] for name in FLOATS}
        self._buffers[name] = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for floating, before in floats.items():
            after = self._buffers[floating]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[floating] = before.to(device)
        if values is None:
            self._buffers[name] = held
        else:
            self._hold(values)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_buffers"] = self._buffers | {"packed": None, "plain": self.weight}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        assert self.plain is not None
        self._hold(self.plain)

    # -------------------------------------------------------------------------------- checkpoints

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in FLOATS[:2]:
            if self._buffers[name] is not None:
                plain = destination[prefix + name].reshape(self.out_features, -1)
                destination[prefix + name] = plain.contiguous()
        if self.bits == 8:
            destination[prefix + "weight"] = self.weight
        else:
            destination[prefix + "weight_packed"] = to_int32(self.weight)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        weight = None
        try:
            weight = self._translate(given)
        except ValueError as error:
            error_msgs.append(f"{prefix.removesuffix('.')}: {error}")
        else:
            if weight is None:
                missing_keys.append(f"{prefix}{'weight' if self.bits == 8 else 'weight_packed'}")
        for name in self.optional:
            if name in given and self._buffers[name] is None:
                self._buffers[name] = torch.empty_like(given[name], device=self._device)
        if "bias" in given and self.bias is None:  # a shift made one
            here = torch.empty_like(given["bias"], device=self._device)
            self._parameters["bias"] = nn.Parameter(here, requires_grad=False)
        if weight is not None and "weight_zero_point" not in given:
            self.weight_zero_point = None
        super()._load_from_state_dict(  # type: ignore[no-untyped-call]
            {prefix + k: v for k, v in given.items()},
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        for name in FLOATS[:2]:  # assigned ones lie as the checkpoint has them
            self._buffers[name] = along_columns(self._buffers[name])
        if weight is not None:
            self._hold(weight.to(self._device))

    @property
    def _device(self) -> torch.device:
        return self.weight_scale.device

    def _translate(self, given: dict[str, Tensor]) -> Tensor | None:
        """Takes the weight out of a checkpoint's entries, as int8 [N, K], and leaves the others
        under weft's names, in its shapes and dtypes."""
        weight = given.pop("weight", None)
        if self.bits == 4 and "weight_packed" in given:
            weight = from_int32(given.pop("weight_packed"), self.in_features)
            given.pop("weight_shape", None)  # compressed-tensors has it; here it is known
        shape = self.out_features, self.in_features
        if weight is not None and tuple(weight.shape) != shape:
            raise ValueError(f"weight has shape {list(weight.shape)}, expected {list(shape)}")
        if weight is not None and weight.is_floating_point():
            weight, given["weight_scale"], zero_point = self.quantized(weight)
            given |= {} if zero_point is None else {"weight_zero_point": zero_point}
        if weight is not None and weight.dtype != torch.int8:
            raise ValueError(f"weight has dtype {weight.dtype}, expected int8 or floats")
        for name in FLOATS:
            if name in given:
                given[name] = given[name].float()
        full = self.weight_scale.shape
        for name in FLOATS[:2]:  # of compressed-tensors there may be one scale for all
            if name in given and given[name].numel() in (1, full.numel()):
                given[name] = given[name].reshape(-1).expand(full.numel()).reshape(full)
        for name, dtype in (("input_scale", torch.float32), ("input_zero_point", torch.int32)):
            if name in given:
                if given[name].numel() != 1:
                    found = list(given[name].shape)
                    raise ValueError(f"{name} has shape {found}, expected one element")
                given[name] = given[name].to(dtype).reshape(1)
        return weight
