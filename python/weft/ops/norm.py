"""LayerNorm, RMSNorm and what stands next to them in a network, each in one pass over the data.

    u = dropout((x + x_bias) * rowscale * layerscale)
    z = u + dropout(x1) + residual_alpha * residual + residual2
    y = (z - mean(z)) / sqrt(var(z) + eps) * weight + bias    LayerNorm, arXiv 1607.06450
    y = z / sqrt(mean(z^2) + eps) * weight + bias             RMSNorm, arXiv 1910.07467

Mean and (biased) variance run over the normalised dimensions C, for each of the rows N.

Shapes, in every function here: inputs are [*N, *C], weights and biases [*C], or [H, C] for weights
that differ by head, H being the last dimension of N. Dtypes: float32, bfloat16, float16 and
float64, weights in any of them; the arithmetic is float32 (float64 for float64 inputs), rounded
once. Rows may lie at any stride as long as channels are contiguous. Empty inputs give empty
outputs.

Errors: a RuntimeError names the op, the argument, what came and what is taken; TypeError and
ValueError are for arguments of these functions that the op does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _norm_autograd, _norm_fake  # noqa: F401  they register themselves
from ._grad import refuse_grad
from ._norm_args import NormArgs
from ._norm_dispatch import add_norm, norm, norm_forward
from ._rng_state import rng_state_for
from ._written import written

_is_grad_enabled = torch.is_grad_enabled
_is_compiling = torch.compiler.is_dynamo_compiling
# The dispatcher's own callables: OpOverload.__call__ around them costs as much as a small norm.
_layer_norm = torch.ops.weft.layer_norm.default._op
_rms_norm = torch.ops.weft.rms_norm.default._op
_layer_norm_out = torch.ops.weft.layer_norm.out
_rms_norm_out = torch.ops.weft.rms_norm.out
_norm_forward_out = torch.ops.weft.norm_forward.out
_fused_add_rms_norm_ = torch.ops.weft.fused_add_rms_norm_.default
_dropout_mask = torch.ops.weft.dropout_mask.default

_EPS = torch.finfo(torch.float32).eps
_EPS_FLOAT64 = torch.finfo(torch.float64).eps


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    zero_centered_weight: bool = False,
    memory_efficient: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    r"""LayerNorm, as :func:`torch.nn.functional.layer_norm`.

    .. math:: y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot w + b

    (Ba, Kiros, Hinton: Layer Normalization, arXiv 1607.06450.)

    Args:
        input: [\*N, \*C].
        normalized_shape: C, the last dimensions of `input`.
        weight: [\*C], any float dtype. Default: ones.
        bias: [\*C], any float dtype. Default: zeros.
        eps: added to the variance.
        zero_centered_weight: multiply by ``weight + 1``, as models do whose weights are stored
            around 0.
        memory_efficient: keep y for backward instead of x, for networks in which y lives on anyway.
            Gradients lose accuracy where weights are tiny.
        out: written and returned instead of a new tensor; without gradients.

    Returns:
        [\*N, \*C], contiguous, in `input`'s dtype (float32 under CUDA autocast, as PyTorch's).
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            layer_norm,
            (input, weight, bias),
            input,
            normalized_shape,
            weight,
            bias,
            eps,
            zero_centered_weight=zero_centered_weight,
            memory_efficient=memory_efficient,
            out=out,
        )
    if type(normalized_shape) is not tuple:
        normalized_shape = _as_shape("layer_norm", normalized_shape)
    ndim = len(normalized_shape)
    # A weight of this shape is compared with the input by the op.
    given = weight is not None and weight.shape == normalized_shape
    if not given and input.shape[-ndim:] != normalized_shape:
        raise _shape_error("layer_norm", input, normalized_shape)
    if out is not None:
        refuse_grad("layer_norm", input, weight, bias)
        _layer_norm_out(input, ndim, weight, bias, eps, zero_centered_weight, out=out)
        written(out)
        return out
    if (
        (
            _is_grad_enabled()
            and (
                input.requires_grad
                or (weight is not None and weight.requires_grad)
                or (bias is not None and bias.requires_grad)
            )
        )
        or forward_ad._current_level >= 0
        or _is_compiling()
    ):
        args = NormArgs(
            input,
            ndim,
            weight,
            bias,
            eps=eps,
            zero_centered_weight=zero_centered_weight,
            memory_efficient=memory_efficient,
        )
        return norm(args)
    return _layer_norm(input, ndim, weight, bias, eps, zero_centered_weight)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    bias: Tensor | None = None,
    zero_centered_weight: bool = False,
    memory_efficient: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    r"""RMSNorm, as :func:`torch.nn.functional.rms_norm`.

    .. math:: y = \frac{x}{\sqrt{\mathrm{E}[x^2] + \epsilon}} \cdot w + b

    (Zhang, Sennrich: Root Mean Square Layer Normalization, arXiv 1910.07467.)

    Args:
        input: [\*N, \*C].
        normalized_shape: C, the last dimensions of `input`.
        weight: [\*C], any float dtype. Default: ones.
        eps: added to the mean square. Default, as PyTorch's: the machine epsilon of the dtype
            computed in, 2^-23 for float32 and 16-bit inputs, 2^-52 for float64.
        bias: [\*C], any float dtype. Default: zeros.
        zero_centered_weight: multiply by ``weight + 1`` (Gemma).
        memory_efficient: keep y for backward instead of x.
        out: written and returned instead of a new tensor; without gradients.

    Returns:
        [\*N, \*C], contiguous, in `input`'s dtype (float32 under CUDA autocast, as PyTorch's).
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            rms_norm,
            (input, weight, bias),
            input,
            normalized_shape,
            weight,
            eps,
            bias=bias,
            zero_centered_weight=zero_centered_weight,
            memory_efficient=memory_efficient,
            out=out,
        )
    if type(normalized_shape) is not tuple:
        normalized_shape = _as_shape("rms_norm", normalized_shape)
    ndim = len(normalized_shape)
    # A weight of this shape is compared with the input by the op.
    given = weight is not None and weight.shape == normalized_shape
    if not given and input.shape[-ndim:] != normalized_shape:
        raise _shape_error("rms_norm", input, normalized_shape)
    if eps is None:
        eps = _EPS_FLOAT64 if input.dtype is torch.float64 else _EPS
    if out is not None:
        refuse_grad("rms_norm", input, weight, bias)
        _rms_norm_out(input, ndim, weight, bias, eps, zero_centered_weight, out=out)
        written(out)
        return out
    if (
        (
            _is_grad_enabled()
            and (
                input.requires_grad
                or (weight is not None and weight.requires_grad)
                or (bias is not None and bias.requires_grad)
            )
        )
        or forward_ad._current_level >= 0
        or _is_compiling()
    ):
        args = NormArgs(
            input,
            ndim,
            weight,
            bias,
            eps=eps,
            is_rms_norm=True,
            zero_centered_weight=zero_centered_weight,
            memory_efficient=memory_efficient,
        )
        return norm(args)
    return _rms_norm(input, ndim, weight, bias, eps, zero_centered_weight)


def layer_norm_fn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    zero_centered_weight: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
    *,
    x_bias: Tensor | None = None,
    layerscale: Tensor | None = None,
    residual2: Tensor | None = None,
    residual_alpha: float = 1.0,
    rng_state: Tensor | None = None,
) -> Any:
    r"""Dropout, residual and norm in one pass: flash-attn's function, and the rest of the field's
    options.

        u = dropout((x + x_bias) * rowscale * layerscale)
        z = u + dropout(x1) + residual_alpha * residual + residual2
        y = norm(z) * weight + bias             y1 = norm(z) * weight1 + bias1

    Args:
        x: [\*N, C]; the last dimension is normalised.
        weight, bias: [C], or None.
        residual: [\*N, C], any float dtype.
        x1: [\*N, C], a second input, with a dropout mask of its own. Not together with `rowscale`.
        weight1, bias1: [C]; with `weight1`, y1 is returned too, from the same statistics.
        eps: added to the variance, or to the mean square.
        dropout_p: probability with which an element is dropped; those kept are scaled by 1/(1-p).
        rowscale: [\*N], a factor per row, as stochastic depth draws them. Has no gradient.
        prenorm: return z too, the residual of the next block.
        residual_in_fp32: z is float32 (where there is no `residual`; else it has that one's dtype).
        zero_centered_weight: multiply by ``weight + 1`` and ``weight1 + 1``.
        is_rms_norm: RMSNorm instead of LayerNorm.
        return_dropout_mask: return the masks too, bool, True where kept; None where nothing is
            dropped.
        out_dtype: of y and y1. Default: x's.
        out, residual_out: written and returned instead of new tensors; without gradients, and `out`
            without `weight1`.
        x_bias: [C], added to x.
        layerscale: [C], a factor per channel.
        residual2: [\*N, C], a second residual.
        residual_alpha: factor of `residual` (DeepNorm, arXiv 2203.00555).
        rng_state: int64 [2], the (seed, offset) that dropout draws from. Default: drawn from
            PyTorch's generator of x's device, hence set by :func:`torch.manual_seed`, and at each
            replay of a CUDA graph anew. The mask is Philox4x32-10's (Salmon et al., "Parallel
            random numbers: as easy as 1, 2, 3", SC 2011), the same on every device: see
            :func:`weft.dropout_mask`.

    Returns:
        y alone, or the tuple of y, y1 (with `weight1`), z (with `prenorm`), and the masks of x and
        x1 (with `return_dropout_mask`), in this order. z is x itself where nothing was added to it.
    """
    if x1 is not None and rowscale is not None:
        raise ValueError("weft.layer_norm_fn: rowscale cannot be combined with x1")
    if bias1 is not None and weight1 is None:
        raise ValueError("weft.layer_norm_fn: bias1 needs weight1")
    nothing_else = (
        x1 is weight1 is rowscale is x_bias is layerscale is residual2 is None
        and out is residual_out is out_dtype is None
        and dropout_p == 0
        and residual_alpha == 1
        and not return_dropout_mask
    )
    if residual is not None and nothing_else:
        lean = add_norm(x, residual, weight, bias, eps, is_rms_norm, zero_centered_weight, prenorm)
        if lean is not None:
            return lean if prenorm else lean[0]
    residual_dtype = x.dtype if residual is None else residual.dtype
    if residual is None and residual_in_fp32 and x.dtype != torch.float64:
        residual_dtype = torch.float32
    args = NormArgs(
        x,
        1,
        weight,
        bias,
        weight1,
        bias1,
        x_bias,
        residual,
        residual2,
        x1,
        rowscale,
        layerscale,
        rng_state_for(x, dropout_p, rng_state),
        dropout_p,
        residual_alpha,
        eps,
        is_rms_norm,
        zero_centered_weight,
        return_dropout_mask=return_dropout_mask and dropout_p > 0,
        residual_dtype=residual_dtype,
        out_dtype=x.dtype if out_dtype is None else out_dtype,
    )
    if out is not None or residual_out is not None:
        return _layer_norm_fn_out(args, prenorm, out, residual_out)

    new_residual = prenorm and (args.adds or residual_dtype != x.dtype)
    y, y1, z, _, _, mask, mask1 = norm_forward(args._replace(return_residual=new_residual))
    results: list[Tensor | None] = [y]
    if weight1 is not None:
        results.append(y1)
    if prenorm:
        results.append(z if new_residual else x)
    if return_dropout_mask:
        dropped = dropout_p > 0
        results += [mask if dropped else None, mask1 if dropped and x1 is not None else None]
    return tuple(results) if len(results) > 1 else y


def _layer_norm_fn_out(
    args: NormArgs, prenorm: bool, out: Tensor | None, residual_out: Tensor | None
) -> Any:
    if args.weight1 is not None:
        raise NotImplementedError("weft.layer_norm_fn: out= and residual_out= take no weight1")
    refuse_grad("layer_norm_fn", *args.tensors())
    x = args.x
    if out is None:
        out = torch.empty(x.shape, dtype=args.out_dtype, device=x.device)
    if residual_out is None and prenorm and (args.adds or args.z_dtype != x.dtype):
        residual_out = torch.empty(x.shape, dtype=args.z_dtype, device=x.device)
    want_masks = args.return_dropout_mask
    args = args._replace(return_dropout_mask=False, out_dtype=None)
    _norm_forward_out(*args, out=out, residual_out=residual_out)
    written(out, residual_out)
    results: list[Tensor | None] = [out]
    if prenorm:
        results.append(x if residual_out is None else residual_out)
    if want_masks:
        for stream, t in enumerate((x, args.x1)):
            if t is None or args.rng_state is None:
                results.append(None)
            else:
                results.append(dropout_mask(args.rng_state, t.shape, args.dropout_p, stream))
    return tuple(results) if len(results) > 1 else out


def rms_norm_fn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    zero_centered_weight: bool = False,
    return_dropout_mask: bool = False,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
    *,
    x_bias: Tensor | None = None,
    layerscale: Tensor | None = None,
    residual2: Tensor | None = None,
    residual_alpha: float = 1.0,
    rng_state: Tensor | None = None,
) -> Any:
    """:func:`weft.layer_norm_fn` with RMSNorm; the same arguments, results and errors."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        x1,
        weight1,
        bias1,
        eps,
        dropout_p,
        rowscale,
        prenorm,
        residual_in_fp32,
        zero_centered_weight,
        True,
        return_dropout_mask,
        out_dtype,
        out,
        residual_out,
        x_bias=x_bias,
        layerscale=layerscale,
        residual2=residual2,
        residual_alpha=residual_alpha,
        rng_state=rng_state,
    )


def fused_add_rms_norm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    zero_centered_weight: bool = False,
) -> None:
    r"""In place: ``residual += input``, then ``input = rms_norm(residual)``. vLLM's op, for
    inference.

    Args:
        input: [\*N, C], overwritten with the norm.
        residual: [\*N, C], any float dtype, overwritten with the sum.
        weight: [C], or None.
        eps: added to the mean square.
        zero_centered_weight: multiply by ``weight + 1``.

    Raises:
        RuntimeError: also where autograd would need a gradient; :func:`weft.rms_norm_fn` has one.
    """
    refuse_grad("fused_add_rms_norm", input, residual, weight, what="an in-place norm")
    _fused_add_rms_norm_(input, residual, weight, eps, zero_centered_weight)
    written(input, residual)


def dropout_mask(rng_state: Tensor, shape: Sequence[int], p: float, stream: int = 0) -> Tensor:
    """The mask that the kernels draw from `rng_state`: True where an element is kept.

    Element e (in row-major order) is kept if word e % 4 of the Philox4x32-10 block with key seed
    and counter (e // 4 + stream * 2^40, offset) is at least p * 2^32 (Salmon et al., SC 2011).

    Args:
        rng_state: int64 [2]: (seed, offset).
        shape: of the input that is dropped.
        p: probability with which an element is dropped, 0 to 1.
        stream: 0 for x, 1 for x1.

    Returns:
        bool, of `shape`, on the device of `rng_state`.
    """
    shape = torch.Size(shape)
    return _dropout_mask(rng_state, shape.numel(), p, stream).view(shape)


def _as_shape(op: str, normalized_shape: object) -> tuple[int, ...]:
    """Lists and torch.Size are shapes as tuples are; a bare int is not, here as in PyTorch."""
    if not isinstance(normalized_shape, list | tuple):
        raise TypeError(
            f"weft.{op}: normalized_shape is {normalized_shape!r}, "
            "expected a tuple or list of ints, such as (64,)"
        )
    return tuple(normalized_shape)


def _shape_error(op: str, input: Tensor, normalized_shape: tuple[int, ...]) -> Exception:
    if not all(isinstance(size, int | torch.SymInt) for size in normalized_shape):
        return TypeError(f"weft.{op}: normalized_shape is {normalized_shape}, expected ints")
    return ValueError(
        f"weft.{op}: normalized_shape is {list(normalized_shape)}, expected the last dimensions "
        f"of input, which has shape {list(input.shape)}"
    )
