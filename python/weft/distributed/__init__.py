"""Ranks that reduce together: communicators over shared memory, for processes of one host."""

from ._work import Work
from .communicator import Communicator
from .ddp import ddp_hook

__all__ = ["Communicator", "Work", "ddp_hook"]
