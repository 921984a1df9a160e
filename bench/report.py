"""Tables: for the terminal (rich) and for documents (Markdown), from the same cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bench.goals import Verdict
from bench.limits import Limits
from bench.result import WEFT, Result, Row, Timed
from bench.units import duration, rate

ABSENT = "–"
MARK = {True: "✓", False: "✗", None: "?"}
STYLE = {True: "green", False: "red", None: "yellow"}


class Notes:
    """Footnotes: each text gets one number, in order of first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        return f" [{self._numbers.setdefault(text, len(self._numbers) + 1)}]"

    def lines(self) -> list[str]:
        return [f"{number}. {text}" for text, number in self._numbers.items()]


class NoNotes(Notes):
    """For a table that stands alone."""

    def mark(self, text: str) -> str:
        return ""


def contenders(rows: Iterable[Row]) -> list[str]:
    """weft, then its peers in the order in which they appear; yardsticks have no column."""
    names: dict[str, None] = {WEFT: None}
    for row in rows:
        names.update(dict.fromkeys(n for n, t in row.times.items() if t.competes))
        names.update(dict.fromkeys(row.absent))
    return list(names)


def headings(peers: Sequence[str]) -> list[str]:
    return ["case", "memory", *peers, "× best peer", "rate", "of limit"]


def cells(row: Row, peers: Sequence[str], notes: Notes) -> list[str]:
    """One row as text. The fastest contender is not marked: the ratio says it."""
    return [
        label(row),
        row.memory,
        *(_time(row, peer, notes) for peer in peers),
        ABSENT if row.speedup is None else f"{row.speedup:.2f}",
        _rate(row),
        ABSENT if row.share is None else f"{row.share:.0%}",
    ]


def label(row: Row) -> str:
    return f"{row.op} {'×'.join(map(str, row.shape))} {row.dtype}"


GOAL_HEADINGS = ["case", "memory", "goal", "measured", ""]


def goal_cells(row: Row, verdict: Verdict) -> list[str]:
    return [label(row), row.memory, verdict.goal, verdict.measured, MARK[verdict.reached]]


def _time(row: Row, peer: str, notes: Notes) -> str:
    if peer in row.times:
        timed = row.times[peer]
        return _spread(timed) + (notes.mark(f"{peer}: {timed.variant}") if timed.variant else "")
    reason = row.absent.get(peer)
    return ABSENT + notes.mark(f"{peer}: {reason}") if reason else ABSENT


def _spread(timed: Timed) -> str:
    """The median and half the interquartile range in per cent of it."""
    s = timed.spread
    return f"{duration(s.median)} ±{(s.q3 - s.q1) / 2 / s.median:.0%}"


def _rate(row: Row) -> str:
    if row.operations is None or row.bandwidth is None:
        return ABSENT
    return f"{rate(row.operations)} GFLOP/s" if row.computes else f"{rate(row.bandwidth)} GB/s"


def score(rows: Iterable[Row]) -> str:
    """How many goals are reached, counting a time and its share on this machine separately."""
    judged = [v.reached for row in rows for v in row.verdicts if v.reached is not None]
    return f"{sum(judged)} of {len(judged)} goals reached"


def limits_line(limits: Limits) -> str:
    line = f"copy {rate(limits.copy)} GB/s"
    if limits.read:
        line += f", read {rate(limits.read)} GB/s"
    if limits.new_small_pages:
        line += (
            f", new pages {rate(limits.new_small_pages)} GB/s (4 KiB) and "
            f"{rate(limits.new_huge_pages)} GB/s (huge)"
        )
    peaks = {"fp32": limits.fp32, "bf16 dot": limits.bf16, "int8": limits.int8}
    known = [f"{name} {peak / 1e9:.0f} Gop/s" for name, peak in peaks.items() if peak]
    return "; ".join([line, ", ".join(known)]) if known else line


def terminal(result: Result) -> list[RenderableType]:
    """The table of times with its footnotes, and the table of goals."""
    peers, notes = contenders(result.rows), Notes()
    times = _table(f"{result.family}: times", headings(peers), left=2)
    for row in result.rows:
        times.add_row(*map(Text, cells(row, peers, notes)))
    shown: list[RenderableType] = [times, "\n".join(notes.lines())]
    if any(row.verdicts for row in result.rows):
        goals = _table(f"{result.family}: {score(result.rows)}", GOAL_HEADINGS, left=5)
        for row in result.rows:
            for v in row.verdicts:
                goals.add_row(*map(Text, goal_cells(row, v)), style=STYLE[v.reached])
        shown.append(goals)
    return shown


def _table(title: str, heads: Sequence[str], left: int) -> Table:
    """The first ``left`` columns aligned to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(heads):
        table.add_column(heading, justify="left" if i < left else "right")
    return table


def markdown(result: Result) -> str:
    """The whole result as a document: machine, limits, times, footnotes, goals."""
    peers, notes = contenders(result.rows), Notes()
    times = markdown_table(headings(peers), [cells(row, peers, notes) for row in result.rows])
    goals = [goal_cells(row, v) for row in result.rows for v in row.verdicts]
    parts = [
        f"# {result.family}",
        about(result),
        f"## Times\n\n{times}",
        "\n".join(notes.lines()),
        f"Times are medians of {result.settings['rounds']} interleaved rounds, ± half the "
        "interquartile range. `× best peer` is the fastest peer's time over weft's. `rate` is "
        "the arithmetic, or the bytes that must move, over weft's time. `of limit` is the least "
        "time over weft's: that of as many operations at the peak, of reading or of copying as "
        "many bytes, timed in turn with the contenders; into new pages what the bandwidths above "
        "allow; rows without it stay in cache. Memory: `fresh`, every output on new pages; "
        "`reused`, the allocator keeps memory (`weft.reuse_memory()`, for the peers too); `out=`, "
        "results into given tensors.",
    ]
    if goals:
        parts.append(
            f"## Goals\n\n{score(result.rows)}. The times were set on another machine; the share "
            "of the limit below each is what it came to there.\n\n"
            f"{markdown_table(GOAL_HEADINGS, goals)}"
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def times_table(result: Result) -> str:
    """The times alone; `–` without the reasons."""
    peers = contenders(result.rows)
    rows = [cells(row, peers, NoNotes()) for row in result.rows]
    return markdown_table(headings(peers), rows) + "\n"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (heads, ["---"] * len(heads), *rows)
    return "\n".join("| " + " | ".join(v.replace("|", "\\|") for v in r) + " |" for r in lines)


def about(result: Result) -> str:
    """Machine, software and limits."""
    m = result.machine
    packages = ", ".join(f"{name} {version}" for name, version in m["packages"].items())
    gpu = [f"{m['gpu']}, driver {m['driver']}, CUDA {m['cuda']}."] if m.get("gpu") else []
    lines = [
        *gpu,
        f"{m['cpu']}, {m['cores']} cores ({m['threads']} threads used), {m['memory_gib']} GiB, "
        f"weft level {m['isa']}, torch level {m['torch_isa']}.",
        f"Python {m['python']}, {packages}; {m['kernel']}, huge pages {m['huge_pages']}.",
        f"Commit {m['commit']}, {m['date']}.",
        f"Limits in this run: {limits_line(result.limits)}.",
    ]
    return "  \n".join(lines)
