"""The INT8 family: linear layers on weights of 8 and 4 bits."""

from bench.int8.cases import cases, inputs, shrink, sweep
from bench.int8.contenders import offers
from bench.int8.truth import compare, truth

__all__ = ["cases", "compare", "inputs", "offers", "shrink", "sweep", "truth"]
