"""The attention family: prefill, decode, packed sequences, training."""

from bench.attention.cases import cases, inputs, shrink, sweep
from bench.attention.contenders import offers
from bench.attention.truth import truth
from bench.check import compare

__all__ = ["cases", "compare", "inputs", "offers", "shrink", "sweep", "truth"]
