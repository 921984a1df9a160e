"""Packed weights: what they hold, and what is refused on a host and for GPUs."""

from __future__ import annotations

import pytest
import torch

import weft
from backends import Backend
from weft.ops import int8 as ops

from .cases import draw, integers, packed, scales


@pytest.fixture
def checked(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a host refuses at once, a GPU refuses in this mode."""
    if not backend.name.startswith("cpu"):
        monkeypatch.setenv("WEFT_CHECK", "1")


@pytest.mark.parametrize("N, K", [(70, 34), (71, 33)])
def test_another_shape_of_the_same_length(backend: Backend, checked: None, N: int, K: int):
    ready, x, scale = packed(integers(70, 33)), draw(5, K), scales(N)
    assert ready.shape == packed(integers(N, K)).shape
    message = rf"packed holds a \[70, 33\] weight of 8 bits, expected \[{N}, {K}\] of 8"
    for op in (weft.int8_linear, weft.weight_only_linear, weft.llm_int8_linear):
        with pytest.raises(RuntimeError, match=message):
            op(x, ready, scale)
        with pytest.raises(RuntimeError, match=message):
            op(x, ready.clone(), scale)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.weft.int8_unpack(ready, N, K, 8)


def test_a_shape_is_remembered_where_no_header_is_read(backend: Backend):
    ready, scale = packed(integers(70, 33)), scales(70)
    ops._remember(ready, 70, 33, 8)  # as it is on a GPU
    weft.int8_linear(draw(5, 33), ready, scale)
    with pytest.raises(RuntimeError, match=r"int8_linear: packed holds a \[70, 33\] weight of 8"):
        weft.int8_linear(draw(5, 34), ready, scale)
    nibbles = packed(integers(70, 33, bits=4), 4)
    ops._remember(nibbles, 70, 33, 4)
    weft.weight_only_linear(draw(5, 33), nibbles, scale, bits=4)
    with pytest.raises(RuntimeError, match=r"weight of 4 bits, expected \[70, 34\] of 4"):
        weft.weight_only_linear(draw(5, 34), nibbles, scale, bits=4)
    keys = id(ready), id(nibbles)
    assert set(keys) <= set(ops._held)
    del ready, nibbles
    assert not set(keys) & set(ops._held)


def test_no_packed_weight(backend: Backend, checked: None):
    for position, message in (
        (0, "packed is no packed weight"),
        (4, "packed has version .*: pack the"),
    ):
        other = packed(integers(70, 33))
        other[position] = 9
        with pytest.raises(RuntimeError, match=message):
            weft.int8_linear(draw(5, 33), other, scales(70))


def test_zero_points_beyond_8_bits(backend: Backend, checked: None):
    points = torch.tensor([0, 0, 0, 0, -129], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="x_zero_point holds -129, expected -128 to 127"):
        weft.int8_linear(
            integers(5, 33), packed(integers(70, 33)), scales(70),
            x_scale=torch.ones(5), x_zero_point=points,
        )  # fmt: skip
    with pytest.raises(RuntimeError, match="zero_point holds 128, expected -128 to 127"):
        weft.quantize_int8(
            draw(5, 33), torch.tensor(1.0), torch.tensor(128).int(), granularity="tensor"
        )


def test_beyond_4_bits_in_a_graph(backend: Backend):
    """A CPU refuses when the graph runs; a GPU, which can refuse nothing, takes the nearest."""
    weight = integers(5, 40)
    weight[0, :4] = torch.tensor([-128, -9, 8, 127])
    graph = torch.compile(
        lambda w: weft.pack_int8_weight(w, bits=4), backend="aot_eager", fullgraph=True
    )
    if backend.name.startswith("cpu"):
        with pytest.raises(RuntimeError, match=r"values that are not of 4 bits, expected -8 to 7"):
            graph(weight)
    else:
        assert torch.equal(weft.unpack_int8_weight(graph(weight)), weight.clamp(-8, 7))
