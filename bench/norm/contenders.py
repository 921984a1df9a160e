"""weft and its peers on the norm cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.case import Bound, Inputs, Offer
from bench.norm import onnx, plain
from bench.norm.cases import ATEN_OP, EPS, NormCase
from bench.peers import COMPILED, EAGER, ONNX, WEFT, as_tuple, compiled, why_not


def offers(case: NormCase, threads: int) -> list[Offer]:
    """Everything that can compute the case, and for each peer that cannot, why."""
    found: list[Offer] = [
        _offer(WEFT, lambda: partial(_bind_weft, case)),
        _offer(EAGER, lambda: partial(_bind_eager, case)),
        _offer(COMPILED, lambda: _compiled(case)),
    ]
    missing = why_not(ONNX) or onnx.why_not(case)
    found += [Offer(ONNX, reason=missing)] if missing else onnx.offers(case, threads)
    if case.shape == (1, 64):
        found.append(Offer(ATEN_OP, build=lambda: _bind_aten, competes=False))
    return found


def _offer(peer: str, build: Callable[[], Callable[[Inputs], Bound]]) -> Offer:
    missing = why_not(peer)
    return Offer(peer, reason=missing) if missing else Offer(peer, build=build)


def _bind_eager(case: NormCase, tensors: Inputs) -> Bound:
    if case.recipe == "norm" and case.output == "fresh":
        return Bound(plain.bare(case, tensors), as_tuple)
    return Bound(partial(plain.recipe(case), **tensors), as_tuple)


def _compiled(case: NormCase) -> Callable[[Inputs], Bound]:
    if case.recipe == "train":  # compile the norm: autograd is outside, as in a training loop
        function = plain.recipe(case, compiled(plain.normaliser(case)))
    else:
        function = compiled(plain.recipe(case))
    return lambda tensors: Bound(partial(function, **tensors), as_tuple)


def _bind_aten(tensors: Inputs) -> Bound:
    return Bound(partial(torch.add, tensors["x"], tensors["x"]), as_tuple)


def _bind_weft(case: NormCase, tensors: Inputs) -> Bound:
    import weft

    rms = case.norm == "rms_norm"
    channels = (case.channels,)
    x, weight, bias = tensors["x"], tensors["weight"], tensors.get("bias")
    residual, out = tensors.get("residual"), tensors.get("out")

    if case.output == "inplace":
        run: Callable[[], Any] = partial(weft.fused_add_rms_norm, x, residual, weight, EPS)
        return Bound(run, lambda _: (x, residual))
    if case.recipe == "norm":
        into = {} if out is None else {"out": out}
        if rms:
            run = partial(weft.rms_norm, x, channels, weight, EPS, **into)
        else:
            run = partial(weft.layer_norm, x, channels, weight, bias, EPS, **into)
    elif case.recipe in ("add", "post"):
        run = partial(
            weft.layer_norm_fn, x, weight, bias, residual, eps=EPS, is_rms_norm=rms,
            prenorm=case.recipe == "add", out=out, residual_out=tensors.get("residual_out"),
        )  # fmt: skip
    elif case.recipe == "int8":
        function = weft.rms_norm_int8 if rms else weft.layer_norm_int8
        run = partial(function, x, weight, bias, EPS, out=out)
    else:
        function = weft.rms_norm if rms else weft.layer_norm
        normalise: plain.Normalise = (
            (lambda x, weight, bias: function(x, channels, weight, EPS))
            if rms
            else (lambda x, weight, bias: function(x, channels, weight, bias, EPS))
        )
        run = partial(plain.recipe(case, normalise), **tensors)
    return Bound(run, as_tuple)
