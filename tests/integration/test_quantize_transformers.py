"""weft.quantize_ on models of transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import weft
from weft.quantization import AdaptiveSmoothQuant, ShiftSmoothQuant, SmoothQuant

from .models import CONFIGS, GPT, transformers

IDS = torch.arange(4 * 16).view(4, 16) * 7 % 97 + 1


def made(name: str) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(CONFIGS[name][0]()).eval()


def causal(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


TEXT = ["bert", "albert", "distilbert", "llama", "qwen3", "gemma2", "gpt2", "mistral"]


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize(
    "config",
    [weft.W8A8Dynamic(), weft.W8A8Static(smoothing=ShiftSmoothQuant()), weft.W8A16()],
    ids=lambda c: type(c).__name__,
)
def test_models(name, config):
    model = made(name)
    quantized = copy.deepcopy(model)
    batches = [{"input_ids": IDS}, {"input_ids": IDS.flip(0), "attention_mask": IDS > 3}]
    report = weft.quantize_(quantized, config, calibration=batches)
    assert len(report.quantized) >= 7 and not report.skipped
    assert all(layer.sqnr > 25 for layer in report.quantized)
    with torch.no_grad():
        truth, found = (m(IDS).last_hidden_state for m in (model, quantized))
    assert torch.cosine_similarity(truth, found, -1).min() > 0.99
    assert not torch.equal(truth, found)


@pytest.mark.parametrize(
    "name, norms",
    [
        ("llama", ("input_layernorm", "post_attention_layernorm")),
        ("gemma2", ("input_layernorm", "pre_feedforward_layernorm")),
        ("gpt2", ("ln_1", "ln_2")),
        ("bert", ()),  # its norms are added to again
    ],
)
@pytest.mark.parametrize("optimized", [False, True])
def test_smoothing_is_folded_into_the_norms_of_models(name, norms, optimized):
    model = made(name)
    if optimized:
        weft.optimize(model)
    config = weft.W8A8Dynamic(smoothing=SmoothQuant())
    report = weft.quantize_(model, config, calibration=[{"input_ids": IDS}])
    found = {x.smoothed.rpartition(".")[2] for x in report.quantized} - {"quantiser"}
    assert found == set(norms)
    truth = made(name)
    with torch.no_grad():
        hidden, exact = (m(IDS).last_hidden_state for m in (model, truth))
    assert torch.cosine_similarity(hidden, exact, -1).min() > 0.99


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("config", [weft.W8A8Dynamic(), weft.W8A16(), weft.Hybrid(crossover=8)])
def test_generation(name, config):
    model = causal(CONFIGS[name][0]())
    with torch.no_grad():
        expected = model(IDS).logits
    report = weft.quantize_(model, config)
    assert [x.why_not for x in report.skipped if x.path == "lm_head"]
    with torch.no_grad():
        logits = model(IDS).logits
    assert torch.cosine_similarity(logits, expected, -1).min() > 0.99
    tokens = model.generate(IDS[:, :5], max_new_tokens=6, do_sample=False, use_cache=True)
    again = model.generate(IDS[:, :5], max_new_tokens=6, do_sample=False, use_cache=False)
    assert tokens.shape == (4, 11)
    if not isinstance(config, weft.Hybrid):  # few rows and many are then not the same arithmetic
        assert (tokens == again).float().mean() > 0.9


def test_conv1d_is_transposed():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(24, 16)  # 16 inputs, 24 outputs, weight [16, 24]
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(5, 16)
    expected = layer(x)
    weft.quantize_(layer, weft.W8A16())
    assert (layer.in_features, layer.out_features) == (16, 24)
    torch.testing.assert_close(layer(x), expected, atol=0.01, rtol=0.01)


def test_the_output_embedding_only_when_asked_for():
    model = causal(transformers.GPT2Config(**GPT))
    assert model.lm_head.weight is model.transformer.wte.weight
    report = weft.quantize_(model, weft.W8A16(), filter_fn=lambda m, path: path == "lm_head")
    assert [x.path for x in report.quantized] == ["lm_head"]
    assert model.transformer.wte.weight.dtype == torch.float32
    assert model(IDS).logits.shape == (4, 16, 99)


def test_save_and_load(tmp_path):
    """A state_dict of a smoothed model, into one that holds no weights yet."""
    config = weft.W8A8Static(smoothing=AdaptiveSmoothQuant(pieces=2))
    model = made("llama")
    weft.quantize_(model, config, calibration=[{"input_ids": IDS}])
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = made("llama")
    again.to("meta")
    weft.quantize_(again, config)
    again.load_state_dict(torch.load(tmp_path / "model.pt"), assign=True)
    rotary = made("llama").rotary_emb  # not in a state_dict
    again.rotary_emb = rotary
    with torch.no_grad():
        assert torch.equal(model(IDS).last_hidden_state, again(IDS).last_hidden_state)
