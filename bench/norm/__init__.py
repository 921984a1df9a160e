"""The norm family: LayerNorm and RMSNorm with what usually stands next to them."""

from bench.norm.cases import cases, inputs, shrink
from bench.norm.contenders import offers
from bench.norm.truth import compare, truth

__all__ = ["cases", "compare", "inputs", "offers", "shrink", "truth"]
