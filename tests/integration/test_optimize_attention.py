"""weft.optimize and attention: torch's modules, and the choice that models of transformers make."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import weft

transformers = pytest.importorskip("transformers")

from integration.models import SIZE, inputs, make, output  # noqa: E402

CHOICE = 'attn_implementation="weft"'


def chosen(report: weft.Report) -> list[str]:
    return [entry.path for entry in report.swapped if entry.after == CHOICE]


def why_not(report: weft.Report, path: str = "") -> str:
    return next(entry.why_not for entry in report.skipped if entry.path == path)


# ---------------------------------------------------------------------- torch's MultiheadAttention


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


def padded() -> dict[str, Tensor]:
    return {
        "src": torch.randn(3, 5, 16),
        "src_key_padding_mask": torch.arange(5) >= torch.tensor([[5], [3], [4]]),
    }


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_torchs_encoder(mode) -> None:
    """Its layers call weft's attention in inference too, and no nested tensor reaches them."""
    model, given = encoder(), padded()
    with mode():
        expected = model(**given)
        before = {path: dict(module.__dict__) for path, module in model.named_modules()}
        report = weft.optimize(model)
        swapped = {entry.path: entry.after for entry in report.swapped}
        assert swapped["layers.0.self_attn"] == swapped["layers.1.self_attn"]
        assert swapped["layers.0.self_attn"] == "weft.nn.MultiheadAttention"
        assert swapped[""] == "padded, not nested"
        calls = []
        for layer in model.layers:
            layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
        found = model(**given)
        assert len(calls) == 2
        seen = ~given["src_key_padding_mask"]
        torch.testing.assert_close(found[seen], expected[seen], rtol=1e-4, atol=1e-5)
        for layer in model.layers:
            layer.self_attn._forward_hooks.clear()
        weft.restore(model)
        after = {path: dict(module.__dict__) for path, module in model.named_modules()}
        assert torch.equal(model(**given)[seen], expected[seen])
    assert {path: set(state) for path, state in after.items()} == {
        path: set(state) for path, state in before.items()
    }
    assert model.use_nested_tensor and model.layers[0].self_attn._qkv_same_embed_dim


def test_an_encoder_whose_attention_stays_keeps_its_nested_tensors() -> None:
    model = encoder()
    report = weft.optimize(model, exclude=nn.MultiheadAttention)
    assert model.use_nested_tensor
    assert why_not(report, "layers.0.self_attn") == "not selected"


def test_gradients_copies_and_twice() -> None:
    stock = nn.MultiheadAttention(16, 2, kdim=8, vdim=6, add_bias_kv=True)
    ours = copy.deepcopy(stock)
    keys = list(stock.state_dict())
    assert len(weft.optimize(ours).swapped) == 1
    assert why_not(weft.optimize(ours)) == "already swapped"
    assert list(ours.state_dict()) == keys
    given = torch.randn(5, 3, 16), torch.randn(4, 3, 8), torch.randn(4, 3, 6)
    gradients = []
    for model in (stock, pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        model(*given, need_weights=False)[0].square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0], rtol=1e-4, atol=1e-4)


def test_subclasses_and_weights_own_are_left_alone() -> None:
    class Mine(nn.MultiheadAttention):
        pass

    assert weft.optimize(Mine(8, 2)).swapped == []
    assert why_not(weft.optimize(weft.nn.MultiheadAttention(8, 2))) == "already weft's"


# ----------------------------------------------------------------------------- transformers' choice


@pytest.mark.parametrize("before", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "llama", "bart", "vit"])
def test_choice(name: str, before: str) -> None:
    model, given = make(name), inputs(name)
    model.set_attn_implementation(before)
    expected = output(model, given)
    report = weft.optimize(model)
    if not model._can_set_attn_implementation():
        assert why_not(report) == "its attention does not go through transformers' interface"
        return
    assert chosen(report) == [""]
    assert model.config._attn_implementation == "weft"
    torch.testing.assert_close(output(model, given), expected, rtol=1e-4, atol=1e-4)
    assert why_not(weft.optimize(model)) == "already swapped"
    weft.restore(model)
    assert model.config._attn_implementation == before
    assert torch.equal(output(model, given), expected)


def test_dry_run_and_selection() -> None:
    model = make("llama")
    before = model.config._attn_implementation
    assert chosen(weft.optimize(model, dry_run=True)) == [""]
    assert model.config._attn_implementation == before
    for choice in ({"exclude": "layers.0"}, {"include": "norm"}, {"exclude": "*self_attn"}):
        report = weft.optimize(model, dry_run=True, **choice)
        assert chosen(report) == [] and why_not(report) == "not selected"
    assert chosen(weft.optimize(model, dry_run=True, exclude="*norm*")) == [""]


def test_others_choices_stay() -> None:
    model = make("llama")
    model.config._attn_implementation = "flex_attention"
    report = weft.optimize(model)
    assert why_not(report) == 'its attention is "flex_attention", which somebody chose'
    model = make("llama")
    weft.integrations.transformers.register()
    model.set_attn_implementation("weft")
    assert why_not(weft.optimize(model)) == "already weft's"
    weft.restore(model)
    assert model.config._attn_implementation == "weft"


def test_weights_that_are_asked_for() -> None:
    model = make("llama")
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    assert "attention weights" in why_not(weft.optimize(model))


def test_a_transformers_without_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(weft.integrations, "transformers", raising=False)
    monkeypatch.setitem(sys.modules, "weft.integrations.transformers", None)
    model = make("llama")
    report = weft.optimize(model)
    assert "needs transformers 4.57 or later" in why_not(report)
    assert len(report.swapped) > 0


def test_models_inside_models() -> None:
    """Each config is one choice, and comes back as it was."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text, self.image = make("llama"), make("vit")

    model = Both()
    model.text.set_attn_implementation("eager")
    model.image.set_attn_implementation("sdpa")
    assert set(chosen(weft.optimize(model))) == {"text", "image"}
    weft.restore(model)
    assert model.text.config._attn_implementation == "eager"
    assert model.image.config._attn_implementation == "sdpa"


def test_a_language_model_is_named_once() -> None:
    config = transformers.LlamaConfig(**SIZE)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert chosen(weft.optimize(model)) == [""]


def test_a_pickle_brings_weft_along(tmp_path) -> None:
    """Into a process that has not asked for it."""
    model, given = make("llama"), inputs("llama")
    weft.optimize(model)
    expected = output(model, given)
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps((model, given, expected)))
    code = (
        "import pickle, sys, torch\n"
        "model, given, expected = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert torch.equal(model(**given).last_hidden_state, expected)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
