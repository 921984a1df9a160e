"""Wrong kernels, each of which the simulator must refuse, in words that name the mistake."""

from __future__ import annotations

import pytest
import torch

from .kernel import run

pytestmark = pytest.mark.usefixtures("simulated")


def caught(name: str, match: str, **arguments) -> None:
    with pytest.raises(RuntimeError, match=match) as error:
        run(name, **arguments)
    message = str(error.value)
    assert f"::{name}_kernel" in message, message
    assert "mutants.h:" in message, message


def test_past_the_end():
    caught(
        "past_the_end",
        r"read of 4 bytes at global address \w+, 0 bytes past the end of an allocation of 128",
        inputs=[torch.randn(32)],
        outputs=[torch.empty(32)],
    )


def test_writes_input():
    caught("writes_input", "write of 4 bytes .* read-only", inputs=[torch.randn(32)])


def test_unaligned():
    caught(
        "unaligned",
        "read of 16 bytes .* not aligned",
        inputs=[torch.randn(32)],
        outputs=[torch.empty(32)],
    )


def test_uncleared_output():
    caught(
        "uncleared_output",
        "read of 4 bytes at global address .* not been written",
        inputs=[torch.randn(32)],
        outputs=[torch.empty(32)],
    )


def test_half_filled():
    caught(
        "half_filled",
        "read of 4 bytes at shared offset .* not been written",
        inputs=[torch.randn(32)],
        outputs=[torch.empty(32)],
    )


def test_wrong_tile():
    caught("wrong_tile", "elements 32 to 33 of a view of 32 elements", outputs=[torch.empty(32)])


def test_divergent_barrier():
    caught(
        "divergent_barrier",
        r"deadlock(.|\n)*threads 0-31 wait in sync_block \(32 of 64 threads have arrived\)"
        r"(.|\n)*threads 32-63 have exited",
        outputs=[torch.empty(64)],
    )


def test_divergent_warp():
    caught("divergent_warp", "while other lanes of the warp are at", outputs=[torch.empty(32)])


def test_endless_wait():
    caught("endless_wait", "deadlock", inouts=[torch.zeros(1, dtype=torch.int32)])
