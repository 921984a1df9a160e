"""weft and its peers on the INT8 cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import weft
from bench.case import Bound, Inputs, Offer
from bench.int8 import onnx
from bench.int8.cases import INT_MM, PER_TENSOR, W8A16, Int8Case
from bench.peers import EAGER, ONNX, TORCHAO, WEFT, as_tuple, compiled, why_not

DYNAMIC = {"FBGEMM, per tensor": "fbgemm", PER_TENSOR: "onednn"}
"""Peers and their engines in torch.ao: x in float32, one scale for all of it, found within."""
WEIGHT_PACK = "torch._weight_int8pack_mm"

Bind = Callable[[Inputs], Bound]


def offers(case: Int8Case, threads: int) -> list[Offer]:
    """Everything that can compute the case, and for each peer that cannot, why."""
    found = [
        Offer(WEFT, build=lambda: partial(_bind_weft, case)),
        Offer(EAGER, case_dtype(case), build=lambda: _bind_linear),
    ]
    if case.recipe == "w8a8":
        few = case.device == "cuda" and case.shape[0] <= 16
        found.append(
            Offer(INT_MM, reason="more than 16 rows on a GPU")
            if few
            else Offer(INT_MM, build=lambda: _bind_int_mm)
        )
    elif case.recipe == "w4a16":
        found.append(Offer(W8A16, build=lambda: _bind_w8a16, competes=False))
    if case.device == "cpu":
        found += _on_cpu(case, threads)
    if reason := why_not(TORCHAO) or ("no 4 bits here" if case.bits == 4 else ""):
        found.append(Offer(TORCHAO, reason=reason))
    else:
        found.append(Offer(TORCHAO, "compiled", build=lambda: partial(_bind_torchao, case)))
    return found


def _on_cpu(case: Int8Case, threads: int) -> list[Offer]:
    found = []
    if case.recipe == "w8a8":
        found += [_dynamic(peer, engine) for peer, engine in DYNAMIC.items()]
    elif case.recipe == "w8a16":
        found.append(Offer(WEIGHT_PACK, build=lambda: _bind_weight_pack))
    if missing := why_not(ONNX):
        return [*found, Offer(ONNX, reason=missing)]
    return [*found, *onnx.offers(case, threads)]


def _dynamic(peer: str, engine: str) -> Offer:
    if engine not in torch.backends.quantized.supported_engines:
        return Offer(peer, reason=f"this build of torch has no {engine}")
    return Offer(peer, build=lambda: partial(_bind_dynamic, engine))


def case_dtype(case: Int8Case) -> str:
    return str(case.dtype).removeprefix("torch.")


def _bound(function: Callable[..., Tensor], *args: object, **options: object) -> Bound:
    return Bound(partial(function, *args, **options), as_tuple)


def _bind_weft(case: Int8Case, t: Inputs) -> Bound:
    if case.recipe == "w8a8":
        return _bound(weft.int8_linear, t["x"], t["packed"], t["scale"].flatten())
    return _bound(weft.weight_only_linear, t["x"], t["packed"], t["scale"], bits=case.bits)


def _bind_w8a16(t: Inputs) -> Bound:
    packed = weft.pack_int8_weight(t["values"])
    return _bound(weft.weight_only_linear, t["x"], packed, t["scale"][:, 0].contiguous())


def _bind_linear(t: Inputs) -> Bound:
    return _bound(F.linear, t["x"], t["weight"])


def _bind_int_mm(t: Inputs) -> Bound:
    weight, scale = t["values"].t(), t["scale"].flatten()

    def run(x: Tensor) -> Tensor:
        x_scale = x.abs().amax(-1, keepdim=True).float() / 127
        q = (x / x_scale).round().to(torch.int8)
        return (torch._int_mm(q, weight) * x_scale * scale).to(x.dtype)

    return _bound(run, t["x"])


def _bind_dynamic(engine: str, t: Inputs) -> Bound:
    """What quantize_dynamic's modules call."""
    weight = torch._make_per_channel_quantized_tensor(
        t["values"], t["scale"].flatten().double(), torch.zeros(len(t["scale"])).long(), 0
    )
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        packed = torch.ops.quantized.linear_prepack(weight, None)
    finally:
        torch.backends.quantized.engine = before
    return _bound(torch.ops.quantized.linear_dynamic, t["x"].float(), packed)


def _bind_torchao(case: Int8Case, t: Inputs) -> Bound:
    from torchao import quantization

    w8a8 = case.recipe == "w8a8"
    name = "Int8DynamicActivationInt8WeightConfig" if w8a8 else "Int8WeightOnlyConfig"
    N, K = t["weight"].shape
    linear = torch.nn.Linear(K, N, bias=False, dtype=case.dtype, device=case.device)
    linear.weight = torch.nn.Parameter(t["weight"], requires_grad=False)
    quantization.quantize_(linear, getattr(quantization, name)())
    return _bound(compiled(linear), t["x"])


def _bind_weight_pack(t: Inputs) -> Bound:
    scale = t["scale"].flatten().to(t["x"].dtype)
    return _bound(torch._weight_int8pack_mm, t["x"], t["values"], scale)
