"""What the norm tests run on: inputs and their layouts, the functions compared, their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import weft
from weft import reference

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)

# Around every vector and unrolling width, the usual hidden sizes and their neighbours.
NARROW = (1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 255, 384, 768, 1000, 1023, 1025)
MIDDLE = (4095, 4096, 4097, 8195)
WIDE = (16384, 20001, 262144, 300001)


def name(value: Any) -> str | None:
    """A test id: bfloat16 for torch.bfloat16, 2x3x65 for shapes."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple) and all(isinstance(v, int) for v in value):
        return "x".join(map(str, value)) or "scalar"
    return None


# ------------------------------------------------------------------------------------------ inputs


def _transposed(new: Callable[[Sequence[int]], Tensor], shape: Sequence[int]) -> Tensor:
    if len(shape) < 3:
        return new((1, *shape)).transpose(0, 1).squeeze(1)
    return new((shape[1], shape[0], *shape[2:])).transpose(0, 1)


def _overlapping(new: Callable[[Sequence[int]], Tensor], shape: Sequence[int]) -> Tensor:
    rows = torch.Size(shape[:-1]).numel()
    flat = new((rows + shape[-1],))
    strides = [torch.Size(shape[i + 1 : -1]).numel() for i in range(len(shape) - 1)]
    return flat.as_strided(tuple(shape), (*strides, 1))


# Each makes a tensor of a shape out of `new(shape)`, which draws a contiguous one.
LAYOUTS: dict[str, Callable[[Callable[[Sequence[int]], Tensor], Sequence[int]], Tensor]] = {
    "contiguous": lambda new, s: new(s),
    "unaligned": lambda new, s: new((torch.Size(s).numel() + 1,))[1:].view(*s),
    "padded_rows": lambda new, s: new((*s[:-1], s[-1] + 3))[..., 1:-2],
    "every_other_row": lambda new, s: new((*s[:-2], 2 * s[-2], s[-1]))[..., ::2, :],
    "expanded_rows": lambda new, s: new((1, *s[1:])).expand(s),
    "expanded_inner_rows": lambda new, s: new((*s[:-2], 1, s[-1])).expand(s),
    "transposed_rows": _transposed,
    "overlapping_rows": _overlapping,
    "every_other_column": lambda new, s: new((*s[:-1], 2 * s[-1]))[..., ::2],
    "columns_first": lambda new, s: new((s[-1], *s[:-1])).movedim(0, -1),
    "expanded_columns": lambda new, s: new((*s[:-1], 1)).expand(s),
}
WRITABLE = tuple(k for k in LAYOUTS if "expanded" not in k and k != "overlapping_rows")


def draw(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: str = "cpu",
    layout: str = "contiguous",
    scale: float = 1.0,
    mean: float = 0.0,
) -> Tensor:
    """Normal numbers, drawn on the CPU so that every backend sees the same."""

    def new(base: Sequence[int]) -> Tensor:
        return (torch.randn(tuple(base), dtype=torch.float32) * scale + mean).to(device, dtype)

    return LAYOUTS[layout](new, tuple(shape))


def parameters(
    shape: Sequence[int], dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """A weight around one and away from zero, and a bias."""
    weight = draw(shape, torch.float32).clamp(-3, 3) * 0.25 + 1
    return weight.to(device, dtype), draw(shape, dtype, device, scale=0.5)


def to_float64(value: Any) -> Any:
    """What the reference gets: the same numbers, on the CPU, in float64."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.double() if value.is_floating_point() else value
    return value


# --------------------------------------------------------------------------------------- functions


def plain_norm(
    is_rms_norm: bool,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    zero_centered_weight: bool = False,
) -> Tensor:
    """torch's own op, the yardstick, helped where it lacks an option.

    Parameters go in as float32 (float64 for float64), which torch takes beside 16-bit inputs.
    """
    accumulate = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if p is None else p.to(accumulate) for p in (weight, bias))
    if weight is not None and zero_centered_weight:
        weight = 1 + weight
    if weight is not None and weight.shape != torch.Size(shape):  # per head
        y = plain_norm(is_rms_norm, x.to(accumulate), shape, None, None, eps) * weight
        return (y if bias is None else y + bias).to(x.dtype)
    if not is_rms_norm:
        if weight is None and bias is not None:
            weight = torch.ones_like(bias)  # torch's backward wants both or neither
        return F.layer_norm(x, shape, weight, bias, eps)
    y = F.rms_norm(x.to(accumulate), shape, weight, eps)  # which warns of weights in other dtypes
    return (y if bias is None else y + bias).to(x.dtype)


ADDENDS = (
    "x", "residual", "x1", "dropout_p", "dropout_mask", "dropout_mask1", "rowscale", "layerscale",
    "x_bias", "residual2", "residual_alpha",
)  # fmt: skip


def plain_fused(is_rms_norm: bool, **call: Any) -> tuple[Tensor, ...]:
    """What one writes without a fused op: sums in the dtype of the inputs, then torch's norm.

    The norm takes the sum as the residual stream keeps it, rounded to the residual's dtype.
    """
    x, weight, bias = call["x"], call["weight"], call["bias"]
    dtype = call.get("out_dtype") or x.dtype
    residual = call.get("residual")
    z_dtype = x.dtype if residual is None else residual.dtype
    if residual is None and call.get("residual_in_fp32"):
        z_dtype = torch.promote_types(x.dtype, torch.float32)
    if x.dtype != torch.float64:  # float64 arguments do not make it a float64 computation
        call = {k: v.float() if _is_float64(v) else v for k, v in call.items()}
    eps, zero_centered = call.get("eps", 1e-6), call.get("zero_centered_weight", False)
    z = reference.norm.add(**{k: v for k, v in with_masks(call).items() if k in ADDENDS})
    z = z.to(torch.float32 if z_dtype == torch.float64 != x.dtype else z_dtype)
    pairs = [(weight, bias)]
    if call.get("weight1") is not None:
        pairs.append((call["weight1"], call.get("bias1")))
    shape = x.shape[-1:]
    norms = [plain_norm(is_rms_norm, z, shape, w, b, eps, zero_centered) for w, b in pairs]
    results = [y.to(dtype) for y in norms]
    if call.get("prenorm"):
        results.append(z.to(z_dtype))
    return tuple(results)


def _is_float64(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def by_name(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A norm with keyword arguments only, as the gradient helpers call functions."""

    def call(x, shape, weight, bias, eps, **options):  # type: ignore[no-untyped-def]
        return norm(x, shape, weight, bias, eps, **options)

    return call


@cache
def _mask(rng_state: tuple[int, int], shape: tuple[int, ...], p: float, stream: int) -> Tensor:
    return reference.philox.dropout_mask(torch.tensor(rng_state), shape, p, stream)


def with_masks(call: dict[str, Any]) -> dict[str, Any]:
    """`call` of a fused function for the reference, with masks for the generator's state."""
    call = dict(call)
    state = call.pop("rng_state", None)
    if state is not None:
        for stream, name in enumerate(("dropout_mask", "dropout_mask1")):
            mask = _mask(tuple(state.tolist()), tuple(call["x"].shape), call["dropout_p"], stream)
            call[name] = mask.to(call["x"].device)
    return call


def exact(function: Callable[..., Any], *args: Any, **call: Any) -> Any:
    """`function`, a reference, in float64: the truth."""
    call = with_masks(call)
    return function(*map(to_float64, args), **{k: to_float64(v) for k, v in call.items()})


def as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def _like_layer_norm(rms_norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """rms_norm with the argument order of layer_norm."""

    def call(x, shape, weight=None, bias=None, eps=1e-6, **options):  # type: ignore[no-untyped-def]
        return rms_norm(x, shape, weight, eps, bias=bias, **options)

    return call


@dataclass(frozen=True)
class Norm:
    """A norm and its relatives: weft's, and the reference's that tell the truth."""

    name: str
    is_rms_norm: bool
    weft: Callable[..., Tensor]  # (x, normalized_shape, weight, bias, eps, **options)
    truth: Callable[..., Tensor]
    fused: Callable[..., Any]  # flash-attn's arguments
    fused_truth: Callable[..., Any]
    int8: Callable[..., Any]
    int8_truth: Callable[..., Any]

    def __str__(self) -> str:
        return self.name

    def plain(self, *args: Any, **options: Any) -> Tensor:
        return plain_norm(self.is_rms_norm, *args, **options)

    def fused_plain(self, **call: Any) -> tuple[Tensor, ...]:
        return plain_fused(self.is_rms_norm, **call)


_truth = reference.norm
LAYER = Norm(
    "layer_norm", False,
    weft.layer_norm, _truth.layer_norm,
    weft.layer_norm_fn, _truth.layer_norm_fn,
    weft.layer_norm_int8, _truth.layer_norm_int8,
)  # fmt: skip
RMS = Norm(
    "rms_norm", True,
    _like_layer_norm(weft.rms_norm), _like_layer_norm(_truth.rms_norm),
    weft.rms_norm_fn, _truth.rms_norm_fn,
    weft.rms_norm_int8, _truth.rms_norm_int8,
)  # fmt: skip
NORMS = (LAYER, RMS)

# ---------------------------------------------------------------------------------- fused problems

PER_CHANNEL = ("weight", "bias", "weight1", "bias1", "x_bias", "layerscale")
PER_ELEMENT = ("x", "residual", "residual2", "x1")
DIFFERENTIABLE = PER_ELEMENT + PER_CHANNEL
SWITCHES: dict[str, dict[str, Any]] = {  # options that are no tensors
    "alpha": {"residual_alpha": -0.75},
    "prenorm": {"prenorm": True},
    "fp32_residual": {"residual_in_fp32": True},
    "zero_centered": {"zero_centered_weight": True},
    "dropout": {"dropout_p": 0.3},
}


def fused_call(
    shape: Sequence[int],
    dtype: torch.dtype,
    options: Iterable[str],
    device: str = "cpu",
    layout: str = "contiguous",
    weight_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Keyword arguments of layer_norm_fn with the named options: tensors and SWITCHES."""
    options = set(options)
    call: dict[str, Any] = {"weight": None, "bias": None}
    for option in ("x", *sorted(options)):
        if option in PER_ELEMENT:
            wanted = residual_dtype if option in ("residual", "residual2") else None
            call[option] = draw(shape, wanted or dtype, device, layout)
        elif option in PER_CHANNEL:
            weight, bias = parameters(shape[-1:], weight_dtype or dtype, device)
            call[option] = bias if "bias" in option else weight
        elif option == "rowscale":
            call[option] = parameters(shape[:-1], dtype, device)[0]
        else:
            call |= SWITCHES[option]
    if "zero_centered" in options and call["weight"] is not None:
        call["weight"] = call["weight"] - 1
    if "dropout" in options:
        call["rng_state"] = torch.tensor([0x1234_5678_9ABC_DEF, 40])
    return call


# --------------------------------------------------------------------------------------- gradients


def gradients(
    function: Callable[..., Any],
    call: dict[str, Any],
    upstream: Sequence[Tensor],
    wrt: Iterable[str],
) -> dict[str, Tensor | None]:
    """Gradients of function(**call) with respect to named arguments, which keep their strides."""
    leaves = {k: call[k].detach().requires_grad_() for k in wrt}
    results = as_tuple(function(**(call | leaves)))
    torch.autograd.backward(results[: len(upstream)], list(upstream))
    return {k: leaf.grad for k, leaf in leaves.items()}


def exact_gradients(
    function: Callable[..., Any],
    call: dict[str, Any],
    upstream: Sequence[Tensor],
    wrt: Iterable[str],
) -> dict[str, Tensor | None]:
    call = {k: to_float64(v) for k, v in with_masks(call).items()}
    return gradients(function, call, [to_float64(u) for u in upstream], wrt)
