"""Ranks that reduce together: communicators over shared memory, for processes of one host."""

from ._work import Work
from .communicator import Communicator

__all__ = ["Communicator", "Work"]
