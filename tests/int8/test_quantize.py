"""weft.quantize_: what it takes, what it makes, and how far the result is from the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import weft
from weft.quantization import (
    MSE,
    AdaptiveSmoothQuant,
    Average,
    Percentile,
    ShiftSmoothQuant,
    SmoothQuant,
)
from weft.quantization.report import sqnr

from .models import LINEAR, Block, C, PostNorm, plant_outliers

CONFIGS = {
    "dynamic": weft.W8A8Dynamic(),
    "asymmetric": weft.W8A8Dynamic(symmetric=False),
    "smooth": weft.W8A8Dynamic(smoothing=SmoothQuant()),
    "static": weft.W8A8Static(),
    "static, all": weft.W8A8Static(MSE, symmetric=False, smoothing=AdaptiveSmoothQuant()),
    "percentile": weft.W8A8Static(Percentile, smoothing=ShiftSmoothQuant()),
    "w8a16": weft.W8A16(),
    "w8a16 groups": weft.W8A16(group_size=16),
    "w4a16": weft.W4A16(group_size=16),
    "w4a16 symmetric": weft.W4A16(group_size=None, symmetric=True),
    "llm.int8": weft.LLMInt8(threshold=2.0),
    "hybrid, many": weft.Hybrid(crossover=1, smoothing=ShiftSmoothQuant(shift="ema")),
    "hybrid, few": weft.Hybrid(crossover=1000, smoothing=ShiftSmoothQuant(shift="ema")),
}
# Signal to noise over the block, in dB, that rounding to 8 and to 4 bits leaves.
LEAST = {True: 30.0, False: 12.0}


def calibration(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, 7, C, generator=generator).to(dtype) for _ in range(4)]


def noise(model: nn.Module, quantized: nn.Module, x: torch.Tensor) -> float:
    """Of what the block adds to its input, in dB."""
    with torch.no_grad():
        return sqnr(model(x) - x, quantized(x) - x)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("block", [Block, PostNorm])
def test_configs(config, block):
    model = block()
    for p in (model.norm1.weight, model.norm2.bias):
        nn.init.normal_(p, 1.0, 0.2)
    quantized = copy.deepcopy(model)
    report = weft.quantize_(quantized, config, calibration=calibration())
    assert [layer.path for layer in report.quantized] == list(LINEAR)
    layers = [quantized.get_submodule(path) for path in LINEAR]
    assert all(isinstance(m, nn.Linear) and type(m) is config.module for m in layers)
    assert all(m.weight.dtype == torch.int8 for m in layers)
    x = torch.randn(2, 5, C)
    assert noise(model, quantized, x) > LEAST[layers[0].bits == 8]
    assert all(layer.sqnr > LEAST[layers[0].bits == 8] for layer in report.quantized)
    smoothed = getattr(config, "smoothing", None) is not None
    assert all((layer.sqnr_plain is not None) == smoothed for layer in report.quantized)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["smooth", "static, all", "w4a16", "llm.int8", "hybrid, few"])
def test_sixteen_bits(name, dtype):
    model = Block().to(dtype)
    quantized = copy.deepcopy(model)
    weft.quantize_(quantized, CONFIGS[name], calibration=calibration(dtype))
    x = torch.randn(2, 5, C, dtype=dtype)
    assert quantized(x).dtype == dtype
    assert quantized.up.weight_scale.dtype == torch.float32
    assert noise(model, quantized, x) > (12 if name == "w4a16" else 26)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, weft.nn.RMSNorm])
@pytest.mark.parametrize("block", [Block, PostNorm])
@pytest.mark.parametrize(
    "smoothing",
    [SmoothQuant(), ShiftSmoothQuant(), ShiftSmoothQuant(shift="ema"), AdaptiveSmoothQuant()],
    ids=lambda s: f"{type(s).__name__}-{s.shift}",
)
def test_smoothing_changes_nothing_but_rounding(norm, block, smoothing):
    """With its weights put back in floats, a smoothed model computes what it computed before."""
    model = plant_outliers(block(norm), factor=20.0)
    smoothed = copy.deepcopy(model)
    config = weft.W8A8Dynamic(smoothing=smoothing)
    report = weft.quantize_(smoothed, config, calibration=calibration())
    folded = {layer.path: layer.smoothed for layer in report.quantized}
    expected = ("norm1", "norm2") if block is Block else ("quantiser", "quantiser")
    assert (folded["attention.q"], folded["up"]) == expected
    assert folded["down"] == "quantiser"
    has_shift = smoothed.up.input_shift is not None
    left_over = smoothing.shift is not None and not (block is Block and norm is nn.LayerNorm)
    assert has_shift == left_over
    assert (smoothed.up.input_smooth is None) == (block is Block)

    for path in LINEAR:
        layer, original = smoothed.get_submodule(path), model.get_submodule(path)
        smooth = layer.dequantized_weight().norm(dim=0) / original.weight.norm(dim=0)
        assert smooth.isfinite().all()

        def exact(module, args, out, layer=layer):
            x = args[0] if layer.input_shift is None else args[0] - layer.input_shift
            x = x if layer.input_smooth is None else x / layer.input_smooth
            return nn.functional.linear(x, layer.dequantized_weight(), layer.bias)

        layer.register_forward_hook(exact)
    x = torch.randn(2, 5, C)
    assert noise(model, smoothed, x) > 33  # the weights alone are rounded


def noises(factor: float, offset: float, configs: dict[str, object]) -> dict[str, float]:
    model = plant_outliers(Block(), factor, offset)
    x = torch.randn(16, 8, C)
    batches = [torch.randn(64, 8, C) for _ in range(4)]
    found = {}
    for name, config in configs.items():
        quantized = copy.deepcopy(model)
        weft.quantize_(quantized, config, calibration=batches)
        found[name] = noise(model, quantized, x)
    return found


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(
    "factor, offset",
    [(1000.0, 0.0), (1.0, 300.0), (300.0, 900.0)],
    ids=["large", "off centre", "both"],
)
def test_smoothing_repairs_what_planted_outliers_break(factor, offset, static):
    config = weft.W8A8Static if static else weft.W8A8Dynamic
    found = noises(
        factor,
        offset,
        {
            "plain": config(),
            "smooth": config(smoothing=SmoothQuant()),
            "shift": config(smoothing=ShiftSmoothQuant()),
            "adaptive": config(smoothing=AdaptiveSmoothQuant()),
        },
    )
    assert found["plain"] < 10
    assert min(found["shift"], found["adaptive"]) > 33
    if offset == 0:
        assert found["smooth"] > 33
    if factor == 1:
        assert found["shift"] > found["smooth"] + 10


def test_llm_int8_repairs_activations():
    """Its weights are int8 all the same: it ends where weight-only quantisation does."""
    configs = {"plain": weft.W8A8Dynamic(), "llm": weft.LLMInt8(), "weight": weft.W8A16()}
    found = noises(20.0, 0.0, configs)
    assert found["llm"] > found["plain"] + 7
    assert found["llm"] > found["weight"] - 2


# ------------------------------------------------------------------------------------ what is taken


def test_filter_and_second_call():
    model = Block()
    report = weft.quantize_(model, weft.W8A16(), filter_fn=lambda m, path: path.endswith("q"))
    assert [layer.path for layer in report.quantized] == ["attention.q"]
    assert {layer.why_not for layer in report.skipped} == {"not selected"}
    report = weft.quantize_(model, weft.W8A8Dynamic())
    assert len(report.quantized) == 5
    assert report.layers[0].why_not == "already quantised"
    assert isinstance(model.attention.q, weft.nn.WeightOnlyLinear)


def test_optimize_and_quantize_go_together():
    model = nn.Sequential(Block(), Block()).eval()
    x = torch.randn(2, 5, C)
    with torch.no_grad():
        expected = model(x)
        weft.quantize_(model, weft.W8A8Dynamic())
        report = weft.optimize(model)
        assert len(report.swapped) == 4 and not report.others
        assert sqnr(expected, model(x)) > 30
        weft.restore(model)
        assert sqnr(expected, model(x)) > 30
    assert isinstance(model[0].up, weft.nn.Int8Linear)


def test_a_layer_itself():
    layer = nn.Linear(64, 32)
    weight = layer.weight.detach().clone()
    seen = []
    layer.register_forward_hook(lambda module, args, out: seen.append(out))
    report = weft.quantize_(layer, weft.W8A8Dynamic())
    assert isinstance(layer, weft.nn.Int8Linear) and report.quantized[0].path == ""
    assert_close(layer.dequantized_weight(), weight, atol=weight.abs().max() / 254, rtol=0)
    assert layer(torch.randn(2, 64)) is seen[0]
    assert dict(layer.named_parameters()).keys() == {"bias"}


def test_what_is_left_alone():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.ModuleDict(
        {
            "own": Own(C, C),
            "attention": nn.MultiheadAttention(C, 4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(C, C)),
            "wide": nn.Linear(C, C).double(),
            "embedding": nn.Embedding(99, C),
            "head": nn.Linear(C, 99, bias=False),
            "odd": nn.Linear(C, C),
        }
    )
    model["head"].weight = model["embedding"].weight
    model["odd"].forward = lambda x: x
    reasons = {x.path: x.why_not for x in weft.quantize_(model, weft.W8A16()).layers}
    assert reasons == {
        "own": "its forward is not that of torch.nn.Linear",
        "attention.out_proj": "torch.nn.MultiheadAttention reads its weight",
        "normed": "its weight is no plain parameter",
        "wide": "its weight is float64",
        "head": "its weight is also another module's (filter_fn takes it all the same)",
        "odd": "its forward is overridden on the instance",
    }
    report = weft.quantize_(model, weft.W8A16(), filter_fn=lambda m, path: path == "head")
    assert [x.path for x in report.quantized] == ["head"]
    assert model["embedding"].weight.dtype == torch.float32


def test_groups_that_do_not_fit():
    model = nn.Sequential(nn.Linear(48, 128), nn.Linear(128, 8))
    report = weft.quantize_(model, weft.W4A16())
    assert [layer.why_not for layer in report.layers] == [
        "its 48 inputs are no multiple of group_size 128", "",
    ]  # fmt: skip


def test_calibration_is_needed_and_may_miss_a_layer():
    for config in (weft.W8A8Static(), weft.W8A8Dynamic(smoothing=SmoothQuant())):
        with pytest.raises(ValueError, match="needs calibration="):
            weft.quantize_(Block(), config)
        with pytest.raises(ValueError, match="holds no batches"):
            weft.quantize_(Block(), config, calibration=[])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.rare = nn.Linear(C, C), nn.Linear(C, C)

        def forward(self, x, rare=False):
            return self.rare(x) if rare else self.used(x)

    model = Model()
    report = weft.quantize_(model, weft.W8A8Static(), calibration=calibration())
    assert [x.why_not for x in report.layers] == ["", "the calibration never reached it"]
    batches = [*calibration(), {"x": torch.randn(4, C), "rare": True}]
    model = Model()
    report = weft.quantize_(model, weft.W8A8Static(Average), calibration=batches)
    assert len(report.quantized) == 2
    assert weft.quantize_(Model(), weft.W8A16(), calibration=calibration()).layers[1].after


@pytest.mark.parametrize("reached", [True, False])
def test_no_norm_is_folded_that_another_branch_may_read(reached):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(C), nn.Linear(C, C), nn.Linear(C, C)

        def forward(self, x, other=False):
            x = self.norm(x)
            return self.b(x) * x if other else self.a(x)

    model = Model()
    exact = copy.deepcopy(model)
    batches = [*calibration(), *[{"x": x, "other": True} for x in calibration() if reached]]
    config = weft.W8A8Dynamic(smoothing=SmoothQuant(0.9))
    report = weft.quantize_(model, config, calibration=batches)
    assert [x.smoothed for x in report.layers] == ["quantiser", "quantiser" if reached else ""]
    x = torch.randn(9, C)
    with torch.no_grad():
        for other in (False, True):
            assert sqnr(exact(x, other), model(x, other)) > 30


def test_calibration_leaves_modes_and_hooks_as_they_were():
    model = Block().train()
    model.norm1.eval()
    weft.quantize_(model, weft.W8A8Static(smoothing=SmoothQuant()), calibration=calibration())
    assert model.training and model.up.training and not model.norm1.training
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
    assert not any(hooks)


def test_static_scales_are_those_of_the_observer():
    model = nn.Sequential(nn.Linear(C, C))
    batches = calibration()
    weft.quantize_(model, weft.W8A8Static(), calibration=batches)
    largest = torch.stack([x.abs().max() for x in batches]).max()
    assert_close(model[0].input_scale, largest.view(1) / 127)
    assert model[0].input_zero_point.item() == 0


def test_tied_layers_stay_tied():
    model = nn.Sequential(nn.Linear(C, C), nn.ReLU(), nn.Linear(C, C))
    model[2].weight = model[0].weight
    weft.quantize_(model, weft.W8A8Dynamic())
    assert model[0].packed is model[2].packed
    alone = nn.Sequential(nn.Linear(C, C), nn.Linear(C, C))
    weft.quantize_(alone, weft.W8A8Dynamic())
    assert alone[0].packed is not alone[1].packed


@pytest.mark.parametrize("norm_first", [False, True])
def test_torch_encoders(norm_first):
    layer = nn.TransformerEncoderLayer(
        C, 4, 2 * C, batch_first=True, dropout=0.0, norm_first=norm_first
    )
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    quantized = copy.deepcopy(model)
    x, hidden = torch.randn(3, 6, C), torch.zeros(3, 6, dtype=torch.bool)
    hidden[0, 4:] = True
    batches = [{"src": x, "src_key_padding_mask": hidden}]
    config = weft.W8A8Dynamic(smoothing=SmoothQuant())
    report = weft.quantize_(quantized, config, calibration=batches)
    assert len(report.quantized) == 4
    with torch.no_grad():
        truth, found = (m(x, src_key_padding_mask=hidden)[~hidden] for m in (model, quantized))
    assert sqnr(truth, found) > 30
    assert not torch.equal(truth, found)


@pytest.mark.parametrize("name", ["smooth", "static, all", "w8a16", "w4a16", "llm.int8"])
def test_compile(name):
    model = Block()
    weft.quantize_(model, CONFIGS[name], calibration=calibration())
    x = torch.randn(2, 5, C)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(x), model(x))


def test_compile_follows_the_number_of_rows():
    layer = nn.Linear(C, C)
    weft.quantize_(layer, weft.Hybrid(crossover=4))
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    few, many = torch.randn(3, C), torch.randn(9, C)
    with torch.no_grad():
        for x in (few, many):
            assert_close(compiled(x), layer(x))
        rows_alone = torch.cat([layer(many[i : i + 1]) for i in range(9)])
        assert not torch.equal(layer(many), rows_alone)


# ------------------------------------------------------------------------------------------ report


def test_report(tmp_path):
    report = weft.quantize_(
        nn.Sequential(Block(), Block()),
        weft.W8A8Dynamic(smoothing=SmoothQuant()),
        calibration=calibration(),
        filter_fn=lambda m, path: "down" not in path,
    )
    text = str(report)
    assert "*.attention.q  ×2" in text and "*.norm1" in text
    assert "10 layers quantised, 2 left alone" in text and "not selected" in text
    assert report.to_dict()["layers"][0]["sqnr"] > 20
    assert report.bytes_after < 0.35 * report.bytes_before
    pytest.importorskip("rich")
    assert report.table().row_count == 10
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="nothing to plot"):
        weft.quantize_(nn.Linear(8, 8), weft.W8A16()).plot(tmp_path / "none.png")


def test_sqnr():
    truth = torch.tensor([3.0, 4.0])
    assert sqnr(truth, truth + torch.tensor([0.3, 0.4])) == pytest.approx(20.0, abs=1e-4)
    assert sqnr(truth, truth) == float("inf")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_repr_names_the_layer(config):
    layer = nn.Linear(C, C)
    weft.quantize_(layer, config, calibration=calibration())
    text = repr(layer)
    assert text.startswith(f"weft.{config.module.__name__}(in_features=48, out_features=48, bias=")
    assert ("smooth=True" in text) == (getattr(config, "smoothing", None) is not None)
