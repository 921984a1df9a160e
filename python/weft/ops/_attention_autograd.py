"""The gradients of the attention ops.

Of attention, q, k, v, out and lse are saved, from which backward computes the scores again, and
dropout is drawn again from rng_state: nothing is kept that grows with S · T. bias comes expanded
to [B, H, S, T], and its gradient is that shape's: autograd sums over what was expanded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._attention_args import DIFFERENTIABLE, INFERENCE_ONLY, OPTIONS, AttentionArgs

_forward = torch.ops.weft.attention_forward.default
_backward = torch.ops.weft.attention_backward.default
_rotary = torch.ops.weft.rotary.default
_merge = torch.ops.weft.merge_attention_states.default


def last_contiguous(t: Tensor) -> Tensor:
    """`t` with its last dimension contiguous, as the kernels take it: all else may be a view."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _below_autograd(op, keyset, *args):
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


class _AttentionForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, *inputs):
        args = AttentionArgs(*inputs)
        out, lse = _below_autograd(_forward, keyset, *inputs)
        tensors = inputs[OPTIONS][:9]  # bias … rng_state
        ctx.save_for_backward(args.q, args.k, args.v, out, lse, *tensors)
        ctx.options = inputs[OPTIONS][9:]
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        if dout is None and dlse is None:
            return (None,) * (1 + len(AttentionArgs._fields))
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        needs = dict(zip(AttentionArgs._fields, ctx.needs_input_grad[1:], strict=True))
        grads = _backward(
            torch.zeros_like(out) if dout is None else last_contiguous(dout),
            None if dlse is None else dlse.contiguous(),
            q,
            k,
            v,
            out,
            lse,
            *tensors,
            *ctx.options,
            needs["bias"],
            needs["sinks"],
        )
        found = {
            name: grad for name, grad in zip(DIFFERENTIABLE, grads, strict=True) if needs[name]
        }
        return None, *map(found.get, AttentionArgs._fields)


def _attention_forward(keyset, *inputs):
    if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)):
        return _below_autograd(_forward, keyset, *inputs)
    args = AttentionArgs(*inputs)
    for name in INFERENCE_ONLY:
        if getattr(args, name) is not None:
            raise NotImplementedError(
                f"weft.attention: {name} has no backward, but one of the arguments requires grad"
            )
    if args.alibi_slopes is not None and args.alibi_slopes.requires_grad:
        raise NotImplementedError("weft.attention: alibi_slopes has no gradient; detach it")
    return _AttentionForward.apply(keyset, *inputs)


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, *inputs):
        return _below_autograd(_backward, keyset, *inputs)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("weft.attention can be differentiated only once")


def _attention_backward(keyset, *inputs):
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):  # create_graph=True
        return _AttentionBackward.apply(keyset, *inputs)
    return _below_autograd(_backward, keyset, *inputs)


class _Rotary(torch.autograd.Function):
    """Its gradient turns back by the same angles."""

    @staticmethod
    def forward(ctx, keyset, *inputs):
        _, cos, sin, offsets, offset, cu_seqlens, interleaved, conjugate = inputs
        ctx.save_for_backward(cos, sin, offsets, cu_seqlens)
        ctx.options = offset, interleaved, conjugate
        return _below_autograd(_rotary, keyset, *inputs)

    @staticmethod
    def backward(ctx, dout):
        cos, sin, offsets, cu_seqlens = ctx.saved_tensors
        offset, interleaved, conjugate = ctx.options
        dout = last_contiguous(dout)
        dx = _rotary(dout, cos, sin, offsets, offset, cu_seqlens, interleaved, not conjugate)
        return None, dx, *(None,) * 7


def _rotary_kernel(keyset, *inputs):
    x, cos, sin, *_ = inputs
    if not torch.is_grad_enabled():
        return _below_autograd(_rotary, keyset, *inputs)
    if cos.requires_grad or sin.requires_grad:
        raise NotImplementedError("weft.apply_rotary_emb: cos and sin have no gradient; detach")
    if x.requires_grad:
        return _Rotary.apply(keyset, *inputs)
    return _below_autograd(_rotary, keyset, *inputs)


class _Merge(torch.autograd.Function):
    """With w = exp(lse_p - lse): do_p = w do, dlse_p = w (dlse + (o_p - o) · do).

    A part with lse_p = -inf has no gradient, whatever its o_p holds."""

    @staticmethod
    def forward(ctx, keyset, parts, lses):
        out, lse = _below_autograd(_merge, keyset, parts, lses)
        ctx.save_for_backward(parts, lses, out, lse)
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        parts, lses, out, lse = ctx.saved_tensors
        weight = torch.exp(lses - lse.masked_fill(lse == -torch.inf, 0))  # [P, B, H, S]
        by_row = weight.transpose(-1, -2).unsqueeze(-1)  # [P, B, S, H, 1]
        along = ((parts - out) * dout.to(lse.dtype)).sum(-1).transpose(-1, -2)
        dlses = (weight * (dlse + along)).masked_fill(lses == -torch.inf, 0)
        return None, (by_row * dout).to(parts.dtype), dlses


def _merge_kernel(keyset, *inputs):
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
        return _Merge.apply(keyset, *inputs)
    return _below_autograd(_merge, keyset, *inputs)


_library = torch.library.Library("weft", "IMPL")
for _name, _kernel in {
    "attention_forward": _attention_forward,
    "attention_backward": _attention_backward,
    "rotary": _rotary_kernel,
    "merge_attention_states": _merge_kernel,
}.items():
    _library.impl(_name, _kernel, "Autograd", with_keyset=True)
