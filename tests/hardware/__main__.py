"""The hardware ledger's commands.

    python -m tests.hardware status    what has changed since it passed on a GPU
    python -m tests.hardware run       runs the whole GPU suite here
    python -m tests.hardware record    the same; if it passes, writes that down

The suite is all tests that run on a GPU, and some of them again under compute-sanitizer, where the
CUDA toolkit has brought it. It needs a GPU and the CUDA library, takes no shortcuts and has no
options. `record` wants weft as it was built in this tree: which sources an installed one is of,
nobody knows.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from .ledger import LEDGER, ROOT, Ledger, Pass, sources

PARTS = ("tests/norm", "tests/attention", "tests/int8", "tests/comm", "tests/gpu")
"""All of them must have tests that pass: a part that cannot run is not passed over."""

TESTS = (*PARTS, "--backend", "cuda")
SUITE = (*TESTS, "-m", "")

MEMCHECK = ("--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "1")
"""What stands in no order is found by the simulator, which knows asynchronous
copies and their barriers."""

SANITIZED = (
    *TESTS,
    "--sample",
    "29",
    "-k",
    "not compile and not graph and not processes and not dies",
)

Counts = dict[str, Counter[str]]
"""Tests by part, and by what became of them."""


def status() -> int:
    """0 where every source stands as it passed, else 1."""
    ledger, current = Ledger.read(), sources()
    width = max(map(len, current))
    states = {name: ledger.state(name, now) for name, now in current.items()}
    for name, state in states.items():
        line = f"{name:{width}}  {state}"
        if state != "never":
            seen = ledger.passes[ledger.pass_of[name]]
            line += f"  ({seen.gpu}, driver {seen.driver}, torch {seen.torch}, {seen.date})"
        print(line)
    counts = [list(states.values()).count(state) for state in ("passed", "changed", "never")]
    print("{} as they passed on a GPU, {} changed since, {} never passed".format(*counts))
    return 0 if counts[0] == len(states) else 1


def why_not(to_record: bool) -> str:
    """Why the suite cannot run, or be recorded, here; empty if it can."""
    import torch

    import weft._library

    if not torch.cuda.is_available():
        return "There is no GPU here: nothing to run."
    if weft._library.why_no_cuda is not None:
        return f"There is no CUDA library here: {weft._library.why_no_cuda}."
    if to_record and ROOT not in Path(weft.__file__).resolve().parents:
        return (
            f"Not to be recorded: weft was not built here, it lies in {Path(weft.__file__).parent}."
        )
    return ""


def run(to_record: bool = False) -> int:
    """0 if all has passed."""
    if reason := why_not(to_record):
        print(reason)
        return 1
    before = sources()
    code, counts = pytest_counts(SUITE)
    checked: Counts = {}
    sanitizer = find_sanitizer()
    if sanitizer:  # torch would keep memory for later calls, and hide who reads beyond a tensor
        more, checked = pytest_counts(
            SANITIZED, (sanitizer, *MEMCHECK), PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
        code = code or more
    print(table(counts, checked))
    if not sanitizer:
        print("There is no compute-sanitizer here.")
    missing = [part for part in PARTS if not counts.get(part, Counter())["passed"]]
    if code != 0 or missing:
        print(f"Not passed: pytest ended with {code}; parts in which nothing passed: {missing}.")
        return 1
    if not to_record:
        return 0
    if sources() != before:
        print("Not recorded: sources changed while the tests ran.")
        return 1
    ledger = Ledger.read()
    ledger.record(_describe(total(counts), total(checked)), before)
    ledger.write()
    print(f"Recorded in {LEDGER.relative_to(ROOT)}: {ledger.passes[-1]}")
    return 0


def record() -> int:
    return run(to_record=True)


def pytest_counts(
    arguments: Sequence[str], under: Sequence[str] = (), **environment: str
) -> tuple[int, Counts]:
    """Runs pytest, under another program perhaps: its exit status, and what it reports."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*under, sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
        code = subprocess.call(command, cwd=ROOT, env={**os.environ, **environment})
        return code, count(report) if report.exists() else {}


def count(report: Path) -> Counts:
    """Of a JUnit report."""
    counts: Counts = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("classname", "").replace(".", "/")
        part = next((p for p in PARTS if name.startswith((p, p.partition("/")[2]))), name)
        verdicts = {child.tag for child in case}
        verdict = "skipped" if "skipped" in verdicts else "passed"
        if verdicts & {"failure", "error"}:
            verdict = "failed"
        counts.setdefault(part, Counter())[verdict] += 1
    return counts


def total(counts: Counts) -> Counter[str]:
    return sum(counts.values(), Counter())


def find_sanitizer() -> str | None:
    """compute-sanitizer: on PATH, or where the toolkit is."""
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    homes = [os.environ.get("CUDA_HOME", "/usr/local/cuda")]
    homes += [str(Path(nvcc).resolve().parents[1])] if nvcc else []
    places = [None, *(f"{home}/bin" for home in homes)]
    found = (shutil.which("compute-sanitizer", path=place) for place in places)
    return next(filter(None, found), None)


def table(counts: Counts, checked: Counts) -> str:
    """A line a part: the suite, and what of it has run under compute-sanitizer."""
    row = "{:16}{:>9}{:>9}{:>9}{:>9}{:>9}".format
    lines = [row("", "", "", "", "under compute-sanitizer", "").rstrip()]
    lines.append(row("", "passed", "failed", "skipped", "passed", "failed"))
    for part in dict.fromkeys((*PARTS, *counts, *checked)):
        all_, some = counts.get(part, Counter()), checked.get(part, Counter())
        lines.append(
            row(
                part,
                *(all_[v] for v in ("passed", "failed", "skipped")),
                some["passed"],
                some["failed"],
            )
        )
    return "\n".join(lines)


def _describe(counts: Counter[str], checked: Counter[str]) -> Pass:
    import torch

    device = torch.cuda.get_device_properties(0)
    return Pass(
        gpu=device.name,
        capability=f"{device.major}.{device.minor}",
        driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        torch=torch.__version__,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        commit=_output("git", "rev-parse", "--short=12", "HEAD"),
        passed=counts["passed"],
        skipped=counts["skipped"],
        sanitized=checked["passed"],
    )


def _output(*command: str) -> str:
    """The first line that a command prints; `unknown` where it cannot run."""
    try:
        text = subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return text.strip().partition("\n")[0]


def main(arguments: list[str] | None = None) -> int:
    commands = {"status": status, "run": run, "record": record}
    parser = argparse.ArgumentParser(
        "python -m tests.hardware", description="The ledger of what has passed on a real GPU."
    )
    parser.add_argument("command", choices=commands)
    return commands[parser.parse_args(arguments).command]()


if __name__ == "__main__":
    raise SystemExit(main())
