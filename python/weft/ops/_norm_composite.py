"""The norm family in differentiable PyTorch, for what one kernel call cannot give.

That is: torch.func's grad and jvp, forward-mode AD, and gradients of gradients. Computes in float32
(float64 for float64), as the kernels do, and rounds where they round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._norm_args import NormArgs, compute_dtype

_dropout_mask = torch.ops.weft.dropout_mask.default


def over_rows(rowscale: Tensor, normalized_ndim: int) -> Tensor:
    """A value per row [*N], shaped to multiply rows [*N, *C]."""
    return rowscale.reshape(rowscale.shape + (1,) * normalized_ndim)


def masks(args: NormArgs) -> tuple[Tensor | None, Tensor | None]:
    """What dropout keeps of x and of x1; None where nothing is dropped."""
    if args.dropout_p == 0:
        return None, None
    assert args.rng_state is not None
    drawn = [
        _dropout_mask(args.rng_state, t.numel(), args.dropout_p, stream).view(t.shape)
        for stream, t in enumerate((args.x, args.x1))
        if t is not None
    ]
    return drawn[0], (drawn[1] if args.x1 is not None else None)


def drop(x: Tensor, p: float, mask: Tensor | None) -> Tensor:
    return x if mask is None else torch.where(mask, x / (1 - p), 0.0)


def norm(z: Tensor, args: NormArgs, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """z normalised, times the weight, plus the bias; z as wide as it is to be computed."""
    channels = tuple(range(-args.normalized_ndim, 0))
    if not args.is_rms_norm:
        z = z - z.mean(channels, keepdim=True)
    y = z * torch.rsqrt(z.square().mean(channels, keepdim=True) + args.eps)
    if weight is not None:
        weight = weight.to(z.dtype)
        y = y * (weight + 1 if args.zero_centered_weight else weight)
    return y if bias is None else y + bias.to(z.dtype)


def forward(args: NormArgs) -> tuple[Tensor, ...]:
    """`weft::norm_forward` without the statistics."""
    x, wide = args.x, compute_dtype(args.x.dtype)
    mask, mask1 = masks(args)

    u = x.to(wide)
    if args.x_bias is not None:
        u = u + args.x_bias
    if args.rowscale is not None:
        u = u * over_rows(args.rowscale, args.normalized_ndim)
    if args.layerscale is not None:
        u = u * args.layerscale
    z = drop(u.to(wide), args.dropout_p, mask)
    if args.x1 is not None:
        z = z + drop(args.x1.to(wide), args.dropout_p, mask1)
    if args.residual is not None:
        z = z + args.residual_alpha * args.residual.to(wide)
    if args.residual2 is not None:
        z = z + args.residual2.to(wide)

    out_dtype = args.out_dtype or x.dtype
    absent = x.new_empty(0)
    y1 = absent
    if args.weight1 is not None:
        y1 = norm(z, args, args.weight1, args.bias1).to(out_dtype)
    return (
        norm(z, args, args.weight, args.bias).to(out_dtype),
        y1,
        z.to(args.z_dtype) if args.return_residual else absent,
        absent,
        absent,
        absent if mask is None else mask,
        absent if mask1 is None else mask1,
    )


def backward(
    args: NormArgs,
    z: Tensor,
    dy: Tensor | None,
    dy1: Tensor | None,
    dz: Tensor | None,
    needs: dict[str, bool],
) -> dict[str, Tensor]:
    """The gradients of `forward`, themselves differentiable with respect to z, weights and dy.

    `args.x` may be anything of x's shape and dtype where no gradient of layerscale is needed.
    """
    wide = compute_dtype(args.x.dtype)
    out_dtype = args.out_dtype or args.x.dtype
    weights = {name: getattr(args, name) for name in ("weight", "bias", "weight1", "bias1")}
    asked = {name: t for name, t in weights.items() if t is not None and needs[name]}

    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        outputs = [
            (norm(z.to(wide), args, weights["weight" + i], weights["bias" + i]).to(out_dtype), g)
            for i, g in (("", dy), ("1", dy1))
            if g is not None
        ]
        grads = dict.fromkeys(["z", *asked])
        if outputs:
            found = torch.autograd.grad(
                [y for y, _ in outputs],
                [z, *asked.values()],
                [g for _, g in outputs],
                create_graph=True,
                allow_unused=True,
            )
            grads = dict(zip(grads, found, strict=True))

        total = torch.zeros_like(z, dtype=wide) if grads["z"] is None else grads["z"].to(wide)
        if dz is not None:
            total = total + dz.to(wide)

        mask, mask1 = masks(args)
        du = dx = drop(total, args.dropout_p, mask)
        if args.rowscale is not None:
            du = dx = dx * over_rows(args.rowscale, args.normalized_ndim)
        if args.layerscale is not None:
            dx = dx * args.layerscale

        result = {name: grads[name] for name in asked}
        result["x"] = dx.to(args.x.dtype)
        if args.x1 is not None:
            result["x1"] = drop(total, args.dropout_p, mask1).to(args.x1.dtype)
        if args.residual is not None:
            result["residual"] = (args.residual_alpha * total).to(args.residual.dtype)
        if args.residual2 is not None:
            result["residual2"] = total.to(args.residual2.dtype)
        if args.x_bias is not None:
            result["x_bias"] = dx.sum_to_size(args.x_bias.shape).to(args.x_bias.dtype)
        if args.layerscale is not None and needs["layerscale"]:
            u = args.x.to(wide) if args.x_bias is None else args.x + args.x_bias.to(wide)
            result["layerscale"] = (du * u).sum_to_size(args.layerscale.shape)
    return {name: g for name, g in result.items() if needs.get(name) and g is not None}
