"""The modules, and the names that other libraries have for them and their functions."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import weft

from .torch_cases import CHANNELS, ROWS, inputs, rows

MODULES: list[tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = [
    (lambda: weft.nn.LayerNorm(CHANNELS), lambda: nn.LayerNorm(CHANNELS)),
    (lambda: weft.nn.LayerNorm(CHANNELS, bias=False), lambda: nn.LayerNorm(CHANNELS, bias=False)),
    (
        lambda: weft.nn.LayerNorm([5, CHANNELS], 1e-3, dtype=torch.float64),
        lambda: nn.LayerNorm([5, CHANNELS], 1e-3, dtype=torch.float64),
    ),
    (
        lambda: weft.nn.LayerNorm(CHANNELS, elementwise_affine=False),
        lambda: nn.LayerNorm(CHANNELS, elementwise_affine=False),
    ),
    (lambda: weft.nn.RMSNorm(CHANNELS), lambda: nn.RMSNorm(CHANNELS)),
    (lambda: weft.nn.RMSNorm((5, CHANNELS), 1e-3), lambda: nn.RMSNorm((5, CHANNELS), 1e-3)),
    (lambda: weft.nn.FusedLayerNorm(CHANNELS), lambda: nn.LayerNorm(CHANNELS)),
    (lambda: weft.nn.FusedRMSNorm(CHANNELS), lambda: nn.RMSNorm(CHANNELS, 1e-5)),
    (lambda: weft.nn.MixedFusedLayerNorm(CHANNELS), lambda: nn.LayerNorm(CHANNELS)),
    (lambda: weft.nn.MixedFusedRMSNorm(CHANNELS), lambda: nn.RMSNorm(CHANNELS, 1e-5)),
    (lambda: weft.nn.DropoutAddLayerNorm(CHANNELS), lambda: nn.LayerNorm(CHANNELS)),
    (lambda: weft.nn.DropoutAddRMSNorm(CHANNELS), lambda: nn.RMSNorm(CHANNELS, 1e-5)),
]


@pytest.mark.parametrize("ours, theirs", MODULES, ids=[str(ours()) for ours, _ in MODULES])
def test_modules_take_and_give_torch_checkpoints(ours, theirs):
    ours, theirs = ours(), theirs()
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    dtype = next((p.dtype for p in theirs.parameters()), torch.float32)
    x = rows(dtype=dtype)
    assert_close(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict(), strict=True)

    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is type(ours)
        assert str(copied) == str(ours)
        assert_close(copied(x), ours(x))
    assert all(p.is_meta for p in ours.to("meta").parameters())


def test_modules_subclass_torch():
    assert issubclass(weft.nn.LayerNorm, nn.LayerNorm)
    assert issubclass(weft.nn.RMSNorm, nn.RMSNorm)


def test_zero_centered_modules_start_as_the_identity_weight():
    x = rows()
    for ours, theirs in ((weft.nn.LayerNorm, nn.LayerNorm), (weft.nn.RMSNorm, nn.RMSNorm)):
        module = ours(CHANNELS, zero_centered_weight=True)
        assert not module.weight.any()
        assert "zero_centered_weight=True" in str(module)
        assert_close(module(x), theirs(CHANNELS)(x))


def test_torch_instances_become_weft_by_their_class():
    module = nn.RMSNorm(CHANNELS)
    module.__class__ = weft.nn.RMSNorm
    assert_close(module(rows() * 0 + 1), torch.ones(*ROWS, CHANNELS))


def test_mixed_modules_return_the_parameters_dtype():
    x = rows(dtype=torch.bfloat16, grad=True)
    assert weft.nn.FusedLayerNorm(CHANNELS)(x).dtype == torch.bfloat16
    for module in (weft.nn.MixedFusedLayerNorm(CHANNELS), weft.nn.MixedFusedRMSNorm(CHANNELS)):
        y = module(x)
        assert y.dtype == torch.float32
        y.sin().sum().backward()
        assert x.grad.dtype == torch.bfloat16 and module.weight.grad.dtype == torch.float32
        x.grad = None
    with pytest.warns(UserWarning, match="elementwise_affine"):
        weft.nn.MixedFusedRMSNorm(CHANNELS, elementwise_affine=True)
    with (
        pytest.raises(RuntimeError, match="elementwise_affine"),
        warnings.catch_warnings(action="ignore"),
    ):
        weft.nn.MixedFusedLayerNorm(CHANNELS, elementwise_affine=False)


def test_compat_names():
    from weft.compat import vllm
    from weft.compat.apex.normalization import fused_layer_norm as apex
    from weft.compat.flash_attn.ops import layer_norm as fa_layer_norm
    from weft.compat.flash_attn.ops import rms_norm as fa_rms_norm
    from weft.compat.flash_attn.ops.triton import layer_norm as fa_triton

    x, w, b = inputs(grad=False)
    expected, expected_rms = (
        F.layer_norm(x, (CHANNELS,), w, b, 1e-5),
        F.rms_norm(x, (CHANNELS,), w, 1e-5),
    )
    assert_close(apex.fused_layer_norm_affine(x, w, b, CHANNELS, 1e-5), expected)
    assert_close(apex.fused_rms_norm_affine(x, w, (CHANNELS,), 1e-5, True), expected_rms)
    assert_close(apex.manual_rms_norm(x, (CHANNELS,), w, 1e-5), expected_rms)
    assert apex.manual_rms_norm(x.bfloat16(), (CHANNELS,), None, 1e-5).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert apex.mixed_dtype_fused_layer_norm_affine(x, w, b, CHANNELS).dtype == torch.bfloat16

    assert_close(fa_layer_norm.layer_norm(x, w, b, 1e-5), expected)
    assert_close(fa_rms_norm.RMSNorm(CHANNELS)(x), F.rms_norm(x, (CHANNELS,), eps=1e-5))
    assert_close(fa_triton.rms_norm_fn(x, w, None, eps=1e-5), expected_rms)
    module = fa_triton.RMSNorm(CHANNELS, dropout_p=0.5, zero_centered_weight=True).eval()
    assert_close(module(x), F.rms_norm(x, (CHANNELS,), eps=1e-5))
    y, z, mask = fa_rms_norm.dropout_add_rms_norm(
        x, None, w, None, 0.0, 1e-5, prenorm=True, return_dropout_mask=True
    )
    assert z is x and mask.dtype == torch.uint8 and mask.all()
    y, y1, mask, mask1 = fa_layer_norm.dropout_add_layer_norm_parallel_residual(
        x, x, None, w, b, None, None, 0.5, 1e-5, return_dropout_mask=True
    )
    assert y1 is None and not torch.equal(mask, mask1)

    out = torch.empty_like(x)
    vllm.rms_norm(out, x, w, 1e-5)
    assert_close(out, expected_rms)
    residual = rows()
    total = x + residual
    vllm.fused_add_rms_norm(x, residual, w, 1e-5)
    assert_close(residual, total)
    assert_close(x, F.rms_norm(total, (CHANNELS,), w, 1e-5))
