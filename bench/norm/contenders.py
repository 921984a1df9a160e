"""weft and its peers on the norm cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import weft
from bench.case import Bound, Inputs, Offer
from bench.norm import onnx, plain
from bench.norm.cases import EPS, NormCase
from bench.peers import COMPILED, EAGER, ONNX, WEFT, as_tuple, aten_op, compiled, why_not
from bench.timing import Call


def offers(case: NormCase, threads: int) -> list[Offer]:
    """Everything that can compute the case, and for each peer that cannot, why."""
    found: list[Offer] = [
        Offer(WEFT, build=lambda: partial(_bind_weft, case)),
        Offer(EAGER, build=lambda: partial(_bind_eager, case)),
    ]
    missing = why_not(COMPILED)
    found.append(
        Offer(COMPILED, build=None if missing else lambda: _compiled(case), reason=missing)
    )
    missing = why_not(ONNX) or onnx.why_not(case)
    found += [Offer(ONNX, reason=missing)] if missing else onnx.offers(case, threads)
    if case.shape == (1, 64):
        found.append(aten_op("x"))
    return found


def _bind_eager(case: NormCase, tensors: Inputs) -> Bound:
    if case.recipe == "backward":
        return Bound(plain.backward(plain.normaliser(case), **tensors), as_tuple)
    if case.recipe == "norm" and case.output == "fresh":
        return Bound(plain.bare(case, tensors), as_tuple)
    return Bound(partial(plain.recipe(case), **tensors), as_tuple)


def _compiled(case: NormCase) -> Callable[[Inputs], Bound]:
    if case.recipe == "backward":
        torch._functorch.config.donated_buffer = False  # or no graph could be walked twice
        normalise = compiled(plain.normaliser(case))
        return lambda tensors: Bound(plain.backward(normalise, **tensors), as_tuple)
    if case.recipe == "train":  # compile the norm: autograd is outside, as in a training loop
        function = plain.recipe(case, compiled(plain.normaliser(case)))
    else:
        function = compiled(plain.recipe(case))
    return lambda tensors: Bound(partial(function, **tensors), as_tuple)


def _bind_weft(case: NormCase, tensors: Inputs) -> Bound:
    if case.output == "inplace":
        x, residual = tensors["x"], tensors["residual"]
        run = partial(weft.fused_add_rms_norm, x, residual, tensors["weight"], EPS)
        return Bound(run, lambda _: (x, residual))
    recipes = {
        "norm": _weft_norm,
        "add": _weft_add,
        "post": _weft_add,
        "int8": _weft_int8,
        "add_int8": _weft_add_int8,
        "train": _weft_train,
        "backward": _weft_backward,
    }
    return Bound(recipes[case.recipe](case, tensors), as_tuple)


def _weft_norm(case: NormCase, tensors: Inputs) -> Call:
    x, weight, shape = tensors["x"], tensors["weight"], (case.channels,)
    into: dict[str, Any] = {"out": tensors["out"]} if case.output == "out" else {}
    if case.norm == "rms_norm":
        return partial(weft.rms_norm, x, shape, weight, EPS, **into)
    return partial(weft.layer_norm, x, shape, weight, tensors["bias"], EPS, **into)


def _weft_add(case: NormCase, tensors: Inputs) -> Call:
    return partial(
        weft.layer_norm_fn, tensors["x"], tensors["weight"], tensors.get("bias"),
        tensors["residual"], eps=EPS, is_rms_norm=case.norm == "rms_norm",
        prenorm=case.recipe == "add", out=tensors.get("out"),
        residual_out=tensors.get("residual_out"),
    )  # fmt: skip


def _weft_int8(case: NormCase, tensors: Inputs) -> Call:
    function = weft.rms_norm_int8 if case.norm == "rms_norm" else weft.layer_norm_int8
    return partial(
        function, tensors["x"], tensors["weight"], tensors.get("bias"), EPS,
        out=tensors.get("out"), scale_out=tensors.get("scale_out"),
    )  # fmt: skip


def _weft_add_int8(case: NormCase, tensors: Inputs) -> Call:
    function = weft.rms_norm_int8 if case.norm == "rms_norm" else weft.layer_norm_int8

    def run() -> tuple[Tensor, Tensor, Tensor]:
        result = function(
            tensors["x"], tensors["weight"], tensors.get("bias"), EPS,
            residual=tensors["residual"], prenorm=True,
        )  # fmt: skip
        return result.values, result.scale, result.residual

    return run


def _weft_train(case: NormCase, tensors: Inputs) -> Call:
    return partial(plain.recipe(case, _weft_normaliser(case)), **tensors)


def _weft_backward(case: NormCase, tensors: Inputs) -> Call:
    return plain.backward(_weft_normaliser(case), **tensors)


def _weft_normaliser(case: NormCase) -> plain.Normalise:
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return weft.layer_norm(x, weight.shape, weight, bias, EPS)

    def rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return weft.rms_norm(x, weight.shape, weight, EPS)

    return layer_norm if case.norm == "layer_norm" else rms_norm
