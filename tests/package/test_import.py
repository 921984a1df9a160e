"""`import weft` brings weft and torch, and nothing that only some users have or want."""

from __future__ import annotations

import subprocess
import sys

IMPORT = """
import sys, torch
before = set(sys.modules)
import weft
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_import_brings_no_third_party_module():
    command = [sys.executable, "-c", IMPORT]
    new = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "weft" in new
    assert set(new) - sys.stdlib_module_names <= {"weft", "torch"}


def test_import_starts_no_threads_and_prints_nothing():
    probe = "import torch, threading, weft; assert threading.active_count() == 1"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
