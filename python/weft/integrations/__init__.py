"""Other people's models: which of their modules weft knows, and how it takes their place."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import transformers

__all__ = ["transformers"]


def __getattr__(name: str):
    if name == "transformers":  # imported when it is first asked for: it imports theirs
        return import_module(".transformers", __name__)
    raise AttributeError(f"module 'weft.integrations' has no attribute {name!r}")
