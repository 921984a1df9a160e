"""The peers that several families share: whether they are here, and how they are set up."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from bench.case import Bound, Inputs, Offer

WEFT, EAGER, COMPILED, ONNX = "weft", "torch eager", "torch.compile", "onnxruntime"
TORCHAO = "torchao"

ATEN_OP = "an ATen op"
"""The yardstick of call overhead: `torch.add` on the same tensor."""

ONNX_TYPES = {
    torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int32: 6, torch.float16: 10,
    torch.bfloat16: 16,
}  # fmt: skip
"""torch's dtypes as onnx.TensorProto.DataType."""


def why_not(peer: str) -> str:
    """Why a peer cannot run here at all; empty if it can."""
    if peer == COMPILED and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "torch.compile needs a C++ compiler"
    if peer == ONNX:
        missing = [m for m in ("onnx", "onnxruntime") if importlib.util.find_spec(m) is None]
        return f"not installed: {', '.join(missing)}" if missing else ""
    if peer == TORCHAO and importlib.util.find_spec("torchao") is None:
        return "not installed"
    return ""


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of a result, be it one tensor or several."""
    if isinstance(result, torch.Tensor):
        return (result,)
    return tuple(t for t in result if isinstance(t, torch.Tensor))


def aten_op(name: str) -> Offer:
    """The yardstick, on the input of this name."""

    def bind(tensors: Inputs) -> Bound:
        return Bound(partial(torch.add, tensors[name], tensors[name]), as_tuple)

    return Offer(ATEN_OP, build=lambda: bind, competes=False)


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Around one case: dynamo's caches hang on code objects, and guards of earlier cases would be
    checked on every call of the later ones."""
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Inductor with static shapes, which is its best for a benchmark that has one."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def onnx_model(
    nodes: Sequence[Any],
    inputs: Inputs,
    outputs: Inputs,
    opset: int = 17,
    constants: Inputs | None = None,
) -> bytes:
    """A graph of these nodes, for tensors like these; constants it holds."""
    from onnx import helper, numpy_helper

    def described(tensors: Inputs) -> list[Any]:
        return [
            helper.make_tensor_value_info(n, ONNX_TYPES[t.dtype], list(t.shape))
            for n, t in tensors.items()
        ]

    held = [numpy_helper.from_array(t.numpy(), name) for name, t in (constants or {}).items()]
    graph = helper.make_graph(nodes, "case", described(inputs), described(outputs), held)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def onnx_session(model: bytes, threads: int, spin: bool) -> Any:
    """A session that runs the nodes as written: not everything that onnxruntime fuses is faster."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_bound(session: Any, inputs: Inputs, outputs: Inputs, allocate: bool) -> Bound:
    """Binds tensors by address, so that no call converts or copies anything.

    With ``allocate`` every call puts its results into new tensors of torch's, the allocator that
    the other contenders use; without, into ``outputs``.
    """
    binding = session.io_binding()
    for name, t in inputs.items():
        binding.bind_input(name, "cpu", 0, ONNX_TYPES[t.dtype], list(t.shape), t.data_ptr())

    def bind_outputs(tensors: Inputs) -> None:
        for name, t in tensors.items():
            binding.bind_output(name, "cpu", 0, ONNX_TYPES[t.dtype], list(t.shape), t.data_ptr())

    def run_into_new() -> Sequence[torch.Tensor]:
        new = {name: torch.empty_like(t) for name, t in outputs.items()}
        bind_outputs(new)
        session.run_with_iobinding(binding)
        return tuple(new.values())

    if allocate:
        run: Callable[[], Any] = run_into_new
    else:
        bind_outputs(outputs)
        run = partial(session.run_with_iobinding, binding)
    binding.kept = (inputs, outputs)  # it holds addresses only: the tensors must live as long
    return Bound(run, lambda result: result or tuple(outputs.values()))
