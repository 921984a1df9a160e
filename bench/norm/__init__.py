"""The norm family: LayerNorm and RMSNorm with what usually stands next to them."""

from bench.check import compare
from bench.norm.cases import cases, inputs, shrink, sweep
from bench.norm.contenders import offers
from bench.norm.truth import truth

__all__ = ["cases", "compare", "inputs", "offers", "shrink", "sweep", "truth"]
