"""The command line; see ``python -m bench --help``."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
except ImportError:
    sys.exit("The benchmark needs more packages: pip install 'weft[bench]'")

from bench import machine, report, runner
from bench.case import Family
from bench.device import DEVICES
from bench.limits import Limits
from bench.memory import MemoryModeUnavailable, Mode, can_give_back
from bench.result import Result

FAMILIES = ("norm", "attention", "int8", "comm")
MODES: dict[str, tuple[Mode, ...]] = {
    "fresh": ("fresh",), "reused": ("reused",), "both": ("fresh", "reused"),
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["render"]:
        return render(arguments[1:])
    options = _parser().parse_args(arguments)
    families = [options.family] if options.family else list(FAMILIES)
    if options.tune and families != ["comm"]:
        sys.exit("--tune is of comm: python -m bench comm --tune")
    if len(families) > 1 and options.json:
        sys.exit("--json names one file: name one family with it")
    console = Console(width=None if sys.stdout.isatty() else 160)
    return max(bench(family, options, console) for family in families)


def render(arguments: Sequence[str]) -> int:
    """Prints a stored result as Markdown, so that no table in a document is typed by hand."""
    parser = argparse.ArgumentParser("python -m bench render", description=render.__doc__)
    parser.add_argument("result", type=Path, help="a JSON file written by --json or --save")
    parser.add_argument("--case", default="*", metavar="GLOB", help="only rows of these cases")
    parser.add_argument("--table", action="store_true", help="the table of times alone")
    options = parser.parse_args(arguments)
    result = Result.load(options.result)
    rows = [row for row in result.rows if fnmatch.fnmatch(row.case, options.case)]
    chosen = Result(result.family, result.machine, result.settings, result.limits, rows)
    text = report.times_table(chosen) if options.table else report.markdown(chosen)
    sys.stdout.write(text)
    return 0


def bench(name: str, options: argparse.Namespace, console: Console) -> int:
    """Runs one family and reports. 1 if weft is missing from a row, else 0."""
    if name == "comm":  # its contenders run in processes of their own
        from bench import comm

        return comm.bench(options, console, RESULTS)
    family = cast(Family, importlib.import_module(f"bench.{name}"))
    if options.device == "cuda" and not torch.cuda.is_available():
        console.print("There is no GPU here.")
        return 1
    on_offer = (family.sweep if options.sweep else family.cases)(options.device)
    if not on_offer:
        what = "sweep" if options.sweep else "cases"
        console.print(f"{name} has no {what} on {options.device}.")
        return 0
    cases = [c for c in on_offer if fnmatch.fnmatch(c.name, options.case)]
    if options.quick:
        cases = list({c.name: c for c in map(family.shrink, cases)}.values())
    if not cases:
        console.print(f"No case of {name} matches {options.case!r}.")
        return 1
    settings = _settings(options)
    about = machine.describe(settings.threads, settings.device)
    before = _limits(settings, console)
    where = about.gpu or f"{about.cpu}, {settings.threads} threads"
    console.print(f"[bold]{where}[/]: {report.limits_line(before)}")
    if "fresh" in settings.modes and not can_give_back():
        console.print("This C library has no malloc_trim: `fresh` is as the allocator has it.")

    measurements = _run(family, cases, settings, console)
    limits = before.at_best(_limits(settings, console))
    rows = [measurement.row(limits) for measurement in measurements]
    name += "-sweep" if options.sweep else ""
    result = Result(name, about.to_json(), asdict(settings), limits, rows)
    console.print(*report.terminal(result), sep="\n\n", markup=False)
    if options.save:
        folder = RESULTS / about.slug
        result.save(folder / f"{name}.json")
        (folder / f"{name}.md").write_text(report.markdown(result))
        options.plots = options.plots or folder
        console.print(f"Saved under {folder}")
    if options.json:
        result.save(options.json)
    if options.plots:
        from bench.plots import save_plots, save_sweep

        for path in (save_sweep if options.sweep else save_plots)(result, options.plots):
            console.print(f"Plotted {path}")
    without = [row.case for row in rows if row.weft is None]
    if without:
        console.print(f"weft has no time for: {', '.join(without)}", style="red")
    return 1 if without else 0


def _run(
    family: Family, cases: Sequence, settings: runner.Settings, console: Console
) -> list[runner.Measurement]:
    todo = runner.jobs(cases, settings.modes)
    found: list[runner.Measurement] = []
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        # No automatic refresh: its thread would run inside the measurements.
        task = progress.add_task("", total=len(todo))

        def announce(job: runner.Job) -> None:
            now = f"{job.case.name} ({job.memory})"
            progress.update(task, description=now, refresh=True)
            if not console.is_terminal:  # no bar there: a line a row, for logs
                print(f"{len(found) + 1}/{len(todo)} {now}", file=sys.stderr, flush=True)

        try:
            for measurement in runner.run(family, todo, settings, announce=announce):
                found.append(measurement)
                progress.update(task, advance=1, refresh=True)
        except MemoryModeUnavailable as error:
            console.print(f"Rows with reused memory are left out: {error}.", style="yellow")
    return found


def _limits(settings: runner.Settings, console: Console) -> Limits:
    with console.status("Measuring the limits of this machine …"):
        return DEVICES[settings.device].limits(settings.threads, settings.quick)


def _settings(options: argparse.Namespace) -> runner.Settings:
    quick, device = options.quick, DEVICES[options.device]
    return runner.Settings(
        rounds=options.rounds or (3 if quick else 5 if options.sweep else 15),
        threads=options.threads or torch.get_num_threads(),
        modes=tuple(m for m in MODES[options.memory] if m in device.modes) or device.modes,
        rest=0.0 if quick else device.rest,
        sample=1e-4 if quick else 1e-2,
        cache=0 if quick else device.cache(),
        quick=quick,
        device=device.name,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench",
        description="Measures weft beside its peers and beside the limits of the machine.",
        epilog="python -m bench render RESULT.json prints a stored result as Markdown.",
    )
    parser.add_argument("family", nargs="?", choices=FAMILIES, help="default: all")
    parser.add_argument("--case", default="*", metavar="GLOB", help="cases by name, e.g. '*int8*'")
    parser.add_argument("--sweep", action="store_true", help="cases of growing size instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the plots there")
    parser.add_argument(
        "--save", action="store_true",
        help="write JSON, Markdown and plots to bench/results/<kind of machine>/",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, help="samples per contender; default 15, or 5 with --sweep"
    )
    parser.add_argument("--memory", choices=MODES, default="both", help="default: both")
    parser.add_argument(
        "--tune", action="store_true", help="comm: find the fastest algorithms, for communicators"
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: shows only that it runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
