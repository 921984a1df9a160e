"""weft.optimize: put weft into a model that somebody else wrote, and take it out again.

What may be swapped stands in `integrations.norms` (single norms), `integrations.residual` (blocks
that add and normalise) and `integrations.attention`; this file walks the model, decides what is
selected, and tells what happened.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._text_table import pattern, stack, text_table
from .integrations import attention, norms, residual
from .integrations._swap import is_swapped, swap, swap_back

Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Selectors = Selector | Iterable[Selector]


@dataclass(frozen=True)
class Entry:
    """One module: where it is, what it was, and what it became or why it did not."""

    path: str
    before: str
    after: str = ""
    why_not: str = ""


@dataclass
class Report:
    """What `weft.optimize` did, or would do. `print` shows it as a table."""

    swapped: list[Entry] = field(default_factory=list)
    skipped: list[Entry] = field(default_factory=list)
    others: dict[str, int] = field(
        default_factory=dict
    )  # modules weft has nothing for: how many of each class
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists and strings, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = text_table(
            ("path", "before", "after", "why not"), list(_grouped([*self.swapped, *self.skipped]))
        )
        verb = "would be swapped" if self.dry_run else "swapped"
        lines.append(f"{len(self.swapped)} modules {verb}, {len(self.skipped)} left alone")
        if self.others:
            others = ", ".join(f"{name} ×{count}" for name, count in self.others.items())
            lines.append(f"no weft module for: {others}")
        return "\n".join(lines)


def _grouped(entries: Iterable[Entry]) -> Iterator[tuple[str, ...]]:
    """Entries that differ only in numbers of their path, such as those of a stack of layers, as
    one line."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for e in entries:
        key = (pattern(e.path), e.before, e.after, e.why_not)
        groups.setdefault(key, []).append(e.path)
    for (_, *rest), paths in groups.items():
        yield (stack(paths), *rest)


def optimize(
    model: nn.Module,
    *,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
    dry_run: bool = False,
) -> Report:
    """Swaps, in place, the modules of `model` for which weft has a better one.

    Three kinds of change, all to the class of an instance or the choice of a function, so that
    parameters (ties too), buffers, hooks, dtype, device, training mode and state_dict keys stay
    the very same:

    - A norm runs on weft's op: torch.nn.LayerNorm and torch.nn.RMSNorm by exact type; classes of
      others whose name ends in RMSNorm or LayerNorm if, run on random input, they compute what
      one of weft's functions computes (the zero-centred weights of Gemma included). 16-bit
      results are rounded once, at the end; LLaMA's own code rounds before it multiplies by the
      weight as well.
    - A block that adds a residual and normalises the sum, as those of BERT, BART, Llama, Qwen,
      Mistral, Gemma or ViT do, computes both in one op, and the dropout before them too. Blocks
      are known by the lines of their forward. Hooks on the parts still fire: while there are any,
      and under autocast, the parts are called one by one. Dropout in training is weft's, seeded
      by torch's generator: the same distribution, another mask than torch's.
    - Attention runs on weft's: torch.nn.MultiheadAttention by exact type, and models of
      transformers whose choice was "eager" or "sdpa", by ``attn_implementation="weft"``, for all
      layers that share a config. A torch.nn.TransformerEncoder then keeps its padding instead of
      making nested tensors of it.

    Args:
        model: any module; its own class may be one of those swapped.
        include: what to consider, default everything: a glob pattern over module paths
            (`"encoder.layer.*.output"`), a module type, a predicate `(path, module) -> bool`, or
            several of these. What is selected includes everything below it.
        exclude: what to leave alone, likewise; wins over `include`.
        dry_run: report only; the model stays as it is.

    Returns:
        Report: which modules were swapped, for what, and which norms and blocks were not, and why.

    The optimised model can be copied, pickled, saved, trained and compiled as before. A second
    call finds nothing to do. `weft.restore` undoes it all.
    """
    report = Report(dry_run=dry_run)
    chosen = _selected(model, include, exclude)
    changed: list[nn.Module] = []

    def change(path: str, module: nn.Module, found: norms.Replacement) -> None:
        report.swapped.append(Entry(path, _name(module), found.label))
        swap(module, found.cls, **found.attributes)
        changed.append(module)

    try:
        # Norms first: a block can be fused when its norms are weft's.
        for op, candidate, replacement in (
            ("norm_forward", norms.is_norm, norms.replacement),
            ("norm_forward", residual.is_block, residual.replacement),
            ("attention_forward", attention.is_attention, attention.replacement),
        ):
            for path, module in model.named_modules():
                if not candidate(module):
                    continue
                found = _why_not(path, module, chosen, op) or replacement(module)
                if isinstance(found, str):
                    report.skipped.append(Entry(path, _name(module), why_not=found))
                else:
                    change(path, module, found)
        for path, module in model.named_modules():  # selected or not: their attention needs it
            if attention.is_encoder(module):
                change(path, module, attention.padded_encoder(module))
        for path, module in attention.models(model).items():
            choice = _why_no_choice(path, module, chosen) or attention.choose(module)
            if isinstance(choice, str):
                report.skipped.append(Entry(path, _name(module), why_not=choice))
                continue
            before, after = (f'attn_implementation="{name}"' for name in choice)
            report.swapped.append(Entry(path, before, after))
            changed.append(module)
    finally:
        if dry_run:
            for module in reversed(changed):
                _put_back(module)
    mentioned = {entry.path for entry in (*report.swapped, *report.skipped)}
    rest = [
        module
        for path, module in model.named_modules()
        if path not in mentioned and norms.is_leaf(module) and not _is_ours(module)
    ]
    report.others = dict(Counter(map(_name, rest)).most_common())
    return report


def restore(model: nn.Module) -> None:
    """Undoes `optimize`: every module of `model` has its own class again, and computes the same
    bits as before."""
    for module in model.modules():
        _put_back(module)


def _put_back(module: nn.Module) -> None:
    swap_back(module)
    attention.choose_back(module)


def _name(module: nn.Module) -> str:
    cls = type(module)
    return f"nn.{cls.__name__}" if cls.__module__.startswith("torch.nn.modules") else cls.__name__


def _is_ours(module: nn.Module) -> bool:
    """Whether weft made it, such as a quantised linear layer."""
    return type(module).__module__.startswith("weft.")


def _selected(model: nn.Module, include: Selectors | None, exclude: Selectors | None) -> set[str]:
    """The paths that are included and not excluded."""
    everything = {path for path, _ in model.named_modules()}
    included = everything if include is None else _covered(model, include)
    return included if exclude is None else included - _covered(model, exclude)


def _covered(model: nn.Module, selectors: Selectors) -> set[str]:
    """The paths that a selector matches, and those below them."""
    if isinstance(selectors, (str, type)) or callable(selectors):
        selectors = (selectors,)
    selectors = tuple(selectors)
    covered: set[str] = set()
    for path, module in model.named_modules():  # parents come before their children
        below = path != "" and path.rpartition(".")[0] in covered
        if below or any(_matches(selector, path, module) for selector in selectors):
            covered.add(path)
    return covered


def _matches(selector: Selector, path: str, module: nn.Module) -> bool:
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(path, selector)
    if isinstance(selector, type):
        return isinstance(module, selector)
    return bool(selector(path, module))


_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Why a norm or a block is left alone whatever it computes. Each row looks at a module and its
# parameters; the first that holds is the reason.
_OBSTACLES: tuple[tuple[Callable[[nn.Module, list[Tensor]], object], str], ...] = (
    (lambda m, ps: is_swapped(m), "already swapped"),
    (
        lambda m, ps: type(m) in (*norms.EXACT.values(), *attention.EXACT.values()),
        "already weft's",
    ),
    (lambda m, ps: "forward" in m.__dict__, "its forward is overridden on the instance"),
    (
        lambda m, ps: any(type(p) not in (Tensor, nn.Parameter) for p in ps),
        "its weights are no plain tensors",
    ),
    (
        lambda m, ps: any(p.is_meta for p in ps),
        "its weights are on the meta device: load them first",
    ),
    (
        lambda m, ps: any(p.dtype not in _DTYPES for p in ps),
        "weft has no kernel for the dtype of its weights",
    ),
)

_NO_KERNEL = "weft has no kernel for its device"


def _has_kernel(op: str, device: str) -> bool:
    key = torch._C._dispatch_key_for_device(device)
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"weft::{op}", key))


def _why_not(path: str, module: nn.Module, chosen: set[str], op: str) -> str | None:
    parameters: list[Tensor] = [p for p in module._parameters.values() if p is not None]
    if path not in chosen:
        return "not selected"
    reason = next((reason for holds, reason in _OBSTACLES if holds(module, parameters)), None)
    if reason is None and any(not _has_kernel(op, p.device.type) for p in parameters):
        return _NO_KERNEL
    return reason


def _why_no_choice(path: str, model: nn.Module, chosen: set[str]) -> str | None:
    """Why a model of transformers keeps its attention; all of its layers change, or none."""
    layers = {
        f"{path}.{below}".strip(".")
        for below, module in model.named_modules()
        if "Attention" in type(module).__name__
    }
    if path not in chosen or not layers <= chosen:
        return "not selected"
    devices = {p.device.type for p in model.parameters()}
    return None if all(_has_kernel("attention_forward", d) for d in devices) else _NO_KERNEL
