"""What :func:`weft.quantize_` is told and tells: configs, observers, smoothing, reports."""

from .config import W4A16, W8A16, Hybrid, LLMInt8, W8A8Dynamic, W8A8Static
from .observers import EMA, MSE, AbsMax, Average, Observer, Percentile
from .report import Layer, QuantizationReport
from .smoothing import AdaptiveSmoothQuant, ShiftSmoothQuant, SmoothQuant

__all__ = [
    "EMA",
    "MSE",
    "W4A16",
    "AbsMax",
    "AdaptiveSmoothQuant",
    "Average",
    "Hybrid",
    "LLMInt8",
    "Layer",
    "Observer",
    "Percentile",
    "QuantizationReport",
    "ShiftSmoothQuant",
    "SmoothQuant",
    "W8A16",
    "W8A8Dynamic",
    "W8A8Static",
]
