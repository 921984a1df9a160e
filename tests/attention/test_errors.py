"""What the raw ops refuse, and in which words: all that could touch foreign memory, the values of
index tensors included."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from backends import Backend

FLOATS = "expected float32, bfloat16, float16 or float64"  # the backend's own
INDICES = re.compile(r" (at|for|gives) sequence \d|^offset is 2, ")
"""What refusals of the values of index tensors say; a GPU's are not looked into."""
STATE = torch.tensor([1, 2])
B, S, T, H, K, D, DV = 2, 3, 5, 4, 2, 8, 6
PAGES, PAGE = 4, 3


class Make:
    """Arguments on the backend's device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=self.device)

    def ints(self, *values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def int8(self, *shape: int) -> Tensor:
        return self(*shape, dtype=torch.int8)


Change = Callable[[Make], dict[str, Any]]


@pytest.fixture
def make(backend: Backend) -> Make:
    return Make(backend.device)


def refuses(message: str) -> Any:
    """The message, word for word, from its start."""
    return pytest.raises(RuntimeError, match="^" + re.escape(message))


def raw(op: str, **given: Any) -> Any:
    """The op with `given`, and for all other arguments what asks for nothing."""
    function = getattr(torch.ops.weft, op).default
    neutral = {"bool": False, "int": 0, "float": 0.0}
    specials = {"window_left": -1, "window_right": -1, "softmax_scale": 1.0}
    call = {}
    for argument in function._schema.arguments:
        otherwise = specials.get(argument.name, neutral.get(str(argument.type)))
        call[argument.name] = given.get(argument.name, otherwise)
    return function(**call)


def dense(m: Make) -> dict[str, Any]:
    return {"q": m(B, S, H, D), "k": m(B, T, K, D), "v": m(B, T, K, DV)}


def packed(m: Make, **change: Any) -> dict[str, Any]:
    """Sequences of 2 and 3 queries, of 4 and 1 keys."""
    return {
        "q": m(5, H, D), "cu_seqlens_q": m.ints(0, 2, 5), "max_seqlen_q": 3,
        "k": m(5, K, D), "v": m(5, K, DV), "cu_seqlens_k": m.ints(0, 4, 5), "max_seqlen_k": 4,
    } | change  # fmt: skip


def paged(m: Make, **change: Any) -> dict[str, Any]:
    return {
        "k": m(PAGES, PAGE, K, D), "v": m(PAGES, PAGE, K, DV), "seqused_k": m.ints(5, 1),
        "block_table": m.ints([3, 0], [1, -1]),
    } | change  # fmt: skip


def int8_cache(m: Make, **change: Any) -> dict[str, Any]:
    cache = {"k": m.int8(B, T, K, D), "v": m.int8(B, T, K, DV)}
    return cache | {"k_scale": m(K), "v_scale": m(B, T, K)} | change


def good_arguments(op: str, m: Make) -> dict[str, Any]:
    if op in ("attention", "attention_forward"):
        return dense(m)
    if op == "attention_backward":
        out = {"out": m(B, S, H, DV), "dout": m(B, S, H, DV), "lse": m(B, H, S)}
        return dense(m) | out
    if op == "kv_cache_append_":
        new = {"k": m(B, S, K, D), "v": m(B, S, K, DV)}
        return new | {"k_cache": m(B, T, K, D), "v_cache": m(B, T, K, DV)}
    if op == "merge_attention_states":
        return {"parts": m(3, B, S, H, DV), "lses": m(3, B, H, S)}
    return {"x": m(B, S, H, D), "cos": m(T, 3), "sin": m(T, 3)}


# Good calls of another kind than good_arguments; what follows departs from them.
GOOD: list[tuple[str, Change]] = [
    ("attention_forward", packed),
    ("attention_forward", paged),
    ("attention_forward", int8_cache),
    ("attention_forward", lambda m: packed(m, **paged(m), cu_seqlens_k=None, max_seqlen_k=6)),
    ("attention_forward", lambda m: {"k": m(7, T, K, D), "v": m(7, T, K, DV),
                                     "cache_batch_idx": m.ints(6, 0)}),
    ("attention_forward", lambda m: {"seqused_k": m.ints(5, 2), "leftpad_k": m.ints(5, 0)}),
    ("attention_forward", lambda m: {"k_scale": None, "q": m(B, S, H, D)[:, :, ::2],
                                     "mask": m(1, 1, 1, T).bool().expand(B, 2, S, T)}),
    ("attention", lambda m: {"q": m(B, S, H, D)[..., ::2], "k": m(B, T, K, D)[..., ::2]}),
    ("attention", lambda m: {"q": m(B, H, S, D), "k": m(B, K, T, D), "v": m(B, K, T, DV),
                             "heads_first": True}),
    ("attention_backward", lambda m: {
        **packed(m), "out": m(5, H, DV), "dout": m(5, H, DV), "lse": m(H, 5), "dlse": m(H, 5)}),
    ("attention_backward", lambda m: {"bias": m(B, H, S, T), "bias_grad": True, "sinks": m(H),
                                      "sinks_grad": True}),
    ("kv_cache_append_", lambda m: {"seqused_k": m.ints(2, 0), "cache_batch_idx": m.ints(1, 0)}),
    ("kv_cache_append_", lambda m: {"k": m(5, K, D), "v": m(5, K, DV),
                                    "cu_seqlens_new": m.ints(0, 0, 5)}),
    ("rotary", lambda m: {"offsets": m.ints(2, 0)}),
    ("rotary_", lambda m: {"x": m(5, H, D), "cu_seqlens": m.ints(0, 1, 5), "offset": 1}),
    ("merge_attention_states", lambda m: {"parts": m(1, 5, H, DV), "lses": m(1, H, 5)}),
]  # fmt: skip


@pytest.mark.parametrize("op, change", GOOD, ids=[f"{op}-{i}" for i, (op, _) in enumerate(GOOD)])
def test_taken(make: Make, op: str, change: Change) -> None:
    """That they are taken shows that the refusals below are for the one thing that differs."""
    arguments = good_arguments(op, make) | change(make)
    results = raw(op, **arguments)
    tensors = [*arguments.values(), *(results if isinstance(results, tuple) else [results])]
    assert not any(t.isnan().any() for t in tensors if isinstance(t, Tensor))


FORWARD: list[tuple[Change, str]] = [
    # dtypes
    (lambda m: {"q": m.int8(B, S, H, D)}, f"q has dtype int8, {FLOATS}"),
    (lambda m: {"q": m(B, S, H, D).cfloat()}, f"q has dtype another dtype, {FLOATS}"),
    (lambda m: {"k": m(B, T, K, D).half()},
     "k has dtype float16, expected float32 (that of q) or int8"),
    (lambda m: {"v": m(B, T, K, DV).half()}, "v has dtype float16, expected float32 (that of k)"),
    (lambda m: int8_cache(m, v=m(B, T, K, DV)),
     "v has dtype float32, expected int8 (that of k)"),
    # shapes
    (lambda m: {"q": m(S, H, D)}, "q has shape [3, 4, 8], expected [B, S, H, D]"),
    (lambda m: {"k": m(T, K, D)}, "k has shape [5, 2, 8], expected [B, T, K, D]"),
    (lambda m: packed(m, q=m(B, S, H, D)), "q has shape [2, 3, 4, 8], expected [total_q, H, D]"),
    (lambda m: packed(m, k=m(B, T, K, D)), "k has shape [2, 5, 2, 8], expected [total_k, K, D]"),
    (lambda m: paged(m, k=m(PAGES, K, D)),
     "k has shape [4, 2, 8], expected [pages, page_size, K, D]"),
    (lambda m: {"k": m(B, T, K, 7)},
     "k has shape [2, 5, 2, 7], expected a last dimension of 8 (that of q)"),
    (lambda m: {"k": m(3, T, K, D), "v": m(3, T, K, DV)},
     "k has shape [3, 5, 2, 8], expected a first dimension of 2 (the batch)"),
    (lambda m: {"v": m(B, 4, K, DV)},
     "v has shape [2, 4, 2, 6], expected [2, 5, 2, 6] (that of k, but for the last dimension)"),
    (lambda m: {"v": m()},
     "v has shape [], expected [2, 5, 2, 0] (that of k, but for the last dimension)"),
    (lambda m: {"q": m(B, S, H, 513), "k": m(B, T, K, 513)},
     "the last dimension of q is 513, expected 1 to 512"),
    (lambda m: {"q": m(B, S, H, 0), "k": m(B, T, K, 0)},
     "the last dimension of q is 0, expected 1 to 512"),
    (lambda m: {"v": m(B, T, K, 600)}, "the last dimension of v is 600, expected 1 to 512"),
    (lambda m: {"q": m(B, S, 3, D)}, "q has 3 heads, expected a multiple of k's 2"),
    (lambda m: {"q": m(B, S, 0, D)}, "q has 0 heads, expected a multiple of k's 2"),
    (lambda m: {"k": m(B, T, 0, D), "v": m(B, T, 0, DV)},
     "q has 4 heads, expected a multiple of k's 0"),
    # strides
    (lambda m: {"q": m(B, S, H, 2 * D)[..., ::2]}, "q has stride 2 in its last dimension"),
    (lambda m: {"k": m(B, T, K, 1).expand(B, T, K, D)},
     "k has stride 0 in its last dimension, expected 1"),
    (lambda m: {"v": m(B, T, DV, K).mT}, "v has stride 2 in its last dimension, expected 1"),
    # options
    (lambda m: {"softcap": -1.0}, "softcap is -1, expected at least 0 (0: none)"),
    (lambda m: {"softcap": float("nan")}, "softcap is nan, expected at least 0 (0: none)"),
    (lambda m: {"window_left": -2}, "window_left is -2, expected at least -1 (-1: unbounded)"),
    (lambda m: {"window_right": -3}, "window_right is -3, expected at least -1 (-1: unbounded)"),
    (lambda m: {"num_splits": -1}, "num_splits is -1, expected at least 0"),
    (lambda m: {"dropout_p": 0.5}, "dropout needs rng_state"),
    (lambda m: {"dropout_p": 1.5, "rng_state": STATE},
     "dropout_p is 1.5, expected a probability from 0 to 1"),
    (lambda m: {"dropout_p": 0.5, "rng_state": STATE.int()},
     "rng_state is int32 [2], expected contiguous int64 [2] (seed, offset)"),
    (lambda m: {"bias": m(H, S, T)},
     "bias has shape [4, 3, 5], expected [2, 4, 3, 5] (B, H, S, T)"),
    (lambda m: {"bias": m(1, H, S, T)},
     "bias has shape [1, 4, 3, 5], expected [2, 4, 3, 5] (B, H, S, T)"),
    (lambda m: {"bias": m(B, H, S, T).bool()}, f"bias has dtype bool, {FLOATS}"),
    (lambda m: {"mask": m(B, H, S, T)},
     "mask is float32 [2, 4, 3, 5], expected bool [2, 4, 3, 5] (B, H, S, T)"),
    (lambda m: {"mask": m(B, 1, S, T).bool()},
     "mask is bool [2, 1, 3, 5], expected bool [2, 4, 3, 5] (B, H, S, T)"),
    (lambda m: packed(m, mask=m(B, H, 3, 5).bool()),
     "mask is bool [2, 4, 3, 5], expected bool [2, 4, 3, 4] (B, H, S, T)"),
    (lambda m: {"alibi_slopes": m(K)}, "alibi_slopes is float32 [2], expected float32 [4] (H)"),
    (lambda m: {"alibi_slopes": m(1, H)},
     "alibi_slopes is float32 [1, 4], expected float32 [2, 4] (B, H)"),
    (lambda m: {"alibi_slopes": m(H).double()},
     "alibi_slopes is float64 [4], expected float32 [4] (H)"),
    (lambda m: {"sinks": m(1)}, "sinks is float32 [1], expected float32 [4] (H)"),
    (lambda m: {"sinks": m(H).half()}, "sinks is float16 [4], expected float32 [4] (H)"),
    # the int8 end
    (lambda m: {"out_smooth": m(H, DV)}, "out_shift and out_smooth need out_scale"),
    (lambda m: {"out_scale": m(2)}, "out_scale has shape [2], expected one element"),
    (lambda m: {"out_scale": m(1).double()},
     "out_scale is float64 [1], expected float32 [1] (one element)"),
    (lambda m: {"out_scale": m(1), "out_shift": m(DV)},
     "out_shift is float32 [6], expected float32 [4, 6] (H, Dv)"),
    (lambda m: {"out_scale": m(1), "out_smooth": m(DV, H).mT},
     "out_smooth is not contiguous"),
    # int8 keys and values
    (lambda m: int8_cache(m, k_scale=None),
     "k_scale is missing, expected float32 scales, as k is int8"),
    (lambda m: {"v_scale": m(K)}, "v_scale is given, but v is float32"),
    (lambda m: int8_cache(m, k_scale=m(H)), "k_scale is float32 [4], expected float32 [2] (by "
     "head) or [2, 5, 2] (by row and head)"),
    (lambda m: int8_cache(m, v_scale=m(B, T, K).half()), "v_scale is float16 [2, 5, 2], expected "
     "float32 [2] (by head) or [2, 5, 2] (by row and head)"),
    (lambda m: int8_cache(m, k_scale=m(B, 1, K).expand(B, T, K)),
     "k_scale repeats elements in memory, expected scales of its own for each row"),
    # where the keys lie
    (lambda m: packed(m, cache_batch_idx=m.ints(0, 1)),
     "cu_seqlens_k is for packed keys, block_table and cache_batch_idx for a cache"),
    (lambda m: packed(m, block_table=m.ints([0], [1])),
     "cu_seqlens_k is for packed keys, block_table and cache_batch_idx for a cache"),
    (lambda m: paged(m, cache_batch_idx=m.ints(0, 1)),
     "block_table and cache_batch_idx both say where the keys lie, expected one of them"),
    (lambda m: paged(m, seqused_k=None), "block_table needs seqused_k"),
    (lambda m: paged(m, block_table=m.ints(3, 1)),
     "block_table has shape [2], expected [B, pages of a sequence]"),
    (lambda m: paged(m, block_table=m.ints([3, 1])),
     "block_table is int32 [1, 2], expected int32 [2, 2] (B, pages of a sequence)"),
    (lambda m: paged(m, block_table=m.ints([3, 0], [1, 0]).mT), "block_table is not contiguous"),
    (lambda m: paged(m, k=m(PAGES, 0, K, D), v=m(PAGES, 0, K, DV)),
     "k has shape [4, 0, 2, 8], expected pages of at least one row"),
    # index tensors
    (lambda m: packed(m, cu_seqlens_q=m.ints(0, 2, 5).long()),
     "cu_seqlens_q is int64 [3], expected int32 [3] (B + 1)"),
    (lambda m: packed(m, cu_seqlens_q=m.ints([0, 2, 5])),
     "cu_seqlens_q has shape [1, 3], expected [B + 1]"),
    (lambda m: packed(m, cu_seqlens_q=m.ints()),
     "cu_seqlens_q has shape [0], expected [B + 1]"),
    (lambda m: packed(m, cu_seqlens_k=m.ints(0, 5)),
     "cu_seqlens_k is int32 [2], expected int32 [3] (B + 1)"),
    (lambda m: packed(m, cu_seqlens_q=m.ints(0, 9, 2, 9, 5)[::2]),
     "cu_seqlens_q is not contiguous"),
    (lambda m: {"seqused_q": m.ints(1)}, "seqused_q is int32 [1], expected int32 [2] (B)"),
    (lambda m: {"seqused_k": m.ints(1, 1).short()},
     "seqused_k is another dtype [2], expected int32 [2] (B)"),
    (lambda m: {"leftpad_k": m.ints(1, 1, 1)},
     "leftpad_k is int32 [3], expected int32 [2] (B)"),
    (lambda m: {"cache_batch_idx": m.ints(0)},
     "cache_batch_idx is int32 [1], expected int32 [2] (B)"),
    (lambda m: packed(m, max_seqlen_q=-1), "max_seqlen_q is -1, expected 0 to 2147483647"),
    (lambda m: packed(m, max_seqlen_k=2**40),
     "max_seqlen_k is 1099511627776, expected 0 to 2147483647"),
    # their values
    (lambda m: packed(m, cu_seqlens_q=m.ints(0, 3, 2)), "cu_seqlens_q goes from 3 to 2 at "
     "sequence 1, expected an ascent from 0 to 5 (the rows of q)"),
    (lambda m: packed(m, cu_seqlens_q=m.ints(-1, 2, 5)), "cu_seqlens_q goes from -1 to 2 at "
     "sequence 0, expected an ascent from 0 to 5 (the rows of q)"),
    (lambda m: packed(m, cu_seqlens_k=m.ints(0, 4, 6)), "cu_seqlens_k goes from 4 to 6 at "
     "sequence 1, expected an ascent from 0 to 5 (the rows of k)"),
    (lambda m: packed(m, max_seqlen_q=2),
     "cu_seqlens_q gives sequence 1 3 rows, expected at most 2 (max_seqlen_q)"),
    (lambda m: packed(m, max_seqlen_k=0),
     "cu_seqlens_k gives sequence 0 4 rows, expected at most 0 (max_seqlen_k)"),
    (lambda m: {"seqused_q": m.ints(3, 4)},
     "seqused_q is 4 for sequence 1, expected 0 to 3 (the rows of its queries)"),
    (lambda m: packed(m, seqused_q=m.ints(-1, 3)),
     "seqused_q is -1 for sequence 0, expected 0 to 2 (the rows of its queries)"),
    (lambda m: packed(m, seqused_k=m.ints(4, 2)),
     "seqused_k is 2 for sequence 1, expected 0 to 1 (the rows of its keys)"),
    (lambda m: {"seqused_k": m.ints(6, 0)},
     "seqused_k is 6 for sequence 0, expected 0 to 5 (the rows of its keys)"),
    (lambda m: paged(m, seqused_k=m.ints(0, 7)),
     "seqused_k is 7 for sequence 1, expected 0 to 6 (the rows of its keys)"),
    (lambda m: paged(m, seqused_k=m.ints(5, 0), max_seqlen_k=4),
     "seqused_k is 5 for sequence 0, expected 0 to 4 (the rows of its keys)"),
    (lambda m: paged(m, seqused_k=m.ints(0, 7), max_seqlen_k=9),
     "seqused_k is 7 for sequence 1, expected 0 to 6 (the rows of its keys)"),
    (lambda m: {"leftpad_k": m.ints(0, 6)},
     "leftpad_k is 6 for sequence 1, expected 0 to 5 (the keys in use)"),
    (lambda m: {"leftpad_k": m.ints(-1, 0), "seqused_k": m.ints(1, 1)},
     "leftpad_k is -1 for sequence 0, expected 0 to 1 (the keys in use)"),
    (lambda m: {"cache_batch_idx": m.ints(1, 2)},
     "cache_batch_idx is 2 for sequence 1, expected 0 to 1 (the rows of the cache)"),
    (lambda m: paged(m, seqused_k=m.ints(5, 4)),
     "block_table is -1 for sequence 1, expected 0 to 3 (the pages of the cache)"),
    (lambda m: paged(m, block_table=m.ints([3, 4], [1, -1])),
     "block_table is 4 for sequence 0, expected 0 to 3 (the pages of the cache)"),
]  # fmt: skip

PLAIN: list[tuple[Change, str]] = [
    (lambda m: {"q": m.int8(B, S, H, D)}, f"q has dtype int8, {FLOATS}"),
    (lambda m: {"k": m.int8(B, T, K, D)}, "k has dtype int8, expected float32 (that of q)"),
    (lambda m: {"v": m(B, T, K, DV).half()}, "v has dtype float16, expected float32 (that of k)"),
    (lambda m: {"q": m(S, H, D)}, "q has shape [3, 4, 8], expected [B, S, H, D]"),
    (lambda m: {"q": m(S, H, D), "heads_first": True},
     "q has shape [3, 4, 8], expected [B, H, S, D]"),
    (lambda m: {"v": m(T, K, DV)}, "v has shape [5, 2, 6], expected [B, S, H, D]"),
    (lambda m: {"k": m(3, T, K, D)},
     "k has shape [3, 5, 2, 8], expected [2, 5, 2, 8] (first and last dimension those of q)"),
    (lambda m: {"k": m(B, T, K, 7)},
     "k has shape [2, 5, 2, 7], expected [2, 5, 2, 8] (first and last dimension those of q)"),
    (lambda m: {"v": m(B, 4, K, DV)},
     "v has shape [2, 4, 2, 6], expected [2, 5, 2, 6] (that of k, but for the last dimension)"),
    (lambda m: {"k": m(B, T, 3, D), "v": m(B, T, 3, DV)},
     "q has 4 heads, expected a multiple of k's 3"),
    (lambda m: {"heads_first": True}, "q has 3 heads, expected a multiple of k's 5"),
    (lambda m: {"v": m(B, T, K, 513)}, "the last dimension of v is 513, expected 1 to 512"),
    (lambda m: {"window_left": -2}, "window_left is -2, expected at least -1 (-1: unbounded)"),
    (lambda m: {"window_right": -3}, "window_right is -3, expected at least -1 (-1: unbounded)"),
]  # fmt: skip

BACKWARD: list[tuple[Change, str]] = [
    (lambda m: {"k": m.int8(B, T, K, D), "v": m.int8(B, T, K, DV)},
     "k has dtype int8, expected float32 (that of q)"),
    (lambda m: {"out": m(B, S, H, D)}, "out is float32 [2, 3, 4, 8], expected float32 [2, 3, 4, 6] "
     "(as attention_forward returned out)"),
    (lambda m: {"dout": m(B, S, H, DV).half()}, "dout is float16 [2, 3, 4, 6], expected float32 "
     "[2, 3, 4, 6] (as attention_forward returned out)"),
    (lambda m: {"lse": m(B, S, H)}, "lse is float32 [2, 3, 4], expected float32 [2, 4, 3] "
     "(as attention_forward returned lse)"),
    (lambda m: {"dlse": m(B, H, S).double()}, "dlse is float64 [2, 4, 3], expected float32 "
     "[2, 4, 3] (as attention_forward returned lse)"),
    (lambda m: {**packed(m), "out": m(5, H, DV), "dout": m(5, H, DV), "lse": m(5, H)},
     "lse is float32 [5, 4], expected float32 [4, 5] (as attention_forward returned lse)"),
    (lambda m: {"bias_grad": True}, "the gradient of bias needs bias"),
    (lambda m: {"sinks_grad": True}, "the gradient of sinks needs sinks"),
    (lambda m: {"q": m(B, S, H, D).mT.contiguous().mT},
     "q has stride 4 in its last dimension, expected 1"),
    (lambda m: {"seqused_k": m.ints(6, 0)},
     "seqused_k is 6 for sequence 0, expected 0 to 5 (the rows of its keys)"),
]  # fmt: skip

APPEND: list[tuple[Change, str]] = [
    (lambda m: {"k": m.int8(B, S, K, D)}, f"k has dtype int8, {FLOATS}"),
    (lambda m: {"v": m(B, S, K, DV).half()}, "v has dtype float16, expected float32 (that of k)"),
    (lambda m: {"k_cache": m(B, T, K, D).half()},
     "k_cache has dtype float16, expected float32 (that of k) or int8"),
    (lambda m: {"v_cache": m.int8(B, T, K, DV)},
     "v_cache has dtype int8, expected float32 (that of k_cache)"),
    (lambda m: {"k_cache": m(T, K, D)},
     "k_cache has shape [5, 2, 8], expected [B, T, K, D] or [pages, page_size, K, D]"),
    (lambda m: {"v_cache": m(B, 4, K, DV)}, "v_cache has shape [2, 4, 2, 6], expected "
     "[2, 5, 2, 6] (that of k_cache, but for the last dimension)"),
    (lambda m: {"k_cache": m(B, T, K, 513)}, "the last dimension of k_cache is 513"),
    (lambda m: {"v_cache": m(B, T, K, 0)}, "the last dimension of v_cache is 0, expected 1 to 512"),
    (lambda m: {"k": m(5, K, D)}, "k has shape [5, 2, 8], expected [B, S, K, D]"),
    (lambda m: {"cu_seqlens_new": m.ints(0, 5)},
     "k has shape [2, 3, 2, 8], expected [total, K, D]"),
    (lambda m: {"k": m(B, S, H, D)}, "k has shape [2, 3, 4, 8], expected [2, 3, 2, 8] (heads and "
     "last dimension those of k_cache)"),
    (lambda m: {"v": m(B, S, K, D)}, "v has shape [2, 3, 2, 8], expected [2, 3, 2, 6] (rows and "
     "heads those of k, the last dimension that of v_cache)"),
    (lambda m: {"k": m(1, S, K, D), "v": m(1, S, K, DV)},
     "k_cache has shape [2, 5, 2, 8], expected a first dimension of 1 (the batch)"),
    (lambda m: {"k": m(B, S, K, 1).expand(B, S, K, D)}, "k has stride 0 in its last dimension"),
    (lambda m: {"k_cache": m(B, T, 1, D).expand(B, T, K, D)},
     "k_cache repeats elements in memory, so it cannot be written"),
    (lambda m: {"v_cache": m(B, T, DV, K).mT}, "v_cache has stride 2 in its last dimension"),
    (lambda m: {"k_scale": m(K)}, "k_scale is given, but k_cache is float32"),
    (lambda m: {"k_cache": m.int8(B, T, K, D), "v_cache": m.int8(B, T, K, DV), "k_scale": m(K)},
     "v_scale is missing, expected float32 scales, as v_cache is int8"),
    (lambda m: {"k_cache": m.int8(B, T, K, D), "v_cache": m.int8(B, T, K, DV),
                "k_scale": m(B, T, 1).expand(B, T, K), "v_scale": m(K)},
     "k_scale repeats elements in memory, expected scales of its own for each row"),
    (lambda m: {"block_table": m.ints([0], [1]), "cache_batch_idx": m.ints(0, 1)},
     "block_table and cache_batch_idx both say where the rows go, expected one of them"),
    (lambda m: {"seqused_k": m.ints(2, 3)}, "seqused_k is 3 for sequence 1, expected 0 to 2 (the "
     "cache's rows less the new ones)"),
    (lambda m: {"seqused_k": m.ints(-1, 0)}, "seqused_k is -1 for sequence 0, expected 0 to 2"),
    (lambda m: {"seqused_k": m.ints(0, 0, 0)}, "seqused_k is int32 [3], expected int32 [2] (B)"),
    (lambda m: {"cache_batch_idx": m.ints(-1, 0)},
     "cache_batch_idx is -1 for sequence 0, expected 0 to 1 (the rows of the cache)"),
    (lambda m: {"block_table": m.ints([0], [2])},
     "block_table is 2 for sequence 1, expected 0 to 1 (the pages of the cache)"),
    (lambda m: {"k": m(5, K, D), "v": m(5, K, DV), "cu_seqlens_new": m.ints(0, 6, 5)},
     "cu_seqlens_new goes from 0 to 6 at sequence 0, expected an ascent from 0 to 5"),
    (lambda m: {"k": m(6, K, D), "v": m(6, K, DV), "cu_seqlens_new": m.ints(0, 6, 6)},
     "seqused_k is 0 for sequence 0, expected 0 to -1 (the cache's rows less the new ones)"),
]  # fmt: skip

ROTARY: list[tuple[Change, str]] = [
    (lambda m: {"x": m.int8(B, S, H, D)}, f"x has dtype int8, {FLOATS}"),
    (lambda m: {"x": m(S, H, D)}, "x has shape [3, 4, 8], expected [B, S, H, D]"),
    (lambda m: {"cu_seqlens": m.ints(0, 3)}, "x has shape [2, 3, 4, 8], expected [total, H, D]"),
    (lambda m: {"x": m(B, S, H, 513)}, "the last dimension of x is 513, expected 1 to 512"),
    (lambda m: {"x": m(B, S, D, H).mT}, "x has stride 4 in its last dimension, expected 1"),
    (lambda m: {"cos": m(T)}, "cos has shape [5], expected [rows, R / 2]"),
    (lambda m: {"cos": m.int8(T, 3)}, f"cos has dtype int8, {FLOATS}"),
    (lambda m: {"sin": m(T, 2)}, "sin is float32 [5, 2], expected float32 [5, 3] (as cos)"),
    (lambda m: {"sin": m(T, 3).half()}, "sin is float16 [5, 3], expected float32 [5, 3] (as cos)"),
    (lambda m: {"cos": m(3, T).mT}, "cos is not contiguous"),
    (lambda m: {"sin": m(3, T).mT}, "sin is not contiguous"),
    (lambda m: {"cos": m(T, 5), "sin": m(T, 5)},
     "cos has shape [5, 5], expected at most 4 columns (half the last dimension of x)"),
    (lambda m: {"offset": 3},
     "offset is 3, expected 0 to 2 (the rows of cos less those of the sequence)"),
    (lambda m: {"offset": -1}, "offset is -1, expected 0 to 2"),
    (lambda m: {"offset": 2**62}, "offset is 4611686018427387904, expected 0 to 2"),
    (lambda m: {"offsets": m.ints(0, 3)}, "offsets is 3 for sequence 1, expected 0 to 2 (the rows "
     "of cos less those of the sequence)"),
    (lambda m: {"offsets": m.ints(-1, 0)}, "offsets is -1 for sequence 0, expected 0 to 2"),
    (lambda m: {"offsets": m.ints(0)}, "offsets is int32 [1], expected int32 [2] (B)"),
    (lambda m: {"x": m(5, H, D), "cu_seqlens": m.ints(0, 6)},
     "cu_seqlens goes from 0 to 6 at sequence 0, expected an ascent from 0 to 5 (the rows of x)"),
    (lambda m: {"x": m(5, H, D), "cu_seqlens": m.ints(0, 1, 5), "offset": 2},
     "offset is 2, expected 0 to 1 (the rows of cos less those of the sequence)"),
]  # fmt: skip

MERGE: list[tuple[Change, str]] = [
    (lambda m: {"parts": m(S, H, DV)},
     "parts has shape [3, 4, 6], expected [P, B, S, H, Dv] or [P, total_q, H, Dv]"),
    (lambda m: {"parts": m(0, B, S, H, DV)}, "parts has no part, expected at least one"),
    (lambda m: {"parts": m(3, B, S, H, 513)}, "the last dimension of parts is 513"),
    (lambda m: {"parts": m.int8(3, B, S, H, DV)}, f"parts has dtype int8, {FLOATS}"),
    (lambda m: {"parts": m(3, B, S, DV, H).mT}, "parts has stride 4 in its last dimension"),
    (lambda m: {"lses": m(3, B, S, H)}, "lses is float32 [3, 2, 3, 4], expected float32 "
     "[3, 2, 4, 3] (P, B, H, S)"),
    (lambda m: {"parts": m(3, B, S, H, DV).bfloat16(), "lses": m(3, B, H, S).bfloat16()},
     "lses is bfloat16 [3, 2, 4, 3], expected float32 [3, 2, 4, 3] (P, B, H, S)"),
    (lambda m: {"parts": m(3, 5, H, DV)}, "lses is float32 [3, 2, 4, 3], expected float32 "
     "[3, 4, 5] (P, H, total_q)"),
]  # fmt: skip

REFUSED = [
    (op, change, message)
    for op, cases in {
        "attention": PLAIN, "attention_forward": FORWARD, "attention_backward": BACKWARD,
        "kv_cache_append_": APPEND, "rotary": ROTARY, "merge_attention_states": MERGE,
    }.items()
    for change, message in cases
]  # fmt: skip
REFUSED.append(("rotary_", lambda m: {"x": m(B, S, 1, D).expand(B, S, H, D)},
                "x repeats elements in memory, so it cannot be written"))  # fmt: skip


@pytest.mark.parametrize(
    "op, change, message", REFUSED, ids=[f"{op}: {message}" for op, _, message in REFUSED]
)
def test_refused(
    monkeypatch: pytest.MonkeyPatch,
    backend: Backend,
    make: Make,
    op: str,
    change: Change,
    message: str,
) -> None:
    if INDICES.search(message) and not backend.reads_indices:  # they are read on the GPU alone
        monkeypatch.setenv("WEFT_CHECK", "1")  # but for this
    message = message.replace(FLOATS, f"expected {backend.dtypes}")
    arguments = good_arguments(op, make) | change(make)
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, Tensor)}
    with refuses(f"weft.{op.rstrip('_')}: {message}"):
        raw(op, **arguments)
    for k, v in before.items():
        assert torch.equal(arguments[k], v), f"{k} was written before the call was refused"


@pytest.mark.parametrize("op, argument", [
    ("attention", "k"), ("attention", "v"),
    ("attention_forward", "k"), ("attention_forward", "v"), ("attention_forward", "bias"),
    ("attention_forward", "mask"), ("attention_forward", "sinks"),
    ("attention_forward", "alibi_slopes"), ("attention_forward", "seqused_k"),
    ("attention_forward", "cache_batch_idx"), ("attention_forward", "out_scale"),
    ("attention_backward", "out"), ("attention_backward", "lse"), ("attention_backward", "dlse"),
    ("kv_cache_append_", "v_cache"), ("kv_cache_append_", "k"), ("kv_cache_append_", "seqused_k"),
    ("rotary", "cos"), ("rotary", "sin"), ("rotary", "offsets"),
    ("merge_attention_states", "lses"),
])  # fmt: skip
def test_other_devices(make: Make, op: str, argument: str) -> None:
    """A tensor without data beside real ones is refused, not passed over for its shape."""
    m = Make("meta")
    others = {
        **good_arguments(op, m), "bias": m(B, H, S, T), "mask": m(B, H, S, T).bool(),
        "sinks": m(H), "alibi_slopes": m(H), "seqused_k": m.ints(1, 1), "offsets": m.ints(1, 1),
        "cache_batch_idx": m.ints(0, 1), "out_scale": m(1), "dlse": m(B, H, S),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=f"weft.{op.rstrip('_')}: {argument} is .*device"):
        raw(op, **(good_arguments(op, make) | {argument: others[argument]}))


def test_nothing_to_check_in_an_empty_batch(make: Make) -> None:
    """No sequence, no row: what is there is still the gap that results are cleared for."""
    out, lse = raw("attention_forward", **packed(make, cu_seqlens_q=make.ints(0),
                                                 cu_seqlens_k=make.ints(0)))  # fmt: skip
    assert not out.any() and (lse == -torch.inf).all()
    out, lse = raw("attention_forward", q=make(0, S, H, D), k=make(0, T, K, D), v=make(0, T, K, DV))
    assert out.shape == (0, S, H, DV) and lse.shape == (0, H, S)


def test_sizes_whose_product_overflows(make: Make) -> None:
    """2^62 elements that share one: too many to write, whatever they take."""
    q, k, v = (make(1, 1, 1, 1).expand(*shape, 1, 1) for shape in ((1, 2**62), (1, 1), (1, 1)))
    with pytest.raises(RuntimeError):
        raw("attention_forward", q=q, k=k, v=v)
    lse = q[..., 0].mT  # [1, 1, 2^62]
    arguments = {"out": q, "dout": q, "lse": lse, "bias": lse[..., None]}
    with pytest.raises(RuntimeError):
        raw("attention_backward", q=q, k=k, v=v, bias_grad=True, **arguments)
