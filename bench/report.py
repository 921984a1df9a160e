"""Tables: for the terminal (rich) and for documents (Markdown), from the same cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers) + 1)

    def lines(self) -> list[str]:
        return [f"{number}. {text}" for text, number in self._numbers.items()]


def contenders(rows: Iterable[Row]) -> list[str]:
    """weft, then its peers in the order in which they appear; yardsticks have no column."""
    names: dict[str, None] = {WEFT: None}
    for row in rows:
        names.update(dict.fromkeys(n for n, t in row.times.items() if t.competes))
        names.update(dict.fromkeys(row.absent))
    return list(names)


def headings(peers: Sequence[str]) -> list[str]:
    return ["case", "memory", *peers, "× best peer", "GB/s", "of limit", "goals"]


def cells(row: Row, peers: Sequence[str], notes: Notes) -> list[str]:
    """One row as text. The fastest contender is not marked: the ratio says it."""
    return [
        f"{row.op} {'×'.join(map(str, row.shape))} {row.dtype}",
        row.memory,
        *(_time(row, peer, notes) for peer in peers),
        ABSENT if row.speedup is None else f"{row.speedup:.2f}",
        ABSENT if row.bandwidth is None else rate(row.bandwidth),
        ABSENT if row.share is None else f"{row.share:.0%}",
        "; ".join(map(verdict, row.verdicts)),
    ]


def _time(row: Row, peer: str, notes: Notes) -> str:
    if peer in row.times:
        return _spread(row.times[peer])
    reason = row.absent.get(peer)
    return f"{ABSENT} [{notes.number(f'{peer}: {reason}')}]" if reason else ABSENT


def _spread(timed: Timed) -> str:
    """The median and half the interquartile range in per cent of it."""
    s = timed.spread
    return f"{duration(s.median)} ±{(s.q3 - s.q1) / 2 / s.median:.0%}"


def verdict(v: Verdict) -> str:
    return f"{v.goal}: {v.measured} {MARK[v.reached]}"


def score(rows: Iterable[Row]) -> str:
    """How many goals are reached, counting a time and its share on this machine separately."""
    judged = [v.reached for row in rows for v in row.verdicts if v.reached is not None]
    return f"{sum(judged)} of {len(judged)} goals reached"


def limits_line(limits: Limits) -> str:
    line = (
        f"copy {rate(limits.copy)} GB/s, read {rate(limits.read)} GB/s, "
        f"new pages {rate(limits.new_small_pages)} GB/s (4 KiB) and "
        f"{rate(limits.new_huge_pages)} GB/s (huge)"
    )
    peaks = {"fp32": limits.fp32, "bf16 dot": limits.bf16, "int8": limits.int8}
    known = [f"{name} {peak / 1e9:.0f} Gop/s" for name, peak in peaks.items() if peak]
    return "; ".join([line, ", ".join(known)]) if known else line


def terminal_table(rows: Sequence[Row], title: str) -> tuple[Table, list[str]]:
    """A rich table and its footnotes."""
    peers, notes = contenders(rows), Notes()
    table = Table(title=title, title_justify="left")
    for heading in headings(peers):
        left = heading in ("case", "memory", "goals")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    for row in rows:
        *plain, _ = cells(row, peers, notes)
        goals = Text("\n").join(Text(verdict(v), STYLE[v.reached]) for v in row.verdicts)
        table.add_row(*(Text(cell) for cell in plain), goals)
    return table, notes.lines()


def markdown(result: Result) -> str:
    """The whole result as a document: machine, limits, table, footnotes."""
    peers, notes = contenders(result.rows), Notes()
    heads = headings(peers)
    lines = [_markdown_row(heads), _markdown_row(["---"] * len(heads))]
    lines += [_markdown_row(cells(row, peers, notes)) for row in result.rows]
    parts = [
        f"# {result.family}",
        about(result),
        "\n".join(lines),
        "Times are medians of "
        f"{result.settings['rounds']} interleaved rounds, ± half the interquartile range. "
        "`× best peer` is the fastest peer's time over weft's. `of limit` is the least time that "
        "the bandwidths above allow over weft's time; rows without it stay in cache. "
        "Memory: `fresh`, every output on new pages; `reused`, the allocator keeps memory "
        "(`weft.reuse_memory()`, for the peers too); `out=`, results into given tensors.",
        "\n".join(notes.lines()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def about(result: Result) -> str:
    """Machine, software, limits and score."""
    m = result.machine
    packages = ", ".join(f"{name} {version}" for name, version in m["packages"].items())
    lines = [
        f"{m['cpu']}, {m['cores']} cores ({m['threads']} threads used), {m['memory_gib']} GiB, "
        f"weft level {m['isa']}, torch level {m['torch_isa']}.",
        f"Python {m['python']}, {packages}; {m['kernel']}, huge pages {m['huge_pages']}.",
        f"Commit {m['commit']}, {m['date']}.",
        f"Limits in this run: {limits_line(result.limits)}.",
        f"{score(result.rows)}.",
    ]
    return "  \n".join(lines)


def _markdown_row(values: Iterable[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"
