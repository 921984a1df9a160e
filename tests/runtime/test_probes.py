"""The measured limits: all there, all positive, and zero only where there is no instruction.

No test asks how fast a machine is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest
import torch

from weft import _C

DOTS_16_AND_8_BIT = {"avx512_bf16"}  # the levels that have these instructions


@pytest.fixture
def restored() -> Iterator[None]:
    before = _C.isa_level()
    yield
    _C.force_isa(before)


def test_memory_bandwidth():
    rates = _C.memory_bandwidth(torch.get_num_threads())
    assert set(rates) == {"read", "copy", "touch_small_pages", "touch_huge_pages"}
    # Between a megabyte and a petabyte per second: no unit is wrong by a factor of a thousand.
    assert all(1e6 < rate < 1e15 for rate in rates.values()), rates


@pytest.mark.parametrize("level", [name for name, here in _C.isa_levels().items() if here])
def test_peaks_by_level(level: str, restored: None):
    _C.force_isa(level)
    rates = _C.peaks(1)
    assert set(rates) == {"fp32", "bf16", "int8"}
    assert 1e6 < rates["fp32"] < 1e15
    for kind in ("bf16", "int8"):
        assert (rates[kind] > 0) is (level in DOTS_16_AND_8_BIT)
        assert math.isfinite(rates[kind])


def test_fork_join():
    assert 0 < _C.fork_join(torch.get_num_threads()) < 1


@pytest.mark.parametrize("probe", [_C.memory_bandwidth, _C.peaks, _C.fork_join])
@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_threads_that_are_not_there(probe, threads: int):
    with pytest.raises(RuntimeError) as error:
        probe(threads)
    assert str(error.value) == (
        f"weft: a probe cannot run on {threads} threads, expected 1 to "
        f"{torch.get_num_threads()} (torch.get_num_threads())"
    )


def test_the_number_of_threads_is_torchs(threads: None):
    torch.set_num_threads(1)
    assert _C.fork_join(1) > 0
    with pytest.raises(RuntimeError, match=r"on 2 threads, expected 1 to 1 "):
        _C.fork_join(2)


def test_stream_read() -> None:
    memory = torch.zeros(3 * 4096, dtype=torch.uint8)
    begin = -(-memory.data_ptr() // 4096) * 4096
    _C.stream_read(begin, 2 * 4096, torch.get_num_threads())
    for arguments in [(begin + 1, 4096), (begin, 9)]:
        with pytest.raises(RuntimeError, match="stream_read takes whole blocks of 4096 bytes"):
            _C.stream_read(*arguments, 1)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_operations_take_the_time_that_the_peak_says(kind: str) -> None:
    """Within wide bounds: others may have the machine now and then."""
    peak = _C.peaks(1)[kind]
    if not peak:
        with pytest.raises(RuntimeError, match=f"run_operations has no {kind}"):
            _C.run_operations(kind, 1, 1)
        return
    _C.run_operations(kind, 1, 1)
    start = time.perf_counter()
    _C.run_operations(kind, 0.02 * peak, 1)
    assert 0.002 < time.perf_counter() - start < 2


def test_unknown_operations_are_refused() -> None:
    with pytest.raises(RuntimeError, match="run_operations has no fp4 at this level"):
        _C.run_operations("fp4", 1, 1)


def test_stream_copy() -> None:
    """Every block by some thread; nothing around them."""
    block = 4096
    memory = torch.zeros(2, 10 * block, dtype=torch.uint8)
    source, target = (-(-row.data_ptr() // block) * block for row in memory)
    offset = source - memory[0].data_ptr(), target - memory[1].data_ptr()
    memory[0].random_()
    _C.stream_copy(target, source, 7 * block, torch.get_num_threads())
    copied = memory[1, offset[1] : offset[1] + 7 * block]
    assert torch.equal(copied, memory[0, offset[0] : offset[0] + 7 * block])
    assert not memory[1, offset[1] + 7 * block :].any()
    for arguments in [
        (target + 1, source, block),
        (target, source + 64, block),
        (target, source, 9),
    ]:
        with pytest.raises(RuntimeError, match="whole blocks of 4096 bytes"):
            _C.stream_copy(*arguments, 1)
