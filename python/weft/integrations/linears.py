"""Which layers of a model :func:`weft.quantize_` takes, and why not the others."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..nn._int8_weight import has_kernel, is_finite
from ..nn._quantized_linear import QuantizedLinear

Filter = Callable[[nn.Module, str], bool]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_linear(module: nn.Module) -> bool:
    """Whether `module` has the forward of torch's Linear or of transformers' Conv1D."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    return is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    utils = sys.modules.get("transformers.pytorch_utils")
    return utils is not None and type(module) is utils.Conv1D


def weight_of(module: nn.Module) -> Tensor:
    """[N, K], a view."""
    weight = module._parameters["weight"]
    assert weight is not None
    return weight.detach().t() if is_conv1d(module) else weight.detach()


def owners(model: nn.Module) -> Counter[int]:
    """How many modules hold a parameter, by its id."""
    return Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )


def why_not(model: nn.Module, keep: Filter | None, group_size: int | None) -> dict[str, str]:
    """For every linear layer the reason why it stays as it is; empty if it does not."""
    held = owners(model)
    linear = [m for m in model.modules() if is_linear(m)]
    among_linear = Counter(id(m._parameters.get("weight")) for m in linear)
    heads = _output_embeddings(model)

    def reason(path: str, module: nn.Module) -> str:
        weight = module._parameters.get("weight")
        if isinstance(module, QuantizedLinear):
            return "already quantised"
        if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            return "torch.nn.MultiheadAttention reads its weight"
        if not is_linear(module):
            return "its forward is not that of torch.nn.Linear"
        if "forward" in module.__dict__:
            return "its forward is overridden on the instance"
        if type(weight) is not nn.Parameter:
            return "its weight is no plain parameter"
        if weight.dtype not in _DTYPES:
            return f"its weight is {str(weight.dtype).removeprefix('torch.')}"
        if not weight.is_meta and not has_kernel(weight.device):
            return f"weft has no INT8 kernel for {weight.device.type}"
        inputs = weight.shape[0 if is_conv1d(module) else 1]
        if group_size is not None and inputs % group_size:
            return f"its {inputs} inputs are no multiple of group_size {group_size}"
        if not is_finite(weight):
            return "its weight holds NaN or infinity"
        if keep is not None:
            return "" if keep(module, path) else "not selected"
        if held[id(weight)] > among_linear[id(weight)]:
            return "its weight is also another module's (filter_fn takes it all the same)"
        if id(module) in heads:
            return "the output embedding (filter_fn takes it all the same)"
        return ""

    return {
        path: reason(path, module)
        for path, module in model.named_modules()
        if is_linear(module) or isinstance(module, nn.Linear)
    }


def _output_embeddings(model: nn.Module) -> set[int]:
    """Of transformers' models: the last layer, whose errors nothing evens out."""
    transformers = sys.modules.get("transformers.modeling_utils")
    if transformers is None:
        return set()
    models = [m for m in model.modules() if isinstance(m, transformers.PreTrainedModel)]
    return {id(head) for m in models if (head := m.get_output_embeddings()) is not None}


def call_by_parts(model: nn.Module, chosen: dict[str, nn.Module]) -> None:
    """torch's encoder layers pass their linear layers by, in inference, and read their weights:
    those with a layer that is chosen are made to call it."""
    ids = {id(module) for module in chosen.values()}
    for module in model.modules():
        inside = any(id(part) in ids for part in module.modules())
        if inside and isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif inside and isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
