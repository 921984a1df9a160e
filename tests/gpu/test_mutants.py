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


def test_unordered_sum():
    caught(
        "unordered_sum",
        "race: .* in no order have no one sum",
        inputs=[torch.randn(32)],
        inouts=[torch.zeros(1)],
    )


# Kernels in which a mistake takes one line away, by their number in kernels/mutants.h.
KERNELS = [
    "neighbours",
    "reused_tile",
    "warp_tile",
    "flag",
    "unawaited_copy",
    "bulk_stage",
    "bulk_store",
    "cluster_visit",
    "cluster_exit",
    "dependent",
    "fenced_flag",
    "cluster_message",
    "ordered_sum",
]


def run_mutant(mistake: str, kernel: str) -> torch.Tensor:
    x, y = torch.randn(1280), torch.empty(256)
    flags = torch.zeros(2, dtype=torch.int32)
    run(mistake, [x], [y, torch.empty(256)], [flags], [KERNELS.index(kernel)], partly=True)
    return y


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_a_mistake(kernel: str):
    run_mutant("correct", kernel)


RACE = "race: .* not ordered with"


@pytest.mark.parametrize(
    "mistake, kernel, message",
    [
        ("no_barrier", "neighbours", f"{RACE}|not been written"),
        ("early_reuse", "reused_tile", RACE),
        ("no_barrier", "warp_tile", f"{RACE}|not been written"),
        ("no_release", "flag", RACE),
        ("narrow_scope", "flag", RACE),
        ("no_fence", "fenced_flag", RACE),
        ("no_wait", "fenced_flag", RACE),
        ("no_wait", "unawaited_copy", f"{RACE} a write by a copy_async|being written by a copy"),
        ("wrong_phase", "bulk_stage", f"{RACE} a write by a bulk_load|being written by a copy"),
        # Or others never see the phase that the second load ends.
        ("early_reuse", "bulk_stage", f"{RACE} a read by thread|being written|deadlock"),
        ("no_fence_init", "bulk_stage", "initialised without fence_mbarrier_init"),
        ("few_bytes", "bulk_stage", "deadlock(.|\n)*mbarrier_wait"),
        ("no_fence", "bulk_store", f"{RACE} a write .*(\n.*)*no fence_async"),
        ("no_barrier", "bulk_store", f"{RACE} a write by thread|not been written"),
        (
            "early_reuse",
            "bulk_store",
            f"{RACE} a read by a bulk_store|race: read .* by a bulk_store",
        ),
        ("early_exit", "bulk_store", "the block ends while a bulk_store"),
        ("early_start", "cluster_visit", "may not have begun"),
        ("no_barrier", "cluster_visit", f"{RACE}|not been written|the block ends while"),
        ("narrow_scope", "cluster_message", RACE),
        ("early_exit", "cluster_exit", "the block ends while|which has ended"),
        ("no_wait", "dependent", "without wait_for_prerequisites"),
        ("no_wait", "ordered_sum", f"{RACE}|not been written"),
        ("no_acquire", "ordered_sum", RACE),
        ("no_release", "ordered_sum", RACE),
        ("narrow_scope", "ordered_sum", RACE),
        ("no_fence", "ordered_sum", f"{RACE} .*(\n.*)*no fence_async_global"),
        # Whoever comes next may add before the copy has.
        ("early_exit", "ordered_sum", RACE),
        (
            "wrong_order",
            "ordered_sum",
            r"deadlock\n  \d+ of 40 blocks have not begun: there is room for 4 at a time",
        ),
    ],
)
def test_mistakes_in_order(mistake: str, kernel: str, message: str):
    with pytest.raises(RuntimeError, match=message) as error:
        run_mutant(mistake, kernel)
    assert f"::{kernel}_kernel<" in str(error.value)
    assert "mutants.h:" in str(error.value)


def test_stale_cache():
    caught("stale_cache", "Cache::read_only, which this kernel", outputs=[torch.empty(128)])


def test_greedy_registers():
    caught(
        "greedy_registers",
        r"deadlock(.|\n)*wait in increase_registers",
        outputs=[torch.empty(384, dtype=torch.int32)],
    )
