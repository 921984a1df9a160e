"""Attention in modules that weft did not write.

torch.nn.MultiheadAttention becomes weft's by changing its class. Models of transformers are asked
for weft's attention by name: the choice stands in the config that all their layers share.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from .. import nn as weft_nn
from .norms import Replacement

EXACT: dict[type[nn.Module], type[nn.Module]] = {nn.MultiheadAttention: weft_nn.MultiheadAttention}
_FORMER = "_weft_attention"


def is_attention(module: nn.Module) -> bool:
    return type(module) in (*EXACT, *EXACT.values())


def replacement(module: nn.Module) -> Replacement | str:
    """As weft's own constructor leaves it."""
    cls = EXACT[type(module)]
    return Replacement(cls, {"_qkv_same_embed_dim": False}, f"weft.nn.{cls.__name__}")


def is_encoder(module: nn.Module) -> bool:
    """Whether torch's encoder would make nested tensors for attention that is weft's now."""
    return (
        type(module) is nn.TransformerEncoder
        and module.__dict__.get("use_nested_tensor", False)
        and any(type(part) is weft_nn.MultiheadAttention for part in module.modules())
    )


def padded_encoder(module: nn.Module) -> Replacement:
    return Replacement(type(module), {"use_nested_tensor": False}, "padded, not nested")


def models(root: nn.Module) -> dict[str, Any]:
    """The models of transformers in `root` by their paths, inner before outer: of those that share
    a config, the outermost."""
    transformers = sys.modules.get("transformers.modeling_utils")
    if transformers is None:  # then there are none
        return {}
    found: dict[int, tuple[str, Any]] = {}
    for path, module in root.named_modules():
        if isinstance(module, transformers.PreTrainedModel):
            found.setdefault(id(module.config), (path, module))
    return dict(reversed(found.values()))


class Choice:
    """What a model's attention was before it was weft's; where it is unpickled, weft's is known."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        from .transformers import register

        register()


def choose(model: Any) -> tuple[str, str] | str:
    """Gives a model of transformers weft's attention: the choices before and after, or the reason
    why it keeps its own."""
    try:
        from . import transformers
    except ImportError as error:
        return f"weft's attention needs transformers 4.57 or later: {error}"
    before = model.config._attn_implementation
    if _FORMER in model.__dict__:
        return "already swapped"
    if before in (transformers.NAME, transformers.PAGED_NAME):
        return "already weft's"
    if before not in ("eager", "sdpa"):
        return f'its attention is "{before}", which somebody chose'
    if not model._can_set_attn_implementation():
        return "its attention does not go through transformers' interface"
    if not (model._supports_sdpa or model._supports_flash_attn):
        return "its attention needs more than transformers' interface passes on"
    if model.config.output_attentions:
        return "it is to return attention weights, which weft does not make"
    transformers.register()
    model.set_attn_implementation(transformers.NAME)
    model.__dict__[_FORMER] = Choice(before)
    return before, transformers.NAME


def choose_back(model: Any) -> None:
    """Undoes `choose`; a model that was never given weft's attention stays as it is."""
    former = model.__dict__.pop(_FORMER, None)
    if former is not None:
        model.set_attn_implementation(former.name)
