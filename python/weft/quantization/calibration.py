"""Calibration: a model is run on examples while its linear layers are watched.

`trace` finds which layers read the same tensor, and whether that comes from a norm whose output
nobody else reads: such a norm can take part of the work of its readers (`folding`). It watches
tensors, not code, so that it knows any architecture: an output is followed through its views, and
every operation that meets it outside of a linear layer is a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .smoothing import Shift

Calibration = Iterable[Any] | Callable[[nn.Module], object]
Runs = Iterator[Callable[[], object]]
Modules = dict[str, nn.Module]

ROWS = 256  # of a layer's inputs, kept for the search and the report
EMA_DECAY = 0.98


def batches(model: nn.Module, calibration: Calibration) -> Callable[[], Runs]:
    """A function that starts over: one call for each batch."""
    if callable(calibration):
        run = calibration
        return lambda: iter([lambda: run(model)])
    examples = calibration if hasattr(calibration, "__getitem__") else list(calibration)
    return lambda: (lambda batch=batch: _call(model, batch) for batch in examples)  # type: ignore[misc]


def _call(model: nn.Module, batch: Any) -> object:
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients and without dropout; afterwards every module has its mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _hooks(handles: Iterable[Any]) -> Iterator[None]:
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


def watch(modules: Modules, seen: Callable[[str, Tensor], None]) -> Any:
    """Within it, `seen(path, x)` is called with what each module is given."""

    def hook(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: seen(path, _input(args, kwargs))

    return _hooks(
        module.register_forward_pre_hook(hook(path), with_kwargs=True)
        for path, module in modules.items()
    )


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    (x,) = (*args, *kwargs.values())
    return x  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------ trace


@dataclass
class Group:
    """Linear layers that read the same: they share shift and smooth."""

    linears: list[str]
    inputs: list[str]  # those of them whose inputs, taken together, are all that is read
    norm: str | None = None  # whose output they read, they alone


def trace(
    model: nn.Module, run: Callable[[], object], linears: Modules, norms: Modules
) -> list[Group]:
    """The groups of the layers that `run` reaches, in the order in which they were first called.
    What it does not reach is not known."""
    tracer = _Tracer(norms)
    handles = [m.register_forward_hook(tracer.norm_called(path)) for path, m in norms.items()]
    for path, module in linears.items():
        handles.append(module.register_forward_pre_hook(tracer.enter(path), with_kwargs=True))
        handles.append(module.register_forward_hook(tracer.leave))
    handles.append(model.register_forward_hook(tracer.returned))
    with _hooks(handles), tracer:
        run()
    groups: dict[Any, Group] = {}
    covered: dict[int, list[set[Any]]] = {}
    for path, inputs in tracer.inputs.items():
        sources = frozenset(x.source for x in inputs)
        group = groups.setdefault(sources, Group([], []))
        group.linears.append(path)
        seen = covered.setdefault(id(group), [])
        if inputs not in seen:
            seen.append(inputs)
            group.inputs.append(path)
        read = {s for s in sources if isinstance(s, str)}
        if len(sources) > 1:
            tracer.shared |= read
        elif read:
            (group.norm,) = read
    for group in groups.values():
        if group.norm in tracer.shared:
            group.norm = None
    return list(groups.values())


@dataclass(frozen=True)
class _Read:
    """One input of a linear layer: equal ones are the same tensor."""

    source: str | tuple[int, ...]  # a norm, or the tensor itself
    tensor: tuple[int, ...]


class _Tracer(TorchDispatchMode):
    """Knows tensors by their storage. Weak references keep an address from being given to another
    storage; the memory itself is free to go."""

    def __init__(self, norms: Modules) -> None:
        super().__init__()
        from torch.multiprocessing.reductions import StorageWeakRef

        self.reference = StorageWeakRef
        self.kept: dict[int, Any] = {}
        self.origin: dict[int, tuple[str, int]] = {}  # storage: the norm it is of, its width
        self.shared: set[str] = set()  # norms whose output others read, too
        self.inputs: dict[str, set[_Read]] = {}
        self.inside = 0  # linear layers

    @staticmethod
    def key(x: Tensor) -> int:
        return int(x.untyped_storage()._cdata)

    def keep(self, x: Tensor) -> int:
        key = self.key(x)
        if key not in self.kept:
            self.kept[key] = self.reference(x.untyped_storage())
        return key

    def norm_called(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                self.origin[self.keep(out)] = (path, out.shape[-1])

        return hook

    def enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = _input(args, kwargs)
            key = self.keep(x)
            version = 0 if x.is_inference() else x._version
            tensor = (key, x.storage_offset(), *x.shape, *x.stride(), version)
            norm, width = self.origin.get(key, (None, 0))
            whole = x.shape[-1] == width and x.stride(-1) == 1 and x.storage_offset() % width == 0
            if norm is not None and not whole:  # channels cut out, or mixed up with rows
                self.shared.add(norm)
            source = norm if norm is not None and whole else tensor
            self.inputs.setdefault(path, set()).add(_Read(source, tensor))
            self.inside += 1

        return hook

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.inside -= 1

    def returned(self, module: nn.Module, args: Any, out: Any) -> None:
        for x in tensors(out):
            self._note(self.key(x))

    def _note(self, key: int) -> None:
        if key in self.origin:
            self.shared.add(self.origin[key][0])

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.inside:
            return out
        views = set() if func._schema.is_mutable else {self.key(x) for x in tensors(out)}
        for x in tensors((args, kwargs)):
            if (key := self.key(x)) not in views:
                self._note(key)
        return out


def tensors(tree: Any) -> Iterator[Tensor]:
    """The dense tensors in nested tuples, lists and mappings."""
    if isinstance(tree, Tensor):
        if tree.layout == torch.strided and not tree.is_nested:
            yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from tensors(item)


# ------------------------------------------------------------------------------------- statistics


class ChannelStatistics:
    """What smoothing wants to know of a group's inputs x [*, C], batch after batch.

    low, high: [C], the smallest and the largest value of each channel.
    shift: [C], z.
    sample: [at most ROWS, C], rows drawn evenly from all that were seen.
    """

    def __init__(self, shift: Shift | None, rows: int = ROWS) -> None:
        self.kind = shift
        self.rows = rows
        self.batches = 0
        self._generator = torch.Generator().manual_seed(0)
        self._priority = torch.empty(0)
        self.low = self.high = self.shift = self.sample = torch.empty(0)

    def observe(self, x: Tensor) -> None:
        x = x.detach().reshape(-1, x.shape[-1]).float()  # [N, C]
        if len(x) == 0:
            return
        low, high = x.aminmax(dim=0)
        if not (low.isfinite().all() and high.isfinite().all()):
            raise ValueError("weft: the calibration data leads to activations that are not finite")
        if self.batches == 0:
            self.low, self.high, self.sample = low, high, x[:0]
            self.shift = torch.zeros_like(low)
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.batches += 1
        if self.kind == "midrange":
            middle = (low + high) / 2
            self.shift = middle if self.batches == 1 else (self.shift + middle) / 2
        elif self.kind == "ema":
            self._ema(x.mean(0))
        self._draw(x)

    def _ema(self, mean: Tensor) -> None:
        """The corrected average, advanced without keeping the uncorrected one."""
        before, now = (1 - EMA_DECAY ** (self.batches - i) for i in (1, 0))
        total = EMA_DECAY * before * self.shift + (1 - EMA_DECAY) * mean
        self.shift = total / now

    def _draw(self, x: Tensor) -> None:
        """Every row gets a random number; the rows with the largest stay."""
        priority = torch.cat([self._priority, torch.rand(len(x), generator=self._generator)])
        kept = priority.topk(min(self.rows, len(priority)), sorted=False).indices.sort().values
        self._priority = priority[kept]
        old = kept[kept < len(self.sample)].to(x.device)
        new = (kept[kept >= len(self.sample)] - len(self.sample)).to(x.device)
        self.sample = torch.cat([self.sample[old], x[new]])

    @property
    def largest(self) -> Tensor:
        """[C], max|x - z|."""
        return torch.maximum(self.high - self.shift, self.shift - self.low)
