"""The hardware ledger's commands.

    python -m tests.hardware status    what has changed since it passed on a GPU
    python -m tests.hardware record    runs the whole GPU suite here; if it passes, writes that down

`record` needs a GPU, the CUDA library, and nothing else; it takes no shortcuts and has no options.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from .ledger import LEDGER, ROOT, Ledger, Pass, sources

PARTS = ("tests/norm", "tests/attention", "tests/int8", "tests/gpu")
"""All of them must have tests that pass: a part that cannot run is not passed over."""

SUITE = [*PARTS, "--backend", "cuda", "-m", ""]


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


def record() -> int:
    import torch

    import weft._library

    if not torch.cuda.is_available():
        print("There is no GPU here: nothing to record.")
        return 1
    if weft._library.why_no_cuda is not None:
        print(f"There is no CUDA library here: {weft._library.why_no_cuda}.")
        return 1
    before = sources()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *SUITE]
        code = subprocess.call(command, cwd=ROOT)
        passed, other = count(report) if report.exists() else ({}, {})
    missing = [part for part in PARTS if not passed.get(part)]
    if code != 0 or missing or "failure" in other or "error" in other:
        print(f"Not recorded: pytest ended with {code}; passed: {passed}; else: {other}.")
        return 1
    if sources() != before:
        print("Not recorded: sources changed while the tests ran.")
        return 1
    ledger = Ledger.read()
    ledger.record(_describe(sum(passed.values()), other.get("skipped", 0)), before)
    ledger.write()
    print(f"Recorded in {LEDGER.relative_to(ROOT)}: {ledger.passes[-1]}")
    return 0


def count(report: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Of a JUnit report: tests that passed, by part; and the others, by what became of them."""
    passed: dict[str, int] = {}
    other: dict[str, int] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("classname", "").replace(".", "/")
        part = next((p for p in PARTS if name.startswith((p, p.partition("/")[2]))), name)
        verdicts = {child.tag for child in case} & {"failure", "error", "skipped"}
        if not verdicts:
            passed[part] = passed.get(part, 0) + 1
        for verdict in verdicts:
            other[verdict] = other.get(verdict, 0) + 1
    return passed, other


def _describe(passed: int, skipped: int) -> Pass:
    import torch

    device = torch.cuda.get_device_properties(0)
    return Pass(
        gpu=device.name,
        capability=f"{device.major}.{device.minor}",
        driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        torch=torch.__version__,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        commit=_output("git", "rev-parse", "--short=12", "HEAD"),
        passed=passed,
        skipped=skipped,
    )


def _output(*command: str) -> str:
    """The first line that a command prints; `unknown` where it cannot run."""
    try:
        text = subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return text.strip().partition("\n")[0]


def main(arguments: list[str] | None = None) -> int:
    commands = {"status": status, "record": record}
    parser = argparse.ArgumentParser(
        "python -m tests.hardware", description="The ledger of what has passed on a real GPU."
    )
    parser.add_argument("command", choices=commands)
    return commands[parser.parse_args(arguments).command]()


if __name__ == "__main__":
    raise SystemExit(main())
