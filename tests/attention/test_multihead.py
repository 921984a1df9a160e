"""weft.nn.MultiheadAttention: torch's module, with every argument that it has."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weft
from tolerance import assert_no_worse_than_torch

B, S, T, E, H = 3, 7, 5, 12, 4

MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 9, "vdim": 6},
    "appended": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    "appended row": {"add_bias_kv": True},
    "appended zeros": {"add_zero_attn": True, "kdim": 9, "vdim": 6, "batch_first": True},
}


def pair(dtype: torch.dtype = torch.float64, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    """torch's module and weft's, with the same weights."""
    stock = nn.MultiheadAttention(E, H, **arguments, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.normal_(0, 0.4)
    ours = weft.nn.MultiheadAttention(E, H, **arguments, dtype=dtype).eval()
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def given(module: nn.Module, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and value."""
    shapes = ((S, B, E), (T, B, module.kdim), (T, B, module.vdim))
    inputs = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [x.transpose(0, 1) for x in inputs] if module.batch_first else inputs


def masks(kind: str) -> dict[str, Any]:
    """Masks that leave every row a key."""
    hidden = torch.rand(S, T) < 0.4
    by_head = torch.rand(B * H, S, T) < 0.4
    padding = torch.arange(T) >= torch.tensor([[5], [3], [4]])
    for mask in (hidden, by_head, padding):
        mask[..., 0] = False
    causal = torch.ones(S, T, dtype=torch.bool).triu(1)
    return {
        "none": {},
        "bool": {"attn_mask": hidden},
        "float": {"attn_mask": torch.randn(S, T, dtype=torch.float64)},
        "by head": {"attn_mask": by_head},
        "padding": {"key_padding_mask": padding},
        "padding and bool": {"attn_mask": by_head, "key_padding_mask": padding},
        "padding and float": {
            "attn_mask": torch.randn(B * H, S, T, dtype=torch.float64),
            "key_padding_mask": torch.zeros(B, T, dtype=torch.float64).masked_fill(
                padding, -torch.inf
            ),
        },
        "causal": {"attn_mask": causal, "is_causal": True},
        "causal and padding": {
            "attn_mask": causal,
            "is_causal": True,
            "key_padding_mask": padding,
        },
    }[kind]


MASKS = ["none", "bool", "float", "by head", "padding", "padding and bool", "padding and float"]
MASKS += ["causal", "causal and padding"]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("module", MODULES)
def test_output_and_gradients(module: str, mask: str) -> None:
    stock, ours = pair(**MODULES[module])
    inputs, options = given(stock), masks(mask)
    results = []
    for m in (stock, ours):
        leaves = [x.clone().requires_grad_() for x in inputs]
        # torch lets is_causal hide the appended keys where it does not read the mask
        hint = {"is_causal": False} if m is stock and "appended" in module else {}
        y, weights = m(*leaves, need_weights=False, **options | hint)
        assert weights is None
        y.square().sum().backward()
        results.append([y, *(x.grad for x in leaves), *(p.grad for p in m.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch_first", [False, True])
def test_self_attention_and_key_as_value(batch_first: bool) -> None:
    stock, ours = pair(batch_first=batch_first)
    x, y, _ = given(stock)
    for inputs in ((x, x, x), (x, y, y)):
        for mode in (torch.no_grad, torch.enable_grad):
            with mode():
                expected = stock(*inputs, need_weights=False)[0]
                torch.testing.assert_close(ours(*inputs, need_weights=False)[0], expected)


@pytest.mark.parametrize("module", MODULES)
def test_unbatched(module: str) -> None:
    stock, ours = pair(**MODULES[module])
    inputs = [x.select(0 if stock.batch_first else 1, 0) for x in given(stock)]
    for options in (
        {},
        {"key_padding_mask": torch.tensor([False, True, False, False, True])},
        {"attn_mask": torch.randn(H, S, T, dtype=torch.float64)},
    ):
        expected = stock(*inputs, need_weights=False, **options)[0]
        torch.testing.assert_close(ours(*inputs, need_weights=False, **options)[0], expected)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("module", MODULES)
def test_weights_are_torchs(module: str, average: bool) -> None:
    stock, ours = pair(**MODULES[module])
    options = masks("padding and bool") | {"average_attn_weights": average}
    counted = weft.fallbacks().get("nn.MultiheadAttention: need_weights", 0)
    for inputs in (given(stock), [given(stock)[0]] * 3):
        if inputs[1].shape[-1] != stock.kdim or inputs[2].shape[-1] != stock.vdim:
            continue
        if inputs[0] is inputs[1]:
            options = {"average_attn_weights": average}
        for expected, found in zip(
            stock(*inputs, **options), ours(*inputs, **options), strict=True
        ):
            torch.testing.assert_close(found, expected)
    assert weft.fallbacks()["nn.MultiheadAttention: need_weights"] > counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_worse_than_torch(dtype: torch.dtype) -> None:
    stock, ours = pair(dtype, batch_first=True)
    inputs, options = given(stock, dtype), masks("padding and bool")
    truth = copy.deepcopy(stock).double()(*(x.double() for x in inputs), **options)[0]
    plain = stock(*inputs, need_weights=False, **options)[0]
    found = ours(*inputs, need_weights=False, **options)[0]
    assert_no_worse_than_torch(found, truth, plain, luck=4)


def test_a_hidden_row_gives_the_bias() -> None:
    _, ours = pair(batch_first=True)
    x, y, z = given(ours)
    hidden = torch.zeros(S, T, dtype=torch.bool)
    hidden[2] = True
    out = ours(x, y, z, attn_mask=hidden, need_weights=False)[0]
    torch.testing.assert_close(out[:, 2], ours.out_proj.bias.expand(B, E))
    assert out.isfinite().all()


def test_causal_without_a_mask() -> None:
    _, ours = pair()
    inputs = given(ours)
    expected = ours(*inputs, need_weights=False, **masks("causal"))[0]
    torch.testing.assert_close(ours(*inputs, need_weights=False, is_causal=True)[0], expected)


def test_masks_of_two_types() -> None:
    _, ours = pair()
    inputs, both = given(ours), masks("padding and float")
    expected = ours(*inputs, need_weights=False, **both)[0]
    both["key_padding_mask"] = masks("padding")["key_padding_mask"]
    torch.testing.assert_close(ours(*inputs, need_weights=False, **both)[0], expected)


def test_dropout() -> None:
    """Off in evaluation; in training seeded, and right in the mean."""
    stock, ours = pair(torch.float32, dropout=0.3, batch_first=True)
    x = torch.randn(1, 4, E)
    expected = stock(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(ours(x, x, x, need_weights=False)[0], expected)
    ours.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(ours(x, x, x, need_weights=False)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    many = x.expand(20000, -1, -1)
    mean = ours(many, many, many, need_weights=False)[0].mean(0, keepdim=True)
    torch.testing.assert_close(mean, expected, rtol=0.02, atol=0.05)


def test_arguments_and_keys() -> None:
    theirs = inspect.signature(nn.MultiheadAttention.__init__).parameters.values()
    parameters = inspect.signature(weft.nn.MultiheadAttention.__init__).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [(p.name, p.default) for p in theirs]
    for arguments in MODULES.values():
        torch.manual_seed(1)
        stock = nn.MultiheadAttention(E, H, **arguments)
        torch.manual_seed(1)
        ours = weft.nn.MultiheadAttention(E, H, **arguments)
        assert list(ours.state_dict()) == list(stock.state_dict())
        for name, parameter in stock.named_parameters():
            assert torch.equal(ours.get_parameter(name), parameter)


def test_copies_and_pickles() -> None:
    _, ours = pair(batch_first=True)
    inputs = given(ours)
    expected = ours(*inputs, need_weights=False)[0]
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(*inputs, need_weights=False)[0], expected)


def test_autocast() -> None:
    stock, ours = pair(torch.float32, add_bias_kv=True)
    inputs = given(stock, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = stock(*inputs, need_weights=False)[0]
        found = ours(*inputs, need_weights=False)[0]
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_compile() -> None:
    _, ours = pair(torch.float32, batch_first=True)
    inputs, options = given(ours, torch.float32), masks("padding and bool")
    expected = ours(*inputs, need_weights=False, **options)[0]
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs, need_weights=False, **options)[0], expected)


class Calls:
    """How often weft's attention runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._attention = weft.attention
        monkeypatch.setattr("weft.nn.attention.attention", self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.count += 1
        return self._attention(*args, **options)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_in_a_transformer_layer(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's layer calls weft's module, in inference too."""
    calls = Calls(monkeypatch)
    stock = nn.TransformerEncoderLayer(E, H, 20, batch_first=True).double().eval()
    ours = copy.deepcopy(stock)
    ours.self_attn = weft.nn.MultiheadAttention(E, H, batch_first=True).double().eval()
    ours.self_attn.load_state_dict(stock.self_attn.state_dict())
    x, padding = torch.randn(B, T, E, dtype=torch.float64), masks("padding")["key_padding_mask"]
    stacks = [nn.TransformerEncoder(m, 2, enable_nested_tensor=False) for m in (stock, ours)]
    with mode():
        expected, found = (m.eval()(x, src_key_padding_mask=padding) for m in stacks)
    assert calls.count == 2
    torch.testing.assert_close(found[~padding], expected[~padding])


def test_in_a_whole_transformer() -> None:
    stock = nn.Transformer(E, H, 2, 2, 20, dropout=0.0, batch_first=True).double()
    ours = copy.deepcopy(stock)
    for module in list(ours.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.MultiheadAttention:
                replacement = weft.nn.MultiheadAttention(E, H, batch_first=True).double()
                replacement.load_state_dict(child.state_dict())
                module.add_module(name, replacement)
    source, target = torch.randn(B, S, E).double(), torch.randn(B, T, E).double()
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    gradients = []
    for model in (stock, ours):
        y = model(source, target, tgt_mask=mask, tgt_is_causal=True)
        y.square().sum().backward()
        gradients.append([y, *(p.grad for p in model.parameters())])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_nested_tensors_are_refused() -> None:
    _, ours = pair(batch_first=True)
    x = torch.nested.nested_tensor([torch.randn(n, E).double() for n in (2, 3)])
    with pytest.raises(NotImplementedError, match="enable_nested_tensor=False"):
        ours(x, x, x, need_weights=False)
