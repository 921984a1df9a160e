"""onnxruntime's linear layers on integers, of x in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bench.case import Bound, Inputs, Offer
from bench.int8.cases import GROUP, Int8Case
from bench.peers import ONNX, onnx_bound, onnx_model, onnx_session


def offers(case: Int8Case, threads: int) -> list[Offer]:
    return [
        Offer(
            ONNX,
            f"{name}, {'spinning' if spin else 'sleeping'} threads",
            build=partial(_build, node, threads, spin),
        )
        for (name, node), spin in product(_nodes(case), (True, False))
    ]


Node = Callable[[Inputs], tuple[Any, Inputs]]
"""The node, and the constants that it reads beside x; it writes y."""


def _build(node: Node, threads: int, spin: bool) -> Callable[[Inputs], Bound]:
    def bind(tensors: Inputs) -> Bound:
        made, constants = node(tensors)
        x = tensors["x"].float()
        written = {"y": x.new_empty(len(x), len(tensors["values"]))}
        model = onnx_model([made], {"x": x}, written, constants=constants)
        return onnx_bound(onnx_session(model, threads, spin), {"x": x}, written, allocate=False)

    return bind


def _nodes(case: Int8Case) -> Iterator[tuple[str, Node]]:
    if case.recipe == "w8a8":
        yield "DynamicQuantizeMatMul", _dynamic
    else:
        yield "MatMulNBits", partial(_blocks, case.bits)


def _dynamic(tensors: Inputs) -> tuple[Any, Inputs]:
    """One scale and zero point for all of x."""
    from onnx.helper import make_node

    constants = {"w": tensors["values"].t().contiguous(), "scale": tensors["scale"].flatten()}
    node = make_node("DynamicQuantizeMatMul", ["x", *constants], ["y"], domain="com.microsoft")
    return node, constants


def _blocks(bits: int, tensors: Inputs) -> tuple[Any, Inputs]:
    """Scales by blocks of K; x to int8 by blocks as well, which is its fastest way."""
    from onnx.helper import make_node

    values, scale = tensors["values"], tensors["scale"]
    N, K = values.shape
    size = min(GROUP, K)
    blocks = K // size
    constants = {
        "w": _packed(values, bits).view(N, blocks, -1),
        "scale": scale.expand(N, blocks).contiguous(),
    }
    node = make_node(
        "MatMulNBits", ["x", *constants], ["y"], domain="com.microsoft",
        N=N, K=K, bits=bits, block_size=size, accuracy_level=4,
    )  # fmt: skip
    return node, constants


def _packed(values: Tensor, bits: int) -> Tensor:
    """Unsigned, the first of two nibbles low."""
    raised = (values.int() + (1 << (bits - 1))).to(torch.uint8)
    return raised if bits == 8 else raised[:, ::2] | raised[:, 1::2] << 4
