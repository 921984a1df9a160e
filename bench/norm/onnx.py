"""onnxruntime's norms: the standard operators and Microsoft's contributed ones.

Its fused add + norm operators are slower than Add followed by a norm for some types, and spinning
threads help some sizes, so each case is offered every way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch

from bench.case import Bound, Inputs, Offer
from bench.norm.cases import EPS, NormCase
from bench.norm.cases import inputs as case_inputs
from bench.peers import ONNX, onnx_bound, onnx_model, onnx_session


def why_not(case: NormCase) -> str:
    if case.device != "cpu":
        return "its CPU provider alone is offered here"
    if case.trains:
        return "inference only"
    if case.recipe in ("int8", "add_int8"):
        return "no operator quantises per row with a scale found at run time"
    if case.output == "inplace":
        return "no in-place form"
    return ""


def offers(case: NormCase, threads: int) -> list[Offer]:
    return [
        Offer(
            ONNX,
            f"{graph}, {'spinning' if spin else 'sleeping'} threads",
            build=partial(_build, case, nodes, threads, spin),
        )
        for (graph, nodes), spin in product(_graphs(case), (True, False))
    ]


def _build(case: NormCase, nodes: list[Any], threads: int, spin: bool) -> Callable[[Inputs], Bound]:
    wanted = ["y", "sum"] if case.recipe == "add" else ["y"]
    example = case_inputs(case, 0)
    model = onnx_model(nodes, _read(example), dict.fromkeys(wanted, example["x"]))
    session = onnx_session(model, threads, spin)

    def bind(tensors: Inputs) -> Bound:
        given = (tensors.get("out"), tensors.get("residual_out"))
        outputs = {
            name: torch.empty_like(tensors["x"]) if tensor is None else tensor
            for name, tensor in zip(wanted, given, strict=False)
        }
        # Calls of microseconds keep their outputs bound: binding would cost more than the norm.
        return onnx_bound(
            session, _read(tensors), outputs, allocate=case.output == "fresh" and case.cold
        )

    return bind


def _read(tensors: Inputs) -> Inputs:
    return {n: tensors[n] for n in ("x", "residual", "weight", "bias") if n in tensors}


def _graphs(case: NormCase) -> Iterator[tuple[str, list[Any]]]:
    """The ways to write the case as a graph: a name and its nodes."""
    from onnx.helper import make_node

    layer = case.norm == "layer_norm"
    parameters = ["weight", "bias"] if layer else ["weight"]
    norm = "LayerNormalization" if layer else "SimplifiedLayerNormalization"
    if case.recipe == "norm":
        yield norm, [make_node(norm, ["x", *parameters], ["y"], axis=-1, epsilon=EPS)]
        return
    total = ["", "", "sum"] if case.recipe == "add" else []
    skip = f"Skip{norm}"
    yield (
        skip,
        [
            make_node(
                skip, ["x", "residual", *parameters], ["y", *total],
                domain="com.microsoft", epsilon=EPS,
            )
        ],
    )  # fmt: skip
    if case.dtype == torch.bfloat16:
        return  # no Add for it
    yield (
        f"Add + {norm}",
        [
            make_node("Add", ["x", "residual"], ["sum"]),
            make_node(norm, ["sum", *parameters], ["y"], axis=-1, epsilon=EPS),
        ],
    )
