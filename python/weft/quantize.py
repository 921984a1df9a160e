"""weft.quantize_: the linear layers of a model on INT8 weights, in place.

With calibration the model is run three times: to see who reads what (`quantization.calibration`),
for statistics of each channel, from which shift and smooth follow, and, where the scales are
static, with an observer behind them. Only then does anything change, but for torch's encoder
layers: calibration would pass their linear layers by, so they are told to call them before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._progress import progress
from .integrations.folding import fold, is_foldable
from .integrations.linears import Filter, call_by_parts, owners, weight_of, why_not
from .nn._int8_weight import Quantized
from .nn._quantized_linear import QuantizedLinear
from .quantization.calibration import (
    Calibration,
    ChannelStatistics,
    Group,
    Modules,
    Runs,
    batches,
    evaluating,
    trace,
    watch,
)
from .quantization.config import Config, W8A8Static
from .quantization.observers import Observer
from .quantization.report import Layer, QuantizationReport, sqnr
from .quantization.smoothing import AdaptiveSmoothQuant, Smoothing, search, smooth_scales

UNREACHED = "the calibration never reached it"


def quantize_(
    model: nn.Module,
    config: Config,
    *,
    calibration: Calibration | None = None,
    filter_fn: Filter | None = None,
    show_progress: bool = True,
) -> QuantizationReport:
    """Puts the linear layers of `model` on INT8 weights, in place.

    torch.nn.Linear and transformers' Conv1D become modules of `weft.nn` that subclass
    torch.nn.Linear; hooks, biases and whoever holds a layer stay. Layers stay as they are where
    torch's own code reads their weights, and, unless `filter_fn` says otherwise, where the weight
    is also an embedding's, or they are the output embedding of a model of transformers.

    Args:
        model: any module, also a linear layer itself, or one on the meta device, to load a
            quantised checkpoint into: ``model.load_state_dict(state, assign=True)``.
        config: one of `weft.W8A8Dynamic`, `W8A8Static`, `W8A16`, `W4A16`, `LLMInt8`, `Hybrid`.
        calibration: examples of the inputs, an iterable of batches (mappings and tuples become
            arguments), or a function that runs the model, which it is given. W8A8Static and
            smoothing need it; the others are only measured with it.
        filter_fn: (module, path) -> bool, which linear layers to take.
        show_progress: have bars on stderr, where rich is installed and stderr is a terminal.

    Returns:
        QuantizationReport: what every linear layer is now, or why it stayed; with calibration
        also the signal to noise ratio of each, with and without smoothing.

    >>> weft.quantize_(model, weft.W8A8Dynamic())
    >>> weft.quantize_(model, weft.W8A8Static(smoothing=SmoothQuant()), calibration=batches)
    """
    reasons = why_not(model, filter_fn, getattr(config, "group_size", None))
    modules = dict(model.named_modules())
    chosen = {path: modules[path] for path, reason in reasons.items() if not reason}
    smoothing: Smoothing | None = getattr(config, "smoothing", None)
    static = isinstance(config, W8A8Static)
    if calibration is None and (smoothing is not None or static):
        if any(not weight_of(module).is_meta for module in chosen.values()):
            what = "smoothing" if smoothing is not None else "W8A8Static"
            raise ValueError(f"weft.quantize_: {what} needs calibration=")
    layers = {path: Layer(path, _name(modules[path]), why_not=why) for path, why in reasons.items()}
    report = QuantizationReport(list(layers.values()))
    call_by_parts(model, chosen)
    found: dict[str, _Found] = {}
    if calibration is not None:
        runs = batches(model, calibration)
        linears = {
            path: modules[path] for path in reasons if path in chosen or _watched(modules[path])
        }
        with evaluating(model), progress("calibration", None, show_progress) as advance:
            found = _calibrate(model, config, runs, linears, chosen, modules, advance)
        for path in set(chosen) - set(found) if static or smoothing is not None else ():
            layers[path].why_not = UNREACHED
            del chosen[path]
    convert = _Converter(config, Counter(id(m._parameters["weight"]) for m in chosen.values()))
    with progress("weights", len(chosen), show_progress) as advance:
        for path, module in chosen.items():
            convert(layers[path], module, found.get(path), report)
            advance()
    return report


def _watched(module: nn.Module) -> bool:
    return not isinstance(module, QuantizedLinear) and "weight" in module._parameters


def _name(module: nn.Module) -> str:
    cls = type(module)
    return f"nn.{cls.__name__}" if cls.__module__.startswith("torch.nn.modules") else cls.__name__


# ------------------------------------------------------------------------------------ calibration


@dataclass
class _Found:
    """What calibration says of the layers of one group.

    They read x; with smoothing they quantise t = (x - shift) / smooth. Their input may have become
    something else than x: what the `norm` that took shift and smooth gives them now.
    """

    sample: Tensor  # [rows, K], of x
    shift: Tensor | None = None
    smooth: Tensor | None = None
    scale: tuple[float, int] | None = None  # of t, and its zero point
    plain_scale: tuple[float, int] | None = None  # of x
    norm: str = ""
    input_shift: Tensor | None = None  # what is left to the quantiser
    input_smooth: Tensor | None = None

    def __post_init__(self) -> None:
        self.input_sample = self.sample  # of their input


def _calibrate(
    model: nn.Module,
    config: Config,
    runs: Callable[[], Runs],
    linears: Modules,
    chosen: Modules,
    modules: Modules,
    advance: Callable[[], object],
) -> dict[str, _Found]:
    smoothing: Smoothing | None = getattr(config, "smoothing", None)
    held = owners(model)
    norms = {path: m for path, m in modules.items() if smoothing and is_foldable(m, held)}
    groups, everything = _groups(model, runs, linears, norms, chosen)
    statistics = _statistics(groups, runs, linears, smoothing, advance)
    found: dict[int, _Found] = {}
    for index, group in enumerate(groups):
        if statistics[index].batches:
            weights = [weight_of(chosen[path]).float() for path in group.linears if path in chosen]
            found[index] = _smoothed(statistics[index], weights, config)
    if isinstance(config, W8A8Static):
        _observe(groups, found, runs, linears, config)
    for index, f in found.items():
        norm = groups[index].norm if everything else None  # an unknown layer may read it, too
        if (
            norm is not None
            and f.smooth is not None
            and chosen.keys() >= set(groups[index].linears)
        ):
            rest, f.smooth = fold(modules[norm], f.shift, f.smooth)
            taken = 0 if f.shift is None or rest is not None else f.shift
            f.norm, f.input_shift = norm, rest
            f.input_sample = (f.sample - taken) / f.smooth
        else:
            f.input_shift, f.input_smooth = f.shift, f.smooth
    return {path: f for i, f in found.items() for path in groups[i].linears if path in chosen}


def _groups(
    model: nn.Module, runs: Callable[[], Runs], linears: Modules, norms: Modules, chosen: Modules
) -> tuple[list[Group], bool]:
    """Groups with a layer that is chosen, and whether calibration reaches every linear layer."""
    if next(runs(), None) is None:
        raise ValueError("weft.quantize_: calibration holds no batches")
    groups = trace(model, lambda: [run() for run in runs()], linears, norms)
    reached = {path for group in groups for path in group.linears}
    groups = [group for group in groups if chosen.keys() & set(group.linears)]
    return groups, reached == set(linears)


def _statistics(
    groups: list[Group],
    runs: Callable[[], Runs],
    linears: Modules,
    smoothing: Smoothing | None,
    advance: Callable[[], object],
) -> list[ChannelStatistics]:
    statistics = [ChannelStatistics(smoothing.shift if smoothing else None) for _ in groups]
    of = {path: s for group, s in zip(groups, statistics, strict=True) for path in group.inputs}
    with watch({p: linears[p] for p in of}, lambda path, x: of[path].observe(x)):
        for run in runs():
            run()
            advance()
    return statistics


def _smoothed(statistics: ChannelStatistics, weights: list[Tensor], config: Config) -> _Found:
    """Shift and smooth of one group."""
    smoothing: Smoothing | None = getattr(config, "smoothing", None)
    found = _Found(statistics.sample)
    if smoothing is None:
        return found
    weight = torch.cat(weights)  # [M, K]
    found.shift = None if smoothing.shift is None else statistics.shift
    if isinstance(smoothing, AdaptiveSmoothQuant):
        activation = smoothing.activation or config.activation  # type: ignore[union-attr]
        centred = statistics.sample - statistics.shift
        found.smooth = search(centred, weight, statistics.largest, smoothing, activation)
    else:
        w_max = weight.abs().amax(0)
        found.smooth = smooth_scales(statistics.largest, w_max, smoothing.alpha)
    return found


def _observe(
    groups: list[Group],
    found: dict[int, _Found],
    runs: Callable[[], Runs],
    linears: Modules,
    config: W8A8Static,
) -> None:
    """The static scales, of the inputs as they are and as they are smoothed."""
    plain: dict[int, Observer] = {i: config.observer() for i in found}
    smoothed = {i: config.observer() for i, f in found.items() if f.smooth is not None}
    of = {path: i for i in found for path in groups[i].inputs}

    def seen(path: str, x: Tensor) -> None:
        f = found[of[path]]
        plain[of[path]].observe(x)
        if f.smooth is not None:
            shifted = x.float() if f.shift is None else x - f.shift
            smoothed[of[path]].observe(shifted / f.smooth)

    with watch({path: linears[path] for path in of}, seen):
        for run in runs():
            run()
    for i, f in found.items():
        f.plain_scale = plain[i].scale_and_zero_point(config.symmetric)
        f.scale = f.plain_scale
        if i in smoothed:
            f.scale = smoothed[i].scale_and_zero_point(config.symmetric)


# ----------------------------------------------------------------------------------------- layers


class _Converter:
    """Changes one layer after another; what is tied stays tied."""

    def __init__(self, config: Config, holders: Counter[int]) -> None:
        self.config = config
        self.holders = holders
        self.tied: dict[int, tuple[Tensor, Quantized]] = {}

    @torch.no_grad()
    def __call__(
        self, layer: Layer, module: nn.Module, found: _Found | None, report: QuantizationReport
    ) -> None:
        weight = weight_of(module)  # [N, K]
        report.bytes_before += weight.nbytes
        if found is None:
            made = self._make(module, weight)
        else:
            made = self._calibrated(layer, module, weight, found)
        report.bytes_after += made.weight.numel() * made.bits // 8 + made.weight_scale.nbytes
        layer.after = f"weft.nn.{type(made).__name__}({', '.join(made._options())})"

    def _calibrated(
        self, layer: Layer, module: nn.Module, weight: Tensor, found: _Found
    ) -> QuantizedLinear:
        truth = F.linear(found.sample, weight.float())  # [rows, N]
        target, offset = weight, torch.zeros((), device=weight.device)
        if found.smooth is not None:
            layer.sqnr_plain = sqnr(truth, self._plain(weight, found)(found.sample))
            layer.smoothed = found.norm or "quantiser"
            target = weight * found.smooth
        if found.shift is not None:
            offset = weight.float() @ found.shift
            _add_to_bias(module, offset)
        made = self._make(module, target)
        _take(made, found.input_shift, found.input_smooth, found.scale)
        with _without_bias(made):
            layer.sqnr = sqnr(truth, made(found.input_sample) + offset)
        return made

    def _make(self, module: nn.Module, weight: Tensor) -> QuantizedLinear:
        """`module` itself, changed; of one parameter and its holders, the same integers."""
        parameter = module._parameters["weight"]
        assert parameter is not None
        config, options = self.config, self.config.options()
        quantized: Tensor | Quantized = weight
        unchanged = weight.data_ptr() == parameter.data_ptr()
        if unchanged and self.holders[id(parameter)] > 1:
            if id(parameter) not in self.tied:
                self.tied[id(parameter)] = parameter, _skeleton(config, weight).quantized(weight)
            quantized = self.tied[id(parameter)][1]
        made = config.module.of(module, quantized, **options)
        if isinstance(config, W8A8Static):
            _take(made, None, None, (1.0, 0))
        return made

    def _plain(self, weight: Tensor, found: _Found) -> QuantizedLinear:
        """The layer as it would be without smoothing, and without its bias."""
        made = self.config.module.of(_skeleton(self.config, weight), weight)
        _take(made, None, None, found.plain_scale)
        return made


def _skeleton(config: Config, weight: Tensor) -> QuantizedLinear:
    made = config.module(1, 1, bias=False, device=weight.device)
    made.__dict__.update(config.options())
    return made


def _take(
    layer: QuantizedLinear,
    shift: Tensor | None,
    smooth: Tensor | None,
    scale: tuple[float, int] | None,
) -> None:
    device = layer.weight_scale.device
    layer.input_shift, layer.input_smooth = shift, smooth
    if scale is not None:
        layer.input_scale = torch.tensor([scale[0]], device=device)
        layer.input_zero_point = torch.tensor([scale[1]], dtype=torch.int32, device=device)


def _add_to_bias(module: nn.Module, offset: Tensor) -> None:
    """In float32: shifts may be large. The bias is a new one, as others may hold the old one."""
    bias = module._parameters.get("bias")
    total = offset if bias is None else bias.detach() + offset
    wanted = bias is not None and bias.requires_grad
    module._parameters["bias"] = nn.Parameter(total.float(), requires_grad=wanted)


@contextmanager
def _without_bias(layer: nn.Module) -> Iterator[None]:
    bias = layer._parameters.get("bias")
    layer._parameters["bias"] = None
    try:
        yield
    finally:
        layer._parameters["bias"] = bias
