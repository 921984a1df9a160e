"""weft.optimize on models of transformers: the same model afterwards, but for weft's norms."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import weft

transformers = pytest.importorskip("transformers")

from integration.models import CONFIGS, inputs, make, output  # noqa: E402
from tolerance import assert_no_worse_than_torch  # noqa: E402

MODELS = sorted(CONFIGS)


def fused(report: weft.Report) -> list[weft.optimize.Entry]:
    return [entry for entry in report.swapped if "add + norm" in entry.after]


def classes(model: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in model.named_modules()}


# ---------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_same_outputs(name: str, dtype: torch.dtype) -> None:
    model, given = make(name, dtype), inputs(name)
    # Others' RMSNorms compute in float32 whatever they are given: the truth is as good as that.
    truth = output(copy.deepcopy(model).double(), given)
    plain = output(model, given)
    report = weft.optimize(model)
    assert len(fused(report)) == CONFIGS[name][1]
    assert_no_worse_than_torch(output(model, given), truth, plain)


@pytest.mark.parametrize("name", MODELS)
def test_same_gradients(name: str) -> None:
    stock, given = make(name), inputs(name)
    ours = copy.deepcopy(stock)
    weft.optimize(ours)
    gradients = []
    for model in (stock, ours):
        model.train()
        output(model, given).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    scale = max(g.abs().max() for g in gradients[0].values())
    for path, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][path], expected, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("name", MODELS)
def test_restore_gives_back_the_same_bits(name: str) -> None:
    model, given = make(name), inputs(name)
    before, kinds, attributes = output(model, given), classes(model), snapshot(model)
    weft.optimize(model)
    assert classes(model) != kinds
    weft.restore(model)
    assert classes(model) == kinds
    assert snapshot(model) == attributes
    assert torch.equal(output(model, given), before)


def snapshot(model: nn.Module) -> dict[str, set[str]]:
    return {path: set(module.__dict__) for path, module in model.named_modules()}


def test_dropout_in_training_has_the_right_distribution() -> None:
    """Mean and variance of z are those of torch's dropout; in eval mode nothing is dropped."""
    model = make("bert", hidden_dropout_prob=0.3)
    weft.optimize(model)
    block = model.encoder.layer[0].output
    hidden, residual = torch.randn(1, 1, 80), torch.randn(1, 1, 48)
    z = F.linear(hidden, block.dense.weight, block.dense.bias)
    block.LayerNorm = Recorder()
    block.train()
    drawn = torch.cat([block(hidden, residual) for _ in range(4000)]) - residual
    kept = drawn != 0
    assert kept.double().mean().item() == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(drawn[kept], (z / 0.7).expand_as(drawn)[kept], rtol=1e-4, atol=1e-4)
    block.eval()
    torch.testing.assert_close(block(hidden, residual), z + residual)


class Recorder(nn.Identity):
    """Stands where a norm was, and shows what it is given."""


def test_fused_dropout_matches_torch_in_distribution() -> None:
    model = make("bert", hidden_dropout_prob=0.4)
    stock = copy.deepcopy(model)
    assert fused(weft.optimize(model))
    given = torch.randn(64, 16, 80), torch.randn(64, 16, 48)
    moments = []
    for m in (stock, model):
        block = m.encoder.layer[1].output.train()
        y = torch.stack([block(*given) for _ in range(50)])
        moments.append(
            (
                y.mean(),
                y.var(),
                (y.mean(0) - stock.encoder.layer[1].output.eval()(*given)).square().mean(),
            )
        )
    for expected, found in zip(*moments, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)


def test_dropout_follows_the_seed() -> None:
    model = make("bert", hidden_dropout_prob=0.3).train()
    weft.optimize(model)
    given = inputs("bert")
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(output(model, given))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_autocast(name: str) -> None:
    model, given = make(name), inputs(name)
    with torch.autocast("cpu", torch.bfloat16):
        expected = output(model, given)
        weft.optimize(model)
        found = output(model, given)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.05, atol=0.1)


def test_weights_wider_than_the_input_widen_the_output_as_before() -> None:
    """LLaMA multiplies by its weight last: a float32 weight makes a float32 output of bfloat16."""
    model = make("llama", torch.bfloat16)
    model.norm.float()
    expected = output(model, given := inputs("llama"))
    weft.optimize(model)
    assert expected.dtype == output(model, given).dtype == torch.float32


# --------------------------------------------------------------------------- what stays the same


@pytest.mark.parametrize("name", ["bert", "llama", "gemma"])
def test_parameters_modes_and_keys_stay(name: str) -> None:
    model = make(name)
    next(model.children()).train()
    parameters = {n: id(p) for n, p in model.named_parameters()}
    modes = {path: module.training for path, module in model.named_modules()}
    keys, modules = list(model.state_dict()), [id(m) for m in model.modules()]
    kinds = [type(m) for m in model.modules()]
    weft.optimize(model)
    assert parameters == {n: id(p) for n, p in model.named_parameters()}
    assert modes == {path: module.training for path, module in model.named_modules()}
    assert keys == list(model.state_dict())
    assert modules == [id(m) for m in model.modules()]
    for module, kind in zip(model.modules(), kinds, strict=True):
        assert isinstance(module, kind)
        assert type(module).__name__ == kind.__name__


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))
    model[1].weight = model[0].weight
    shared = nn.LayerNorm(8)
    model.extend([shared, shared])
    assert len(weft.optimize(model).swapped) == 3
    assert model[1].weight is model[0].weight
    assert model[2] is model[3] is shared


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_hooks_fire_on_the_parts_of_a_fused_block(name: str) -> None:
    model, given = make(name), inputs(name)
    expected = output(model, given)
    seen: list[str] = []
    before, after = list(model.named_modules())[1::3], list(model.named_modules())[2::3]
    for path, module in before:
        module.register_forward_hook(lambda *_, path=path: seen.append(path))
    weft.optimize(model)
    for path, module in after:
        module.register_forward_hook(lambda *_, path=path: seen.append(path))
    torch.testing.assert_close(output(model, given), expected, rtol=1e-4, atol=1e-5)
    stock = copy.deepcopy(model)
    found, seen[:] = list(seen), []
    weft.restore(stock)
    output(stock, given)
    assert found == seen  # the same calls in the same order as in the stock model
    assert any("norm" in path.lower() for path in found)


def test_a_replaced_part_is_called() -> None:
    """As adapters do: the linear layer of a fused block becomes something else."""
    model = make("bert")
    weft.optimize(model)
    block = model.encoder.layer[0].output
    hidden, residual = torch.randn(2, 3, 80), torch.randn(2, 3, 48)
    expected = block.LayerNorm(2 * block.dense(hidden) + residual)
    block.dense = Doubled(block.dense)
    torch.testing.assert_close(block(hidden, residual), expected)


class Doubled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


@pytest.mark.parametrize("name", ["bert", "llama", "gemma", "bart"])
def test_deepcopy_and_pickle(name: str) -> None:
    model, given = make(name), inputs(name)
    before = output(model, given)
    weft.optimize(model)
    expected = output(model, given)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert classes(twin) == classes(model)
        assert torch.equal(output(twin, given), expected)
        weft.restore(twin)
        assert torch.equal(output(twin, given), before)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_save_pretrained(name: str, tmp_path) -> None:
    model, given = make(name), inputs(name)
    before = output(model, given)
    weft.optimize(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(
        output(transformers.AutoModel.from_pretrained(tmp_path).eval(), given), before
    )


@pytest.mark.parametrize("name", ["bert", "llama", "gemma", "vit"])
def test_compile(name: str) -> None:
    model, given = make(name), inputs(name)
    weft.optimize(model)
    expected = output(model, given)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(output(compiled, given), expected, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing() -> None:
    model, given = make("llama").train(), inputs("llama")
    weft.optimize(model)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        output(model, given).square().mean().backward()
        gradients.append(model.layers[0].mlp.up_proj.weight.grad.clone())
        model.activation_checkpointing_enable()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_traceback_points_at_the_models_own_source() -> None:
    model = make("bert")
    block = model.encoder.layer[0].output
    stock = block.forward.__code__
    weft.optimize(model)
    ours = block.forward.__code__
    assert (ours.co_filename, ours.co_firstlineno) == (stock.co_filename, stock.co_firstlineno)


def test_models_are_freed() -> None:
    model = make("bert")
    weft.optimize(model)
    alive = weakref.ref(model.encoder.layer[0].output)
    del model
    gc.collect()
    assert alive() is None


# ------------------------------------------------------------------------- choosing and reporting


def test_dry_run_changes_nothing() -> None:
    model = make("bert")
    kinds, attributes = classes(model), snapshot(model)
    planned = weft.optimize(model, dry_run=True)
    assert (classes(model), snapshot(model)) == (kinds, attributes)
    done = weft.optimize(model)
    assert planned.swapped == done.swapped
    assert planned.skipped == done.skipped
    assert "would be swapped" in str(planned)


def test_twice_is_once() -> None:
    model = make("llama")
    weft.optimize(model)
    kinds = classes(model)
    again = weft.optimize(model)
    assert again.swapped == []
    assert {entry.why_not for entry in again.skipped} == {"already swapped"}
    assert classes(model) == kinds


@pytest.mark.parametrize(
    "choice, chosen",
    [
        ({"include": "encoder.layer.0"}, lambda path: path.startswith("encoder.layer.0")),
        ({"include": "*.output"}, lambda path: ".output" in path),
        ({"include": ["embeddings", "*.1.*"]}, lambda path: "embeddings" in path or ".1." in path),
        ({"exclude": "encoder"}, lambda path: "encoder" not in path),
        ({"include": nn.LayerNorm}, lambda path: path.endswith("LayerNorm")),
        ({"exclude": nn.LayerNorm}, lambda path: False),
        ({"include": lambda path, module: ".0." in path}, lambda path: ".0." in path),
        (
            {"include": "encoder.*", "exclude": "*.1"},
            lambda path: path.startswith("encoder.layer.0"),
        ),
        ({"include": []}, lambda path: False),
    ],
    ids=range(9),
)
def test_include_and_exclude(choice, chosen) -> None:
    def paths(report: weft.Report) -> set[str]:  # the choice of attention: test_optimize_attention
        return {e.path for e in report.swapped if not e.after.startswith("attn_implementation")}

    everything = paths(weft.optimize(make("bert"), dry_run=True))
    report = weft.optimize(make("bert"), **choice)
    assert paths(report) == {path for path in everything if chosen(path)}
    assert {e.why_not for e in report.skipped} <= {"not selected"}


class BiasedRMSNorm(nn.Module):
    """Named as an RMSNorm, but not one."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-6
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) + 0.1


class CastingRMSNorm(BiasedRMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


class GatedNorm(nn.Module):
    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return x * gate


class Mystery(nn.Module):
    pass


def meta(module: nn.Module) -> nn.Module:
    return module.to("meta")


def overridden(module: nn.Module) -> nn.Module:
    module.forward = lambda x: x
    return module


@pytest.mark.parametrize(
    "module, why",
    [
        (BiasedRMSNorm(), "computes something else"),
        (GatedNorm(), "no kernel for this norm"),
        (nn.GroupNorm(2, 8), "no kernel for this norm"),
        (meta(nn.LayerNorm(8)), "meta device"),
        (overridden(nn.LayerNorm(8)), "overridden on the instance"),
        (nn.LayerNorm(8).to(torch.float8_e5m2), "dtype of its weights"),
        (weft.nn.LayerNorm(8), "already weft's"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_left_alone_is_named_with_a_reason(module: nn.Module, why: str) -> None:
    model = nn.ModuleDict({"odd": module, "plain": nn.LayerNorm(8), "mystery": Mystery()})
    kind = type(module)
    report = weft.optimize(model)
    assert type(model["odd"]) is kind
    assert [entry.path for entry in report.swapped] == ["plain"]
    (entry,) = report.skipped
    assert entry.path == "odd" and entry.before.endswith(kind.__name__) and why in entry.why_not
    assert report.others == {"Mystery": 1}
    assert "odd" in str(report) and why in str(report) and "Mystery" in str(report)


def test_norms_of_others_are_known_by_what_they_compute() -> None:
    model = nn.Sequential(CastingRMSNorm(), nn.RMSNorm(8, eps=1e-5), nn.LayerNorm((4, 8)))
    x = torch.randn(3, 4, 8)
    expected = model(x)
    report = weft.optimize(model)
    assert [e.after for e in report.swapped] == [
        "weft.rms_norm",
        "weft.nn.RMSNorm",
        "weft.nn.LayerNorm",
    ]
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model[0](x=x), CastingRMSNorm()(x))  # by the class's own keyword


class UnweightedRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def test_norms_without_weights() -> None:
    block = Block()
    block.norm = UnweightedRMSNorm()
    block.__class__ = Reused
    given = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    expected = block(*given)
    assert [entry.after for entry in weft.optimize(block).swapped] == [
        "weft.rms_norm",
        "add + norm",
    ]
    torch.testing.assert_close(block(*given), expected)
    torch.testing.assert_close(block.norm(given[0]), UnweightedRMSNorm()(given[0]))


def test_the_probe_leaves_the_random_state_alone() -> None:
    model = nn.Sequential(CastingRMSNorm())
    state = torch.get_rng_state()
    weft.optimize(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_torchs_own_transformer_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 16)
    expected = layer(x)
    report = weft.optimize(layer)
    assert [(e.path, e.after) for e in fused(report)] == [("", "add + norm")]
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_report() -> None:
    report = weft.optimize(make("gpt2"))
    table = str(report).splitlines()
    assert table[0].split() == ["path", "before", "after", "why", "not"]
    assert any(line.startswith("h.*.ln_1  ×2") and "weft.nn.LayerNorm" in line for line in table)
    assert any("GPT2Block" in line and "in a form that weft knows" in line for line in table)
    assert "6 modules swapped" in str(report) and "Conv1D ×8" in str(report)
    as_dict = json.loads(json.dumps(report.to_dict()))
    assert as_dict["swapped"][0] == {
        "path": "h.0.ln_1", "before": "nn.LayerNorm", "after": "weft.nn.LayerNorm", "why_not": "",
    }  # fmt: skip
    assert as_dict["others"]["Conv1D"] == 8 and as_dict["dry_run"] is False


# ------------------------------------------------------------------------- the table of patterns


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.drop, self.norm = nn.Linear(8, 8), nn.Dropout(0.1), nn.LayerNorm(8)


class Reused(Block):
    def forward(self, x, residual):  # the sum lives on under its own name
        total = self.dense(x) + residual
        y = self.norm(total)
        return y + total


class Functional(Block):
    def forward(self, x, residual):
        x = self.dense(x)
        x = F.dropout(x, p=0.5, training=self.training)
        x = residual + x
        residual = x
        x = self.norm(x)
        return x - residual


class Nested(Block):
    def forward(self, x, residual, twice=False, *, flip: bool = False):
        if twice:
            for _ in range(2):
                x = self.norm(self.drop(self.dense(x)) + residual)
        elif flip:
            return -self.norm(residual + x)
        return x


class Broadcast(Block):
    def forward(self, x, residual):
        return self.norm(x + residual[:1])


class OtherDropout(Block):
    def forward(self, x, residual):
        x = dropout(x, p=0.5, training=self.training)
        x = self.norm(x + residual)
        return x


class NoNorm(Block):
    def forward(self, x, residual):
        return self.norm(x) + residual


def dropout(x, p, training):
    return x * p


@pytest.mark.parametrize(
    "cls, label, options",
    [
        (Reused, "add + norm", {}),
        (Functional, "dropout + add + norm", {}),
        (Nested, "dropout + add + norm; add + norm", {"twice": True}),
        (Nested, "dropout + add + norm; add + norm", {"flip": True}),
        (Nested, "dropout + add + norm; add + norm", {}),
        (Broadcast, "add + norm", {}),
        (OtherDropout, "add + norm", {}),
        (NoNorm, None, {}),
    ],
)
def test_patterns(cls: type[Block], label: str | None, options: dict[str, bool]) -> None:
    block = cls().eval()
    given = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    expected = block(*given, **options)
    found = fused(weft.optimize(block))
    assert [entry.after for entry in found] == ([label] if label else [])
    torch.testing.assert_close(block(*given, **options), expected)


class Decorated(Block):
    @torch.no_grad()
    def forward(self, x, residual):
        return self.norm(x + residual)


class Closure(Block):
    def forward(self, x, residual):
        super().extra_repr()
        return self.norm(x + residual)


@pytest.mark.parametrize("cls, why", [(Decorated, "decorated"), (Closure, "super()")])
def test_forwards_that_cannot_be_rewritten(cls: type[Block], why: str) -> None:
    report = weft.optimize(cls())
    assert not fused(report)
    assert [entry for entry in report.skipped if entry.path == "" and why in entry.why_not]
