"""weft's functions once more in plain PyTorch: short, obvious, in any dtype up to float64.

They are written from the formulas, not from the kernels, and the tests hold every kernel against
them. Nothing here is fast, and nothing but tests and benchmarks imports it.
"""

from . import attention, int8, norm, philox

__all__ = ["attention", "int8", "norm", "philox"]
