"""Launches of several streams run side by side, and what they do wrong to each other is found."""

from __future__ import annotations

import pytest
import torch

from .kernel import run

pytestmark = pytest.mark.usefixtures("simulated")


def handshake(name: str = "handshake", launches: int = 2) -> list[torch.Tensor]:
    """Two ranks that exchange values for two rounds a launch; the results of the last."""
    counters = [torch.zeros(1, dtype=torch.int32) for _ in range(4)]
    slots = [torch.empty(64) for _ in range(2)]
    results = [torch.empty(32) for _ in range(2)]
    run(name, [], [*slots, *results], counters, [launches], partly=True)
    assert [int(c) for c in counters] == [2 * launches] * 4
    return results


def expected(launches: int) -> torch.Tensor:
    """The sum over both ranks of their values in the last two rounds."""
    lane = torch.arange(32.0)
    return 2 * (lane + 32 * (2 * launches - 2)) + 2 * (lane + 32 * (2 * launches - 1))


@pytest.mark.parametrize("launches", [1, 2, 7])
def test_ranks_wait_for_each_other(launches: int):
    for result in handshake(launches=launches):
        assert torch.equal(result, expected(launches))


RACE = "race: .* not ordered with"


@pytest.mark.parametrize(
    "mistake, message",
    [
        ("no_release", f"{RACE} a write"),
        ("narrow_scope", f"{RACE} a write"),  # another stream is another GPU
        ("no_fence", f"{RACE} a write"),
        ("no_wait", f"{RACE}|not been written"),
        ("no_barrier", f"{RACE}|not been written"),
        # The next launch takes the counts of the last for news.
        ("wrong_phase", f"{RACE} a (read|write)"),
    ],
)
def test_mistakes(mistake: str, message: str):
    with pytest.raises(RuntimeError, match=message) as error:
        handshake(f"handshake_{mistake}")
    assert "handshake_kernel<" in str(error.value) and "of stream" in str(error.value)
    assert "streams.h:" in str(error.value)


def test_a_slot_that_is_used_again_too_early():
    """A race; or, where the peer has already been told of the next round, the wrong round."""
    try:
        results = handshake("handshake_early_reuse")
    except RuntimeError as error:
        assert "race: " in str(error) and "streams.h:" in str(error)
    else:
        assert not all(torch.equal(result, expected(2)) for result in results)


def test_a_stream_that_waits_for_nobody():
    message = r"deadlock\n  in .*handshake_kernel(.|\n)*wait in memory that it looks at to change"
    with pytest.raises(RuntimeError, match=message):
        handshake("handshake_alone")


def test_time_passes_when_nothing_else_happens():
    y = torch.empty(32)
    run("deadline", [], [y], [torch.zeros(1, dtype=torch.int32)])
    assert (y == 1).all()
