"""reuse_memory frees torch's own large operations from page faults, and can be undone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import weft
from weft import _C

# In a process of its own: the heap that other tests leave behind has room for anything.
MEASURE = """
import json, resource, threading
import torch, weft

def faults(mebibytes):
    "Page faults of an x + x into a new tensor, once the allocator has settled."
    x = torch.ones(mebibytes << 18)
    for _ in range(12):
        y = x + x
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        y = x + x
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 4

def in_thread(mebibytes):
    result = []
    thread = threading.Thread(target=lambda: result.append(faults(mebibytes)))
    thread.start()
    thread.join()
    return result[0]

report = {"off": faults(64)}
assert weft.reuse_memory() is True
report["on"] = faults(64)
report["in_a_thread"] = in_thread(32)
assert weft.reuse_memory(False) is True
report["off_again"] = faults(64)
print(json.dumps(report))
"""

possible = _C.reuse_memory(_C.reusing_memory())  # asks for what holds already
needs_glibc = pytest.mark.skipif(not possible, reason="malloc is not glibc's here")


@needs_glibc
def test_reuse_memory_saves_page_faults_and_can_be_undone():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True
    )
    faults = json.loads(done.stdout)
    # 64 MiB have 16384 small pages or 32 huge ones; kept memory has no fault but by chance.
    for fresh in ("off", "off_again"):
        assert faults[fresh] >= 32, faults
        assert faults["on"] < faults[fresh] / 8, faults
        assert faults["in_a_thread"] < faults[fresh] / 8, faults


@needs_glibc
def test_the_state_is_told():
    assert not _C.reusing_memory()
    assert weft.reuse_memory() is True
    assert _C.reusing_memory()
    assert weft.reuse_memory(False) is True
    assert not _C.reusing_memory()


@pytest.mark.skipif(possible, reason="malloc is glibc's here")
def test_elsewhere_it_says_that_nothing_happens():
    assert weft.reuse_memory() is False
    assert not _C.reusing_memory()


def test_huge_pages():
    state = _C.huge_pages()
    assert state["mode"] in {"always", "madvise", "never", None}
    assert (state["mode"] is None) is (state["page_bytes"] == 0)
    assert state["process_bytes"] >= 0
