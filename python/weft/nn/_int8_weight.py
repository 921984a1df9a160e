"""What the INT8 modules share: how a weight is quantised, written to checkpoints, and packed once.

A weight [N, K] has scales [N], or [N, K / group], and zero points if it is asymmetric:

    w ≈ scale · (q - zero_point)

    8 bits, symmetric     scale = max|w| / 127                 q from -127 to 127
    4 bits, symmetric     scale = max|w| / 7                   q from -7 to 7
    4 bits, asymmetric    scale = (max w⁺ - min w⁻) / 15       q from -8 to 7
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from ..ops.int8 import pack_int8_weight, unpack_int8_weight


class Quantized(NamedTuple):
    """A quantised weight.

    values: int8 [N, K].
    scale: float32 [N] or [N, K / group].
    zero_point: float32, as scale; None if symmetric.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None


def quantize_weight(
    weight: Tensor, bits: int = 8, group: int | None = None, symmetric: bool = True
) -> Quantized:
    """Round to nearest, with a scale for each row or, with `group`, for that many of its entries.
    What is nothing but zeros has scale 1, and
    what holds NaN or infinity a scale that is neither."""
    N, K = weight.shape
    group = group or K
    if K % group:
        raise ValueError(f"weft: group_size is {group}, expected a divisor of in_features, {K}")
    w = weight.detach().float().reshape(N, K // group, group)
    most = 2 ** (bits - 1) - 1
    if symmetric:
        scale = w.abs().amax(-1, keepdim=True) / most
        zero_point = torch.zeros_like(scale)
    else:
        low, high = w.amin(-1, keepdim=True).clamp(max=0), w.amax(-1, keepdim=True).clamp(min=0)
        scale = (high - low) / (2 * most + 1)
        zero_point = (-(most + 1) - low / scale.where(scale != 0, 1.0)).round()
    scale = scale.where(scale != 0, 1.0)
    least = -most if symmetric else -most - 1
    q = ((w / scale).round() + zero_point).clamp(least, most).to(torch.int8)
    shape = (N,) if group == K else (N, K // group)
    points = None if symmetric else zero_point.view(shape)
    return Quantized(q.view(N, K), scale.view(shape), points)


def along_columns(values: Tensor | None) -> Tensor | None:
    """[N] or [N, groups] with those of one group side by side, as the kernels read them."""
    if values is None or values.dim() == 1 or values.shape[1] == 1:
        return values
    return values.t().contiguous().t()


def is_finite(t: Tensor) -> bool:
    """Whether t holds numbers alone, as far as it holds anything."""
    return t.is_meta or isinstance(t, FakeTensor) or bool(t.isfinite().all())


def to_int32(values: Tensor) -> Tensor:
    """int8 [N, K] of 4 bits as int32 [N, ceil(K / 8)], the first in the lowest bits, each 8 higher
    than it is: the layout of compressed-tensors."""
    K = values.shape[-1]
    nibbles = F.pad(values.int() + 8, (0, -K % 8), value=8).unflatten(-1, (-1, 8))
    places = torch.arange(0, 32, 4, dtype=torch.int32, device=values.device)
    return (nibbles << places).sum(-1, dtype=torch.int32)


def from_int32(packed: Tensor, K: int) -> Tensor:
    places = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    nibbles = (packed[..., None] >> places) & 15
    return (nibbles - 8).to(torch.int8).flatten(-2)[..., :K].contiguous()


# ------------------------------------------------------------------------------------------- packs
#
# Tied weights are one tensor, and stay one in packed form. The plain form of a packed weight is
# made when somebody asks for it; for as long as he holds it, it is the same for all who ask.

_packs: dict[tuple[Any, ...], tuple[Any, weakref.ref[Tensor]]] = {}
_plain: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = {}


def pack(values: Tensor, bits: int) -> Tensor:
    """The kernels' form of int8 [N, K]; of the same storage with the same values, the same tensor.

    Values are compared: inference tensors, `.data` and numpy write without a new version.
    """
    from torch.multiprocessing.reductions import StorageWeakRef

    storage = StorageWeakRef(values.untyped_storage())  # keeps its address from being used again
    version = 0 if values.is_inference() else values._version
    place = (values.storage_offset(), *values.shape, *values.stride())
    key = (storage.cdata, *place, bits, version)
    for stale in [k for k, (there, ref) in _packs.items() if there.expired() or ref() is None]:
        del _packs[stale]
    held = _packs[key][1]() if key in _packs else None
    if held is None or not (
        isinstance(values, FakeTensor) or torch.equal(unpack_int8_weight(held), values)
    ):
        held = pack_int8_weight(values, bits=bits)
        _packs[key] = storage, weakref.ref(held)
    return held


def unpack(packed: Tensor) -> Tensor:
    """int8 [N, K]."""
    there, ref = _plain.get(id(packed), (None, None))
    held = ref() if there is not None and ref is not None and there() is packed else None
    if held is None:
        held = unpack_int8_weight(packed)
        for stale in [k for k, (p, v) in _plain.items() if p() is None or v() is None]:
            del _plain[stale]
        _plain[id(packed)] = weakref.ref(packed), weakref.ref(held)
    return held


def has_kernel(device: torch.device) -> bool:
    """Whether weights are packed there; elsewhere they stay plain."""
    if device.type == "meta":
        return False
    key = torch._C._dispatch_key_for_device(device.type)
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("weft::int8_pack", key))
