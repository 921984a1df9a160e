"""What the Python functions return, write to and refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import weft

from .torch_cases import CHANNELS, RNG, each_pair, inputs, rows


def test_results_of_layer_norm_fn():
    x, w, b = inputs(grad=False)
    assert isinstance(weft.layer_norm_fn(x, w, b), Tensor)
    _, z = weft.layer_norm_fn(x, w, b, prenorm=True)
    assert z is x
    _, z = weft.layer_norm_fn(x.bfloat16(), w, b, prenorm=True, residual_in_fp32=True)
    assert z.dtype == torch.float32
    _, z = weft.layer_norm_fn(x, w, b, x.bfloat16(), prenorm=True, residual_in_fp32=True)
    assert z.dtype == torch.bfloat16
    y, mask, mask1 = weft.layer_norm_fn(x, w, b, return_dropout_mask=True)
    assert mask is None and mask1 is None
    results = weft.layer_norm_fn(
        x,
        w,
        b,
        x,
        x1=x,
        weight1=w,
        dropout_p=0.5,
        prenorm=True,
        return_dropout_mask=True,
        rng_state=RNG,
    )
    assert [t.dtype for t in results] == [torch.float32] * 3 + [torch.bool] * 2
    for stream, mask in enumerate(results[3:]):
        assert torch.equal(mask, weft.dropout_mask(RNG, x.shape, 0.5, stream))


def test_out_of_layer_norm_fn():
    x, w, b = inputs(grad=False)
    options = {"residual": x.cos(), "dropout_p": 0.5, "rng_state": RNG, "prenorm": True}
    options["return_dropout_mask"] = True
    expected = weft.layer_norm_fn(x, w, b, **options)
    out, residual_out = torch.empty_like(x), torch.empty_like(x)
    results = weft.layer_norm_fn(x, w, b, out=out, residual_out=residual_out, **options)
    assert results[0] is out and results[1] is residual_out
    assert_close(results, expected)
    assert_close(weft.layer_norm_fn(x, w, b, out=torch.empty_like(x), **options), expected)
    assert weft.layer_norm_fn(x, w, b, prenorm=True, out=out)[1] is x
    with pytest.raises(NotImplementedError, match="weight1"):
        weft.layer_norm_fn(x, w, b, weight1=w, out=out)


@each_pair
def test_shapes_are_checked(ours, theirs):
    x = rows()
    assert_close(ours(x, [CHANNELS]), ours(x, torch.Size([CHANNELS])))
    with pytest.raises(TypeError, match="expected a tuple or list of ints"):
        ours(x, CHANNELS)
    with pytest.raises(TypeError, match="expected ints"):
        ours(x, (float("nan"),))
    for shape in ((CHANNELS + 1,), (), (1, *x.shape)):
        with pytest.raises(ValueError, match="expected the last dimensions of input"):
            ours(x, shape)
