"""Leaving weft's kernels is logged once for each reason, and counted every time."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

import weft
from weft import _fallback


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    before = _fallback._counts.copy()
    yield
    _fallback._counts.clear()
    _fallback._counts.update(before)


def test_counted_every_time_and_logged_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="weft"):
        for _ in range(3):
            _fallback.note("some_op", "a reason")
        _fallback.note("some_op", "another reason")
    assert weft.fallbacks()["some_op: a reason"] == 3
    assert weft.fallbacks()["some_op: another reason"] == 1
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("weft", "weft.some_op runs in plain PyTorch: a reason"),
        ("weft", "weft.some_op runs in plain PyTorch: another reason"),
    ]


def test_what_is_returned_is_a_copy():
    weft.fallbacks()["some_op: a reason"] = 7
    assert "some_op: a reason" not in weft.fallbacks()
