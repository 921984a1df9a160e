"""How far from the truth a result may be: the one rule of all tests.

The truth is the reference in float64. The yardstick is plain PyTorch on the same input in the same
dtypes: weft may err at most twice as much, plus a tiny `atol` for the inputs where PyTorch happens
to be exact. Both the largest error and the root mean square one are held to it; the second sees
what is small but everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 2.0

# atol in units of the largest true value: some last places of the arithmetic, and for 16-bit types
# the one rounding of the result. In the mean over n elements luck averages out, and atol shrinks by
# sqrt(n); but not for float64, where the truth has last places of its own.
ATOL = {
    torch.float64: 32 * torch.finfo(torch.float64).eps,
    torch.float32: 4 * torch.finfo(torch.float32).eps,
    torch.bfloat16: 0.5 * torch.finfo(torch.bfloat16).eps,
    torch.float16: 0.5 * torch.finfo(torch.float16).eps,
}


def errors(result: Tensor, truth: Tensor) -> Tensor:
    return (result.detach().cpu().double() - truth.detach()).abs()


def root_mean_square(error: Tensor) -> Tensor:
    return error.square().mean().sqrt()


def assert_no_worse_than_torch(
    result: Tensor,
    truth: Tensor,
    plain: Tensor,
    what: str = "y",
    arithmetic: torch.dtype = torch.float64,
    luck: float = 1.0,
    unit: float = 0.0,
    independent: bool = True,
) -> None:
    """`result` is weft's, `truth` the reference in float64, `plain` what PyTorch makes of it.

    `arithmetic` is the dtype computed in, where it may be less than the result's; `luck` multiplies
    atol, for tensors so small that PyTorch may well be exact. Errors of `independent` elements
    average out; those of equal elements, in constant rows, are all the same one.

    Wherever PyTorch is NaN or infinite weft is too, in the same way, and nowhere else.
    """
    __tracebackhide__ = True
    assert result.shape == truth.shape, f"{what} has shape {result.shape}, not {truth.shape}"
    assert result.dtype == plain.dtype, f"{what} has dtype {result.dtype}, not {plain.dtype}"
    if result.numel() == 0:
        return
    finite = plain.detach().isfinite().cpu()
    torch.testing.assert_close(
        result.detach().cpu().masked_fill(finite, 0),
        plain.detach().cpu().masked_fill(finite, 0),
        rtol=0,
        atol=0,
        equal_nan=True,
        msg=lambda text: f"{what} is not inf or nan where PyTorch is: {text}",
    )
    truth = truth.where(finite, 0)
    largest = max(truth.abs().max().item(), unit)
    ours = errors(result, truth).where(finite, 0)
    theirs = errors(plain, truth).where(finite, 0)
    atol = luck * max(ATOL[result.dtype], ATOL[arithmetic]) * largest
    average_out = independent and luck == 1 and result.dtype != torch.float64
    averaged = ours.numel() ** 0.5 if average_out else 1
    measures = {"largest": (torch.amax, 1), "r.m.s.": (root_mean_square, averaged)}
    for measure, (norm, shrink) in measures.items():
        error, yardstick = norm(ours).item(), norm(theirs).item()
        limit = FACTOR * yardstick + atol / shrink
        assert error <= limit, explain(what, measure, error, yardstick, limit, ours, result, truth)


def assert_rounded_once(result: Tensor, truth: Tensor, what: str = "y") -> None:
    """A 16-bit `result` is the truth, found in float32, rounded once: half a last place, no more.

    Stricter than twice PyTorch's error, and free of it: every single element counts, small ones
    too.
    """
    __tracebackhide__ = True
    info = torch.finfo(result.dtype)
    binade = 2.0 ** truth.abs().clamp_min(info.smallest_normal).log2().floor()
    float32_error = 16 * torch.finfo(torch.float32).eps * truth.abs().max()
    limit = 0.5 * info.eps * binade + float32_error
    ours = errors(result, truth)
    worst = (ours - limit).argmax()
    error, allowed = ours.flatten()[worst].item(), limit.flatten()[worst].item()
    assert error <= allowed, explain(what, "", error, 0.0, allowed, ours - limit, result, truth)


def assert_int8_close(
    values: Tensor, truth: Tensor, what: str = "q", plain: Tensor | None = None
) -> None:
    """Within one step, and the same but for one value in a thousand: a tie may go either way.

    With `plain`, what PyTorch makes of it, also where it errs: twice as often, and one step more.
    """
    __tracebackhide__ = True
    assert values.dtype == torch.int8 and values.shape == truth.shape, what
    steps = (values.cpu().int() - truth.cpu().int()).abs()
    theirs = (
        torch.zeros_like(steps) if plain is None else (plain.cpu().int() - truth.cpu().int()).abs()
    )
    most = 1 + int(theirs.max()) if theirs.numel() else 1
    assert not steps.numel() or steps.max() <= most, f"{what} is {steps.max()} steps from the truth"
    differ, allowed = int(steps.sum()), 2 * int(theirs.sum()) - (-steps.numel() // 1000)
    assert differ <= allowed, f"{differ} of {steps.numel()} values of {what} are a step away"


def explain(
    what: str,
    measure: str,
    error: float,
    yardstick: float,
    limit: float,
    by: Tensor,
    result: Tensor,
    truth: Tensor,
) -> str:
    worst = tuple(int(i) for i in torch.unravel_index(by.argmax(), by.shape))
    rows = int((by.flatten(1) > limit).any(-1).sum()) if by.dim() > 1 else 1
    return (
        f"{what} {result.dtype} {list(result.shape)}: {measure} error {error:.3g}, "
        f"allowed {limit:.3g}, PyTorch's {yardstick:.3g}\n"
        f"  worst at {list(worst)}: {result[worst].item():.9g} for {truth[worst].item():.9g}; "
        f"{int((by > limit).sum())} of {by.numel()} elements and {rows} of {len(by)} rows are over"
    )
