"""flash-attn's functions: signatures, results, packed forms, caches, padding, rotary embedding."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import weft
import weft.compat.flash_attn as flash_attn
from backends import Backend
from weft import reference
from weft.compat.flash_attn.bert_padding import (
    index_first_axis,
    index_put_first_axis,
    pad_input,
    unpad_input,
    unpad_input_for_concatenated_sequences,
)
from weft.compat.flash_attn.layers.rotary import (
    RotaryEmbedding,
    apply_rotary_emb_kv_,
    apply_rotary_emb_qkv_,
)

from .cases import RNG, USUAL, draw, integers, name, to_float64

usual_dtype = pytest.mark.parametrize("dtype", USUAL, ids=name)

_DENSE = (
    "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
    "alibi_slopes=None, deterministic=False, return_attn_probs=False"
)
_PACKED = "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, "
SIGNATURES = {  # of flash-attn 2.8
    "flash_attn_func": f"q, k, v, {_DENSE}",
    "flash_attn_kvpacked_func": f"q, kv, {_DENSE}",
    "flash_attn_qkvpacked_func": f"qkv, {_DENSE}",
    "flash_attn_varlen_func": f"q, k, v, {_PACKED}{_DENSE}, block_table=None",
    "flash_attn_varlen_kvpacked_func": f"q, kv, {_PACKED}{_DENSE}",
    "flash_attn_varlen_qkvpacked_func": f"qkv, cu_seqlens, max_seqlen, {_DENSE}",
    "flash_attn_with_kvcache": (
        "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, "
        "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, block_table=None, "
        "softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
        "rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False"
    ),
}


@pytest.mark.parametrize("function", SIGNATURES)
def test_signatures(function: str) -> None:
    module = importlib.import_module("weft.compat.flash_attn.flash_attn_interface")
    assert getattr(flash_attn, function) is getattr(module, function) is getattr(weft, function)
    parameters = inspect.signature(getattr(flash_attn, function)).parameters.values()
    found = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert ", ".join(found) == SIGNATURES[function]


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    return [draw(shape, dtype, device) for shape in shapes]


def close(ours: Tensor, truth: Tensor) -> None:
    """To the reference in float64; how close exactly, the tests of weft.attention say."""
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[ours.dtype]
    assert_close(ours.cpu().double(), truth, rtol=tolerance, atol=tolerance)


def truth(*qkv: Tensor, **options: Any) -> Any:
    options = {k: to_float64(v) for k, v in options.items()}
    return reference.attention.attention(*map(to_float64, qkv), **options)


# ----------------------------------------------------------------------------- dense and packed


@usual_dtype
def test_dense(backend: Backend, dtype: torch.dtype) -> None:
    q, k, v = tensors(
        (2, 9, 4, 24), (2, 21, 2, 24), (2, 21, 2, 24), dtype=dtype, device=backend.device
    )
    options: dict[str, Any] = {
        "softmax_scale": 0.3,
        "causal": True,
        "window_size": (7, 0),
        "softcap": 2.0,
        "alibi_slopes": torch.rand(2, 4).to(backend.device),
    }
    out = flash_attn.flash_attn_func(q, k, v, **options, deterministic=True)
    close(out, truth(q, k, v, **options))
    assert torch.equal(flash_attn.flash_attn_func(q, k, v, 0.0, *options.values()), out)
    uncapped = flash_attn.flash_attn_func(q, k, v, softcap=-1.0)
    assert torch.equal(uncapped, flash_attn.flash_attn_func(q, k, v))
    kv = torch.stack([k, v], 2)
    assert torch.equal(flash_attn.flash_attn_kvpacked_func(q, kv, 0.0, *options.values()), out)
    qkv = torch.stack([q, q.cos(), q.sin()], 2)
    ours = flash_attn.flash_attn_qkvpacked_func(qkv, 0.0, *options.values())
    close(ours, truth(*qkv.unbind(2), **options))


@usual_dtype
def test_packed(backend: Backend, dtype: torch.dtype) -> None:
    cu_q, cu_k = integers([0, 3, 3, 12], backend.device), integers([0, 8, 10, 31], backend.device)
    q, k, v = tensors((12, 4, 24), (31, 2, 24), (31, 2, 24), dtype=dtype, device=backend.device)
    index = cu_q, cu_k, 9, 21
    options = {"causal": True, "softcap": 2.0}
    out = flash_attn.flash_attn_varlen_func(q, k, v, *index, **options)
    close(out, truth(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **options))
    kv = torch.stack([k, v], 1)
    assert torch.equal(flash_attn.flash_attn_varlen_kvpacked_func(q, kv, *index, **options), out)
    qkv = torch.stack([q, q.cos(), q.sin()], 1)
    ours = flash_attn.flash_attn_varlen_qkvpacked_func(qkv, cu_q, 9, **options)
    close(ours, truth(*qkv.unbind(1), cu_seqlens_q=cu_q, cu_seqlens_k=cu_q, **options))


def test_packed_over_pages(backend: Backend) -> None:
    cu_q, cu_k = integers([0, 3, 4], backend.device), integers([0, 8, 13], backend.device)
    q, k, v = tensors(
        (4, 4, 24), (6, 4, 2, 24), (6, 4, 2, 24), dtype=torch.float32, device=backend.device
    )
    table = integers([4, 1, 0, 5], backend.device).view(2, 2)
    out = flash_attn.flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, 3, 8, causal=True, block_table=table
    )
    rows = torch.cat([k[4], k[1], k[0], k[5, :1]]), torch.cat([v[4], v[1], v[0], v[5, :1]])
    index = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
    close(out, truth(q, *rows, **index, causal=True))


def test_gradients_of_packed_forms() -> None:
    qkv = draw((2, 9, 3, 4, 24)).requires_grad_()
    flash_attn.flash_attn_qkvpacked_func(qkv, causal=True).square().sum().backward()
    q, k, v = (t.detach().requires_grad_() for t in qkv.unbind(2))
    flash_attn.flash_attn_func(q, k, v, causal=True).square().sum().backward()
    assert_close(qkv.grad, torch.stack([q.grad, k.grad, v.grad], 2))  # type: ignore[list-item]


# ---------------------------------------------------------------------------- attention's weights


def test_attn_probs(backend: Backend) -> None:
    """out, lse, and the weights [B, H, S, T], negative where dropped."""
    q, k, v = tensors(
        (2, 9, 4, 24), (2, 600, 2, 24), (2, 600, 2, 24), dtype=torch.float32, device=backend.device
    )
    out, lse, weights = flash_attn.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert weights.numel() == 0
    expected = truth(q, k, v, causal=True, return_lse=True)
    close(out, expected[0])
    close(lse, expected[1])

    out, lse, weights = flash_attn.flash_attn_func(
        q, k, v, 0.3, causal=True, return_attn_probs=True
    )
    assert weights.shape == (2, 4, 9, 600)
    assert_close(weights.abs().sum(-1), torch.ones(2, 4, 9, device=backend.device))
    assert abs((weights < 0).sum() / (weights != 0).sum() - 0.3) < 0.02
    values = v.repeat_interleave(2, 2)
    assert_close(torch.einsum("bhst,bthd->bshd", weights.clamp(min=0) / 0.7, values), out)
    close(lse, expected[1])


def test_attn_probs_of_packed_sequences(backend: Backend) -> None:
    cu = integers([0, 3, 3, 12], backend.device)
    qkv = draw((12, 3, 4, 24), device=backend.device)
    slopes = torch.rand(3, 4).to(backend.device)
    out, lse, weights = flash_attn.flash_attn_varlen_qkvpacked_func(
        qkv, cu, 9, 0.3, alibi_slopes=slopes, return_attn_probs=True
    )
    assert out.shape == (12, 4, 24) and lse.shape == (4, 12) and weights.shape == (3, 4, 9, 9)
    kept = weights.clamp(min=0) / 0.7
    for b, rows in ((0, slice(0, 3)), (2, slice(3, 12))):
        n = rows.stop - rows.start
        assert_close(torch.einsum("hst,thd->shd", kept[b, :, :n, :n], qkv[rows, 2]), out[rows])


# ---------------------------------------------------------------------------------------- caches


def table_of(rows: int, R: int) -> tuple[Tensor, Tensor]:
    angle = torch.outer(torch.arange(rows).float(), 10.0 ** -torch.linspace(0, 3, R // 2))
    return angle.cos(), angle.sin()


@usual_dtype
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("sight", [{}, {"causal": True}, {"window_size": (6, 1)}], ids=str)
@pytest.mark.parametrize("paged", [False, True])
def test_cache(
    backend: Backend, dtype: torch.dtype, interleaved: bool, sight: dict[str, Any], paged: bool
) -> None:
    """Append, rotate and attend in one call, as one would step by step."""
    B, S, used = 3, 2, [5, 0, 11]
    q, k, v = tensors(
        (B, S, 4, 24), (B, S, 2, 24), (B, S, 2, 24), dtype=dtype, device=backend.device
    )
    caches = tensors((8, 8, 2, 24), (8, 8, 2, 24), dtype=dtype, device=backend.device)
    lengths = integers(used, backend.device)
    table = [t.to(backend.device, dtype) for t in table_of(32, 16)]
    pages = integers([4, 1, 0, 7, 6, 2], backend.device).view(3, 2)
    if not paged:
        caches = [t[pages.long()].flatten(1, 2).contiguous() for t in caches]  # [3, 16, 2, 24]
    expected = [(c[pages.long()].flatten(1, 2) if paged else c).clone() for c in caches]

    out, lse = flash_attn.flash_attn_with_kvcache(
        q, *caches, k, v, *table, lengths, block_table=pages if paged else None,
        rotary_interleaved=interleaved, return_softmax_lse=True, **sight,
    )  # fmt: skip

    wide = [to_float64(t) for t in table]
    turn = reference.attention.apply_rotary_emb
    new_k = turn(to_float64(k), *wide, interleaved, lengths.cpu())
    first = torch.arange(S) if sight else torch.zeros(S, dtype=torch.long)
    turned_q = torch.cat(
        [
            turn(to_float64(q[:, i : i + 1]), *wide, interleaved, lengths.cpu() + first[i])
            for i in range(S)
        ],
        1,
    )
    for b, n in enumerate(used):
        expected[0][b, n : n + S], expected[1][b, n : n + S] = new_k[b].to(dtype), v[b]
    after = [c[pages.long()].flatten(1, 2) if paged else c for c in caches]
    for mine, theirs in zip(after, expected, strict=True):
        close(mine, to_float64(theirs))
    true_out, true_lse = reference.attention.attention(
        turned_q,
        *map(to_float64, expected),
        seqused_k=lengths.cpu() + S,
        return_lse=True,
        **sight,
    )
    close(out, true_out)
    close(lse.to(dtype), true_lse)


def test_cache_without_new_keys(backend: Backend) -> None:
    q, k, v = tensors(
        (2, 1, 4, 24), (3, 20, 2, 24), (3, 20, 2, 24), dtype=torch.float32, device=backend.device
    )
    index = integers([2, 0], backend.device)
    out = flash_attn.flash_attn_with_kvcache(q, k, v, cache_seqlens=13, cache_batch_idx=index)
    close(out, truth(q, k[[2, 0], :13], v[[2, 0], :13]))
    left = integers([4, 0], backend.device)
    out = flash_attn.flash_attn_with_kvcache(q, k[:2], v[:2], cache_leftpad=left, num_splits=2)
    close(out[:1], truth(q[:1], k[:1, 4:], v[:1, 4:]))
    close(out[1:], truth(q[1:], k[1:2], v[1:2]))
    q.requires_grad_()
    assert not flash_attn.flash_attn_with_kvcache(q, k[:2], v[:2]).requires_grad


def test_cache_refuses() -> None:
    q, k, v = tensors((2, 1, 4, 24), (2, 20, 2, 24), (2, 20, 2, 24), dtype=torch.float32)
    new = k[:, :1], v[:, :1]
    for arguments, message in (
        ((q, k, v, *new), "k needs v and cache_seqlens"),
        ((q, k, v, new[0], None, None, None, 3), "k needs v and cache_seqlens"),
        ((q, k, v, None, None, *table_of(9, 8)), "rotary_cos needs k and v"),
    ):
        with pytest.raises(ValueError, match=message):
            flash_attn.flash_attn_with_kvcache(*arguments)
    with pytest.raises(ValueError, match="block_table needs cache_seqlens"):
        flash_attn.flash_attn_with_kvcache(q, k, v, block_table=integers([0, 1]).view(2, 1))


# --------------------------------------------------------------------------------------- padding


def test_unpad_and_pad() -> None:
    x = draw((3, 5, 4, 2)).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 0], [1, 1, 1, 1, 1]])
    rows, indices, cu_seqlens, longest, used = unpad_input(x, mask)
    assert torch.equal(rows, x[mask.bool()])
    assert cu_seqlens.tolist() == [0, 3, 5, 10] and cu_seqlens.dtype == torch.int32
    assert longest == 5 and used.tolist() == [3, 2, 5] and used.dtype == torch.int32
    padded = pad_input(rows, indices, 3, 5)
    assert torch.equal(padded, x * mask[..., None, None])
    padded.sum().backward()
    assert torch.equal(x.grad, mask[..., None, None].expand_as(x).float())  # type: ignore[arg-type]

    unused = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    rows, indices, cu_seqlens, longest, used = unpad_input(x, mask, unused)
    assert cu_seqlens.tolist() == [0, 4, 6, 11] and used.tolist() == [3, 2, 5]
    assert torch.equal(index_first_axis(x.flatten(0, 1), indices), rows)
    assert torch.equal(index_put_first_axis(rows, indices, 15)[indices], rows)


def test_unpad_concatenated_sequences() -> None:
    x = draw((2, 6, 4))
    lengths = torch.tensor([[2, 3, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])
    rows, indices, cu_seqlens, longest = unpad_input_for_concatenated_sequences(x, lengths)
    assert torch.equal(rows, torch.cat([x[0, :5], x[1]]))
    assert indices.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert cu_seqlens.tolist() == [0, 2, 5, 11] and longest == 6


def test_padded_batch_as_documented(backend: Backend) -> None:
    """unpad, attend, pad: what a model does with a padding mask."""
    x = draw((3, 7, 3, 4, 24), device=backend.device)
    mask = torch.arange(7, device=backend.device) < torch.tensor([[7], [3], [1]]).to(backend.device)
    qkv, indices, cu_seqlens, longest, _ = unpad_input(x, mask)
    out = flash_attn.flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, longest, causal=True)
    padded = pad_input(out, indices, 3, 7)
    expected = truth(*x.unbind(2), causal=True, seqused_q=mask.sum(1), seqused_k=mask.sum(1))
    close(padded, expected)


# ------------------------------------------------------------------------------ rotary embedding


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_in_place(interleaved: bool) -> None:
    cos, sin = table_of(30, 16)
    cos_k, sin_k = cos * 1.5, sin * 1.5
    turn = weft.apply_rotary_emb
    qkv = draw((2, 5, 3, 4, 24))
    expected = torch.stack(
        [turn(qkv[:, :, 0], cos, sin, interleaved, seqlen_offsets=3),
         turn(qkv[:, :, 1], cos_k, sin_k, interleaved, seqlen_offsets=3), qkv[:, :, 2]], 2
    )  # fmt: skip
    grouped = torch.cat(qkv.unbind(2), 2)
    ours = apply_rotary_emb_qkv_(qkv, cos, sin, cos_k, sin_k, interleaved, 3)
    assert ours is qkv
    assert_close(qkv, expected)
    apply_rotary_emb_qkv_(grouped, cos, sin, cos_k, sin_k, interleaved, 3, num_heads_q=4)
    assert_close(grouped, torch.cat(expected.unbind(2), 2))

    apart = draw((2, 5, 4, 48))[..., ::2]  # elements
    expected = turn(apart.contiguous(), cos, sin, interleaved)
    assert turn(apart, cos, sin, interleaved, inplace=True) is apart
    assert_close(apart, expected)

    kv = draw((2, 5, 2, 4, 24))
    offsets = torch.tensor([4, 0])
    expected = torch.stack(
        [turn(kv[:, :, 0], cos, sin, interleaved, seqlen_offsets=offsets), kv[:, :, 1]], 2
    )
    assert_close(apply_rotary_emb_kv_(kv, cos, sin, interleaved, offsets), expected)


@usual_dtype
def test_rotary_embedding(dtype: torch.dtype) -> None:
    """Positions from the offset on, by a table that grows and is computed in float32."""
    module = RotaryEmbedding(16, interleaved=True)
    assert not module.state_dict()
    for offset in (0, 40, 3, 5000):
        q, kv = draw((1, 3, 2, 24), dtype), draw((1, 3, 2, 1, 24), dtype)
        angle = torch.outer(torch.arange(offset, offset + 3).float(), module.inv_freq)
        table = angle.cos().to(dtype), angle.sin().to(dtype)
        expected = [weft.apply_rotary_emb(x, *table, True) for x in (q, kv[:, :, 0])]
        value = kv[:, :, 1].clone()
        ours = module(q, kv, seqlen_offset=offset)
        assert_close(ours[0], expected[0])
        assert_close(ours[1], torch.stack([expected[1], value], 2))
    with pytest.raises(ValueError, match="needs max_seqlen"):
        module(q, kv, seqlen_offset=integers([0]))


def test_scores_depend_on_the_distance_alone() -> None:
    qkv = torch.ones(1, 9, 3, 1, 16)
    RotaryEmbedding(16)(qkv)
    scores = qkv[0, :, 0, 0] @ qkv[0, :, 1, 0].T
    for distance in range(9):
        along = scores.diagonal(distance)
        assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)


def test_rotary_embedding_with_scale() -> None:
    """XPos: scores at one distance still agree, and fall with it."""
    module = RotaryEmbedding(16, scale_base=8.0)
    qkv = torch.ones(1, 9, 3, 1, 16)
    module(qkv)
    scores = qkv[0, :, 0, 0] @ qkv[0, :, 1, 0].T
    for distance in range(9):
        along = scores.diagonal(-distance)
        assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)


def test_rotary_embedding_trains() -> None:
    module = RotaryEmbedding(8)
    x = draw((1, 4, 3, 2, 8)).requires_grad_()
    module(x * 1).square().sum().backward()
    assert_close(x.grad, 2 * x.detach())  # a rotation keeps lengths


def test_dropout_replays_its_generator() -> None:
    qkv = draw((2, 9, 3, 4, 24))
    torch.manual_seed(5)
    first = flash_attn.flash_attn_qkvpacked_func(qkv, 0.5)
    torch.manual_seed(5)
    assert torch.equal(flash_attn.flash_attn_qkvpacked_func(qkv, 0.5), first)
    torch.manual_seed(5)
    state = torch.randint(2**63 - 1, (2,), dtype=torch.int64)
    assert not torch.equal(state, RNG)
    assert torch.equal(weft.attention(*qkv.unbind(2), dropout_p=0.5, rng_state=state), first)
