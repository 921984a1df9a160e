"""Any shape and any option, held against the formulas."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

import weft
from weft import _C, reference

from .cases import FLOATS, assert_linear, draw, integers, packed, scales

LEVELS = [name for name, here in _C.isa_levels().items() if here]
SIZES = st.integers(1, 150)


@given(
    level=st.sampled_from(LEVELS),
    M=st.integers(0, 20),
    N=SIZES,
    K=SIZES,
    dtype=st.sampled_from(FLOATS),
    symmetric=st.booleans(),
    bias=st.booleans(),
    residual=st.booleans(),
    activation=st.sampled_from(["none", "relu", "gelu", "gelu_tanh", "silu"]),
)
def test_linear(level, M, N, K, dtype, symmetric, bias, residual, activation):
    before = _C.isa_level()
    _C.force_isa(level)
    try:
        x, weight, scale = draw(M, K, dtype=dtype), integers(N, K), scales(N)
        b = draw(N, dtype=dtype) if bias else None
        r = draw(M, N, dtype=dtype) if residual else None
        options = {"symmetric": symmetric, "activation": activation, "residual": r}
        y = weft.int8_linear(x, packed(weight), scale, b, **options)
        q = weft.quantize_int8(x, symmetric=symmetric)
    finally:
        _C.force_isa(before)
    assert y.shape == (M, N) and y.dtype == dtype
    if M == 0:
        return
    point = 0 if q.zero_point is None else q.zero_point
    x8 = reference.int8.dequantize(q.values.double(), q.scale.double(), point)
    assert_linear(y, x8, reference.int8.weight(weight, scale.double()), b, activation, r)


@given(
    level=st.sampled_from(LEVELS),
    M=st.integers(1, 9),
    N=SIZES,
    groups=st.integers(1, 5),
    group=st.sampled_from([8, 16, 24, 32]),
    bits=st.sampled_from([8, 4]),
)
def test_sums_of_groups(level, M, N, groups, group, bits):
    """Groups of every size, beside one x that is far larger than the rest."""
    before = _C.isa_level()
    _C.force_isa(level)
    try:
        K = groups * group
        weight = integers(N, K, bits=bits)
        x = torch.randint(-100, 101, (M, K)).bfloat16()
        x[:, 0] = 5000
        scale = 2.0 ** torch.randint(-3, 4, (N, groups))
        y = weft.weight_only_linear(x, packed(weight, bits), scale, bits=bits)
    finally:
        _C.force_isa(before)
    w = reference.int8.weight(weight, scale.double())
    assert_linear(y, x, w, rounding=2**-16)
