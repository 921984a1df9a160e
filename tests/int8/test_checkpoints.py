"""Quantised layers saved, loaded, copied, moved; and other libraries' checkpoints."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from safetensors import torch as safetensors
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

import weft
from weft.nn._int8_weight import from_int32, quantize_weight, to_int32

from .models import Block, C
from .test_quantize import CONFIGS, calibration

X = torch.linspace(-2, 2, 6 * C).view(2, 3, C)


def quantized(config, **options) -> Block:
    model = Block()
    weft.quantize_(model, config, calibration=calibration(), **options)
    return model


def saved(model: nn.Module) -> dict[str, torch.Tensor]:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_state_dict(config):
    """A checkpoint goes into a quantised model, and into one on the meta device."""
    model = quantized(config)
    state = saved(model)
    kept = {"weight", "weight_packed", "weight_scale", "weight_zero_point", "bias"}
    kept |= {"input_scale", "input_zero_point", "input_shift", "input_smooth"}
    assert {k.rpartition(".")[2] for k in state} <= kept
    weights = [state.get(f"up.{name}") for name in ("weight", "weight_packed")]
    assert {w.dtype for w in weights if w is not None} <= {torch.int8, torch.int32}

    again = quantized(config)
    assert not torch.equal(again(X), model(X))
    again.load_state_dict(state)
    assert torch.equal(again(X), model(X))

    with torch.device("meta"):
        empty = Block()
    weft.quantize_(empty, config)
    assert empty.up.weight.is_meta
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(X), model(X))
    assert saved(empty).keys() == state.keys()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_copies(config):
    model = quantized(config)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X), model(X)) and repr(other) == repr(model)
        assert other.up.packed is not model.up.packed
    assert model.up.plain is None  # making copies leaves nothing behind


def test_safetensors(tmp_path):
    model = quantized(CONFIGS["static, all"])
    safetensors.save_model(model, tmp_path / "model.safetensors")
    again = quantized(CONFIGS["static, all"])
    safetensors.load_model(again, tmp_path / "model.safetensors")
    assert torch.equal(again(X), model(X))


def test_tied_weights_pack_once():
    model = nn.Sequential(nn.Linear(C, C), nn.Linear(C, C))
    model[1].weight = model[0].weight
    weft.quantize_(model, weft.W8A8Dynamic())
    state = model.state_dict()
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        nn.Sequential(weft.nn.Int8Linear(C, C), weft.nn.Int8Linear(C, C)),
    ):
        other.load_state_dict(saved(model))
        assert other[0].packed is other[1].packed
        assert torch.equal(other(X), model(X))
    assert copy.deepcopy(model)[0].packed is not model[0].packed


def test_a_changed_weight_is_packed_anew():
    layer = weft.nn.Int8Linear(C, C)
    weight = torch.randint(-127, 128, (C, C), dtype=torch.int8)
    state = {"weight": weight, "weight_scale": torch.ones(C), "bias": torch.zeros(C)}
    layer.load_state_dict(state)
    before = layer(X)
    weight.neg_()  # the same storage
    layer.load_state_dict(state)
    assert_close(layer(X), -before)


def test_a_refilled_buffer_is_packed_anew():
    """Written without a new version: under inference_mode, through .data."""
    first, second = (torch.randint(-127, 128, (C, C), dtype=torch.int8) for _ in range(2))

    def load_both(staging: torch.Tensor) -> list[nn.Module]:
        layers = []
        for weight in (first, second):
            staging.data.copy_(weight)
            layers.append(weft.nn.Int8Linear(C, C))
            state = {"weight": staging, "weight_scale": torch.ones(C), "bias": torch.zeros(C)}
            layers[-1].load_state_dict(state)
        return layers

    with torch.inference_mode():
        layers = load_both(torch.empty(C, C, dtype=torch.int8))
    layers += load_both(torch.empty(C, C, dtype=torch.int8))
    for layer, weight in zip(layers, (first, second, first, second), strict=True):
        assert torch.equal(layer.weight, weight)


def test_layers_take_what_they_compute_with():
    vector, number = torch.ones(C), torch.ones(1)
    extra = {
        "input_shift": vector,
        "input_smooth": vector,
        "input_scale": number,
        "input_zero_point": number.int(),
        "weight_zero_point": torch.zeros(C, 1),
    }
    taken = {
        weft.nn.Int8Linear: {"input_shift", "input_smooth", "input_scale", "input_zero_point"},
        weft.nn.HybridLinear: {"input_shift", "input_smooth"},
        weft.nn.WeightOnlyLinear: {"weight_zero_point"},
        weft.nn.LLMInt8Linear: set(),
    }
    for cls, names in taken.items():
        for key, value in extra.items():
            layer = cls(C, C)
            state = layer.state_dict() | {key: value}
            if key in names:
                layer.load_state_dict(state)
                assert getattr(layer, key) is not None
            else:
                with pytest.raises(RuntimeError, match=f'Unexpected key.*"{key}"'):
                    layer.load_state_dict(state)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_weights_without_numbers(value: float):
    model = nn.Sequential(nn.Linear(C, C), nn.Linear(C, C))
    model[0].weight.data[3, 5] = value
    report = weft.quantize_(model, weft.W8A8Dynamic())
    assert [layer.why_not for layer in report.layers] == ["its weight holds NaN or infinity", ""]
    for layer in (
        weft.nn.Int8Linear(C, C),
        weft.nn.WeightOnlyLinear(C, C, bits=4, group_size=16, symmetric=False),
    ):
        with pytest.raises(RuntimeError, match="weight holds NaN or infinity"):
            layer.load_state_dict(model[0].state_dict())
    trained = weft.nn.Linear8bitLt(C, C)
    trained.load_state_dict(model[0].state_dict())
    y = trained(X)
    assert y[..., 3].isnan().all() and y[..., 4:].isfinite().all()


def test_layers_without_data():
    with FakeTensorMode():
        layer = weft.nn.Int8Linear(C, C)
        layer.load_state_dict(nn.Linear(C, C).state_dict())
        assert layer(torch.ones(3, C)).shape == (3, C)


def test_hybrid_smooths_few_rows_in_float32():
    """The bias holds W · shift exactly: what is rounded is the difference."""
    layer = weft.nn.HybridLinear(C, C, dtype=torch.float32)
    shift = torch.full((C,), 300.7)
    layer.load_state_dict(
        nn.Linear(C, C).state_dict() | {"input_shift": shift, "input_smooth": torch.rand(C) + 0.3}
    )
    x = (shift + torch.randn(3, C)).bfloat16()
    t = (x.float() - shift) / layer.input_smooth
    exact = t @ layer.dequantized_weight().t() + layer.bias
    assert_close(layer(x).float(), exact, atol=0.02, rtol=0.02)


def test_moving():
    model = quantized(CONFIGS["static, all"])
    packed, scale = model.up.packed, model.up.weight_scale.clone()
    model.bfloat16()
    assert model.up.packed is packed
    assert model.up.bias.dtype == torch.bfloat16
    assert torch.equal(model.up.weight_scale, scale)
    assert {t.dtype for n, t in model.up.named_buffers() if t.is_floating_point()} == {
        torch.float32
    }
    model.to("meta")
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    with pytest.raises(RuntimeError, match="on the device meta, for which weft has no INT8 kernel"):
        model.up(X.to("meta"))
    model.to_empty(device="cpu")
    assert model.up.packed is not None


def test_loading_says_what_is_wrong():
    layer = weft.nn.Int8Linear(C, C, static=True)
    good = layer.state_dict()
    for changed, message in (
        ({"weight": torch.zeros(C, 2, dtype=torch.int8)}, r"shape \[48, 2\], expected \[48, 48\]"),
        ({"weight": torch.zeros(C, C, dtype=torch.int16)}, "dtype torch.int16, expected int8"),
        ({"weight_scale": torch.ones(7)}, "size mismatch for weight_scale"),
        ({"extra": torch.ones(1)}, "Unexpected key"),
        ({"input_scale": torch.ones(2)}, r"input_scale has shape \[2\], expected one element"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(good | changed)
    for name in ("weight", "weight_scale", "input_scale", "bias"):
        without = {k: v for k, v in good.items() if k != name}
        with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
            layer.load_state_dict(without)
        assert layer.load_state_dict(without, strict=False).missing_keys == [name]


@pytest.mark.parametrize("bits, symmetric", [(8, True), (4, True), (4, False)])
@pytest.mark.parametrize("group", [None, 16])
def test_weights_of_floats_are_quantised_when_loaded(bits, symmetric, group):
    layer = weft.nn.WeightOnlyLinear(
        C, 32, bits=bits, group_size=group, symmetric=symmetric, dtype=torch.float32
    )
    original = nn.Linear(C, 32)
    original.weight.data[3] = 0
    layer.load_state_dict(original.state_dict())
    step = layer.weight_scale.view(32, -1, 1).expand(32, -1, group or C).reshape(32, C)
    error = (layer.dequantized_weight() - original.weight).abs()
    assert (error <= step * (0.5 if symmetric else 1.0) * (1 + 1e-4)).all()
    assert layer.dequantized_weight()[3].abs().max() == 0


def test_int32_is_compressed_tensors_layout():
    values = torch.randint(-8, 8, (5, 20), dtype=torch.int8)
    packed = to_int32(values)
    assert packed.shape == (5, 3) and packed.dtype == torch.int32
    assert torch.equal(from_int32(packed, 20), values)
    word = sum((int(v) + 8) << (4 * i) for i, v in enumerate(values[0, :8]))
    assert packed[0, 0].item() & 0xFFFFFFFF == word


# -------------------------------------------------------------------------------- others' formats


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("static", [False, True])
def test_compressed_tensors(per, static):
    weight = torch.randint(-127, 128, (32, C), dtype=torch.int8)
    scale = torch.rand(32, 1) if per == "channel" else torch.rand(1)
    state = {"weight": weight, "weight_scale": scale.bfloat16(), "bias": torch.randn(32)}
    if static:
        state |= {
            "input_scale": torch.tensor([0.02], dtype=torch.bfloat16),
            "input_zero_point": torch.tensor([-5], dtype=torch.int8),
        }
    layer = weft.nn.Int8Linear(C, 32, static=static)
    layer.load_state_dict(state)
    assert torch.equal(layer.weight, weight)
    dequantized = weight * scale.bfloat16().float()
    assert_close(layer.dequantized_weight(), dequantized)
    y = nn.functional.linear(X, dequantized, state["bias"])
    error = (layer(X) - y).abs().max() / y.abs().max()
    assert 0 < error < (0.05 if static else 0.02)


def test_bitsandbytes():
    """The state_dict of a Linear8bitLt of bitsandbytes: int8 rows, their largest |w|, a format."""
    original = nn.Linear(C, 32)
    largest = original.weight.detach().abs().amax(1)
    weight = (original.weight.detach() * 127 / largest[:, None]).round().to(torch.int8)
    state = {
        "weight": weight, "SCB": largest, "bias": original.bias.detach(),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }  # fmt: skip
    layer = weft.nn.Linear8bitLt(C, 32, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict(state)
    x = X.clone()
    x[..., 5] = 50.0
    assert_close(layer(x), original(x), atol=0.05, rtol=0)
    again = layer.state_dict()
    assert again.keys() == state.keys()
    assert torch.equal(again["weight"], weight)
    assert_close(again["SCB"], largest)

    floats = weft.nn.Linear8bitLt(C, 32, True, False)  # and quantised as it is loaded
    floats.load_state_dict(original.state_dict())
    assert torch.equal(floats.weight, weight)
    assert_close(floats(X), original(X), atol=0.05, rtol=0)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    with pytest.raises(RuntimeError, match="weight_format is 1, expected 0"):
        layer.load_state_dict(state | {"weight_format": torch.tensor(1, dtype=torch.uint8)})


def test_bitsandbytes_trains():
    layer = weft.nn.Linear8bitLt(C, 32)
    assert isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float32
    exact = nn.Linear(C, 32)
    exact.load_state_dict(layer.state_dict())
    x = X.clone().requires_grad_()
    y = exact(X.clone())
    assert_close(layer(x), y, atol=0.05, rtol=0)
    assert not torch.equal(layer(x), y)
    dy = torch.randn_like(y)
    layer(x).backward(dy)
    exact(X).backward(dy)
    assert_close(layer.weight.grad, exact.weight.grad, atol=1e-5, rtol=1e-5)
    assert_close(layer.bias.grad, exact.bias.grad)
    assert_close(x.grad, dy @ exact.weight, atol=0.05, rtol=0.01)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    frozen = weft.nn.Linear8bitLt(C, 32, has_fp16_weights=False)
    frozen.load_state_dict(layer.state_dict())
    assert torch.equal(frozen(X), layer(X))


def test_bitsandbytes_is_one_class():
    trained = weft.nn.Linear8bitLt(8, 8)
    frozen = weft.nn.Linear8bitLt(8, 8, has_fp16_weights=False)
    assert isinstance(trained, weft.nn.Linear8bitLt) and isinstance(frozen, weft.nn.Linear8bitLt)
    assert not isinstance(nn.Linear(8, 8), weft.nn.Linear8bitLt)

    class Own(weft.nn.Linear8bitLt):
        pass

    assert isinstance(Own(8, 8, has_fp16_weights=False), Own) and not isinstance(trained, Own)
    assert isinstance(copy.deepcopy(Own(8, 8, has_fp16_weights=False)), Own)
    with pytest.raises(ValueError, match=r"Own: has_fp16_weights is True, the default: expected"):
        Own(8, 8)


def test_bitsandbytes_trained_form_compiles():
    layer = weft.nn.Linear8bitLt(C, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(X), layer(X))


def test_quantize_weight():
    weight = torch.randn(8, 32)
    values, scale, zero_point = quantize_weight(weight)
    assert (values.shape, scale.shape, zero_point) == ((8, 32), (8,), None)
    assert values.abs().amax(1).eq(127).all()
    values, scale, zero_point = quantize_weight(weight, 4, 8, symmetric=False)
    assert (scale.shape, zero_point.shape) == ((8, 4), (8, 4))
    assert values.min() == -8 and values.max() == 7
    with pytest.raises(ValueError, match="group_size is 5, expected a divisor of in_features, 32"):
        quantize_weight(weight, 4, 5)


def test_scales_of_groups_lie_as_the_kernels_read_them():
    """Those of a group side by side, however a layer came to its weight; checkpoints plain."""

    def made(**options):
        return weft.nn.WeightOnlyLinear(C, 48, bits=4, group_size=16, symmetric=False, **options)

    def laid(layer):
        found = (layer.weight_scale, layer.weight_zero_point)
        return all(t.shape == (48, C // 16) and t.stride() == (1, 48) for t in found)

    torch.manual_seed(0)
    layer = made()
    layer.load_state_dict({"weight": torch.randn(48, C), "bias": torch.zeros(48)})
    state = layer.state_dict()
    assert all(t.is_contiguous() for t in state.values())
    assigned = made()
    assigned.load_state_dict(state, assign=True)
    for other in (layer, assigned, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert laid(other)
        assert torch.equal(other.dequantized_weight(), layer.dequantized_weight())
