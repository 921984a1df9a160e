"""Smoothing: the formulas, the search, who reads what, and norms that take a part."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import weft
from weft.integrations.folding import fold, is_foldable
from weft.quantization import AdaptiveSmoothQuant
from weft.quantization.calibration import ROWS, ChannelStatistics, batches, evaluating, trace, watch
from weft.quantization.smoothing import fake_quantize, pieces_of, search, smooth_scales

from .models import Block, C, PostNorm


def test_smooth_scales():
    x, w = torch.tensor([4.0, 0.0, 1e-9, 2.0]), torch.tensor([1.0, 1.0, 4.0, 0.0])
    s = smooth_scales(x, w, 0.5)
    assert_close(s, torch.tensor([2.0, 1.0, 1.5811e-5, (2 / 1e-5) ** 0.5]), rtol=1e-4, atol=0)
    assert_close(smooth_scales(x, w, 1.0)[:2], torch.tensor([4.0, 1.0]))


def test_pieces_are_runs_of_sorted_values():
    values = torch.tensor([0.1, 50.0, 0.2, 9.0, 0.15, 10.0])
    found = [values[mask].tolist() for mask in pieces_of(values, 3)]
    assert found == [pytest.approx([0.1, 0.2, 0.15]), [9.0, 10.0], [50.0]]
    assert len(pieces_of(torch.ones(5), 3)) == 1
    masks = torch.stack(pieces_of(torch.rand(100), 4))
    assert (masks.sum(0) == 1).all()


def error(x: torch.Tensor, weight: torch.Tensor, s: torch.Tensor, activation: str) -> float:
    y = F.linear(fake_quantize(x / s, activation), fake_quantize(weight * s, "token"))
    return F.mse_loss(y, F.linear(x, weight)).item()


@pytest.mark.parametrize("activation", ["tensor", "average", "token"])
def test_search_beats_every_single_alpha(activation):
    x, weight = torch.randn(64, C), torch.randn(32, C) / C**0.5
    x[:, :3] *= 60.0
    x[:, 3:9] *= 8.0
    x_max, w_max = x.abs().amax(0), weight.abs().amax(0)
    one = search(x, weight, x_max, AdaptiveSmoothQuant(1), activation)
    three = search(x, weight, x_max, AdaptiveSmoothQuant(3, search_pieces=False), activation)
    tried = search(x, weight, x_max, AdaptiveSmoothQuant(3), activation)
    clipped = search(x, weight, x_max, AdaptiveSmoothQuant(clip=True, scales=None), activation)
    formula = [
        error(x, weight, smooth_scales(x_max, w_max, i / 100), activation) for i in range(21, 80)
    ]
    plain = error(x, weight, torch.ones(C), activation)
    errors = [error(x, weight, s, activation) for s in (one, three, tried)]
    assert errors[0] <= min(*formula, plain) * (1 + 1e-6)
    assert errors[2] <= min(errors) * (1 + 1e-6)
    assert errors[1] < 0.5 * plain
    assert (clipped >= 1).all() and error(x, weight, clipped, activation) <= plain


# ---------------------------------------------------------------------------------- who reads what


def groups_of(model: nn.Module, x: torch.Tensor) -> dict[tuple[str, ...], str | None]:
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    norms = {n: m for n, m in model.named_modules() if "Norm" in type(m).__name__}
    with evaluating(model):
        found = trace(model, lambda: model(x), linears, norms)
    assert all(group.inputs == group.linears[:1] for group in found)
    return {tuple(group.linears): group.norm for group in found}


def test_trace_finds_norms_and_their_readers():
    x = torch.randn(2, 5, C)
    qkv = ("attention.q", "attention.k", "attention.v")
    rest = {("attention.o",): None, ("down",): None}
    assert groups_of(Block(), x) == {qkv: "norm1", ("up",): "norm2"} | rest
    assert groups_of(PostNorm(), x) == {qkv: None, ("up",): None} | rest


@pytest.mark.parametrize(
    "reads",
    [
        lambda self, n: self.a(n) + n,
        lambda self, n: self.a(n) + n.mean(),
        lambda self, n: (self.a(n), n),
        lambda self, n: self.a(n.add_(1)),
        lambda self, n: self.a(n[..., :24]),
        lambda self, n: self.b(n) + self.b(n * 2),
        lambda self, n: self.b(n) + F.linear(n, self.b.weight),
        lambda self, n: self.b(n.mT.contiguous().mT),
    ],
)
def test_trace_sees_other_readers(reads):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(C), nn.Linear(C, C), nn.Linear(C, C)
            if "24" in str(reads.__code__.co_consts):
                self.a = nn.Linear(24, C)

        def forward(self, x):
            return reads(self, self.norm(x))

    assert set(groups_of(Model(), torch.randn(2, 5, C)).values()) == {None}


def test_trace_follows_views_and_repeated_calls():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(C), nn.Linear(C, C), nn.Linear(C, C)

        def forward(self, x):
            for _ in range(2):
                n = self.norm(x)
                x = self.a(n.view(10, C)).view_as(x) + self.b(n[:, :1])
            return x

    model = Model()
    linears = {"a": model.a, "b": model.b}
    (group,) = trace(model, lambda: model(torch.randn(2, 5, C)), linears, {"norm": model.norm})
    assert (group.linears, group.inputs, group.norm) == (["a", "b"], ["a", "b"], "norm")


def test_batches():
    model = nn.Linear(3, 3)
    seen = []
    x = torch.randn(2, 3)
    for calibration in ([x, (x,), {"input": x}], (b for b in [x]), lambda m: m(x)):
        runs = batches(model, calibration)
        for _ in range(2):
            with watch({"": model}, lambda path, x: seen.append(x)):
                for run in runs():
                    run()
    assert len(seen) == 2 * 5 and all(s is x for s in seen)
    assert not model._forward_pre_hooks


def test_evaluating_restores_modes():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(model):
        assert not model.training and not model[0].training
        assert not torch.is_grad_enabled()
    assert model.training and model[0].training and not model[1].training


def test_sample_holds_all_of_few_rows():
    statistics = ChannelStatistics(None)
    x = torch.randn(3, 4, C)
    statistics.observe(x)
    assert_close(statistics.sample, x.flatten(0, 1))
    assert ROWS > 12


# ----------------------------------------------------------------------------------------- folding


def zero_centred() -> nn.Module:
    return weft.nn.RMSNorm(C, zero_centered_weight=True)


NORMS = [
    lambda: nn.LayerNorm(C), lambda: nn.LayerNorm(C, bias=False), lambda: nn.RMSNorm(C),
    lambda: weft.nn.LayerNorm(C), zero_centred,
]  # fmt: skip


@pytest.mark.parametrize("make", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fold(make, dtype):
    norm = make().to(dtype)
    for p in norm.parameters():
        nn.init.normal_(p)
    assert is_foldable(norm, {id(p): 1 for p in norm.parameters()})
    shift, smooth = torch.randn(C), torch.rand(C) * 10 + 0.1
    x = torch.randn(64, C, dtype=dtype)
    before = norm(x).float()
    rest, divided = fold(norm, shift, smooth)
    has_bias = getattr(norm, "bias", None) is not None
    assert (rest is None) == has_bias
    after = norm(x).float() - (0 if rest is None else rest)
    bound = 4 * torch.finfo(dtype).eps
    scale = (before.abs() + shift.abs()) / smooth
    assert (((before - shift) / divided - after).abs() <= bound * (1 + scale.amax(0))).all()
    factor = norm.weight.float() + (1 if make is zero_centred else 0)  # after the division
    assert (factor * (divided / smooth - 1)).abs().max() <= bound * (1 + factor.abs().max())


def test_what_cannot_be_folded():
    weight = nn.LayerNorm(C).weight
    assert not is_foldable(nn.LayerNorm(C, elementwise_affine=False), {})
    shared = nn.RMSNorm(C)
    assert not is_foldable(shared, {id(shared.weight): 2})
    assert not is_foldable(nn.GroupNorm(4, C), {id(weight): 1})
    assert not is_foldable(nn.Linear(C, C), {})
