"""onnxruntime's attention: the standard operator and Microsoft's contributed ones.

Which of them is the fastest depends on the type and on the shape, and so does whether spinning
threads help, so each case is offered every way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase
from bench.attention.cases import inputs as case_inputs
from bench.case import Bound, Inputs, Offer
from bench.peers import ONNX, onnx_bound, onnx_model, onnx_session

OPSET = 23
"""The first with Attention."""


def why_not(case: AttentionCase) -> str:
    if case.trains:
        return "inference only"
    if case.recipe == "varlen":
        return "its attention over packed sequences has no CPU kernel"
    if case.dtype == torch.bfloat16:
        return "no attention in bf16 on a CPU"
    if case.int8 == "int8":
        return "its INT8 caches have static scales"
    return ""


def offers(case: AttentionCase, threads: int) -> list[Offer]:
    return [
        Offer(
            ONNX,
            f"{graph.__doc__}, {'spinning' if spin else 'sleeping'} threads",
            build=partial(_build, case, graph, threads, spin),
        )
        for graph, spin in product(_graphs(case), (True, False))
    ]


Graph = Callable[[AttentionCase, Inputs], tuple[Any, Inputs, Inputs]]
"""The node, and what it reads and writes: of `y` and the inputs new tensors in its layout."""


def _build(
    case: AttentionCase, graph: Graph, threads: int, spin: bool
) -> Callable[[Inputs], Bound]:
    node, read, written = graph(case, case_inputs(case, 0))
    session = onnx_session(onnx_model([node], read, written, OPSET), threads, spin)

    def bind(tensors: Inputs) -> Bound:
        _, read, written = graph(case, tensors)
        bound = onnx_bound(session, read, written, allocate=False)
        return Bound(bound.run, lambda _: (_heads_first(written["y"], tensors["q"]),))

    return bind


def _graphs(case: AttentionCase) -> Iterator[Graph]:
    if not case.int8:
        yield _attention
    if case.recipe == "prefill" and case.group == 1:
        yield _multi_head
    if case.recipe == "decode" or case.causal:
        yield _grouped


def _attention(case: AttentionCase, tensors: Inputs) -> tuple[Any, Inputs, Inputs]:
    """Attention"""
    from onnx.helper import make_node

    read = {name: tensors[name] for name in "qkv"}
    node = make_node("Attention", list(read), ["y"], is_causal=int(case.causal))
    return node, read, {"y": torch.empty_like(tensors["q"])}


def _multi_head(case: AttentionCase, tensors: Inputs) -> tuple[Any, Inputs, Inputs]:
    """MultiHeadAttention"""
    from onnx.helper import make_node

    read = {name: _heads_last(tensors[name]) for name in "qkv"}
    node = make_node(
        "MultiHeadAttention", list(read), ["y"], domain="com.microsoft",
        num_heads=case.shape[1], unidirectional=int(case.causal),
    )  # fmt: skip
    return node, read, {"y": torch.empty_like(read["q"])}


def _grouped(case: AttentionCase, tensors: Inputs) -> tuple[Any, Inputs, Inputs]:
    """GroupQueryAttention"""
    # It appends before it attends: of decode the last key, of prefill all. The cache that it reads
    # and the one that it writes are the same memory, as its documentation recommends.
    from onnx.helper import make_node

    B, H, S, D = case.shape
    new = slice(S - 1 if case.recipe == "decode" else 0, S)
    read = {
        "q": _heads_last(tensors["q"]),
        "k": _heads_last(tensors["k"][:, :, new]),
        "v": _heads_last(tensors["v"][:, :, new]),
        "past_k": tensors["k"],
        "past_v": tensors["v"],
        "last": torch.full((B,), S - 1, dtype=torch.int32),
        "total": torch.full((1,), S, dtype=torch.int32),
    }
    names, quantisation = list(read), {}
    if case.int8:
        for name in "kv":
            values, scale = tensors[f"{name}_int8"], tensors[f"{name}_scale"]
            read[name] = _heads_last(values[:, :, new] * scale)
            read[f"past_{name}"] = values
            read[f"{name}_scale"] = scale.expand(1, -1, 1, D).contiguous()
        names += ["", "", "", "", "", "k_scale", "v_scale"]
        quantisation = {
            "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8,
        }  # fmt: skip
    node = make_node(
        "GroupQueryAttention", names, ["y", "new_k", "new_v"], domain="com.microsoft",
        num_heads=H, kv_num_heads=case.key_heads, **quantisation,
    )  # fmt: skip
    written = {
        "y": torch.empty_like(read["q"]), "new_k": read["past_k"], "new_v": read["past_v"],
    }  # fmt: skip
    return node, read, written


def _heads_last(t: Tensor) -> Tensor:
    """[B, S, heads · D] of [B, heads, S, D]."""
    return t.transpose(1, 2).flatten(2)


def _heads_first(y: Tensor, like: Tensor) -> Tensor:
    """[B, H, S, D], which `Attention` gives already."""
    return y if y.dim() == 4 else y.unflatten(2, (like.shape[1], -1)).transpose(1, 2)
