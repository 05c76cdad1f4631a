"""What ``deployments.bench_day`` saw, as tables."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from deployments.bench_growth import MIB, Lived, Sample, Seen, bounds, daily, line

# a kind or a table that grows by less than this in a day is not told of
LEAST: Final = 20_000


def printed(lived: Lived) -> None:
    """Print everything."""
    console = Console(highlight=False, width=140)
    console.print(
        f"\n{lived.hours:g} simulated hours in {lived.seconds:,.0f} s: "
        f"{3600 * lived.hours / lived.seconds:.0f} times as fast as time"
    )
    console.print(_runs(lived.ran))
    bad = [one for one in lived.ran if one.late]
    console.print(f"{len(lived.ran):,} runs, {len(bad)} of them late (not begun after 15 s) or never begun")
    console.print(_memory("Memory, MiB, with nothing at work", lived.samples, lived.peak))
    if len(lived.quiet) > 2:
        console.print(_memory("Memory, MiB, doing nothing afterwards", lived.quiet, {}))
        console.print(_sizes("On disk, MiB, doing nothing", [*lived.quiet, lived.quiet[-1]]))
    console.print(_sizes("On disk, MiB", [*lived.samples, lived.after]))
    for name in lived.samples[0].tables:
        console.print(_tables(name, [*lived.samples, lived.after]))
    console.print(_bounds(lived.samples))
    console.print(_vacuumed(lived.vacuumed))


def _runs(ran: Sequence[Seen]) -> Table:
    table = _table("Runs", "deployment", "runs", "states", "waited, s", "most", "took, s", "most")
    for name in sorted({one.deployment for one in ran}):
        mine = [one for one in ran if one.deployment == name]
        states = ", ".join(f"{count} {state}" for state, count in Counter(one.state for one in mine).most_common())
        waited = [one.waited for one in mine if one.waited is not None]
        took = [one.took for one in mine if one.took is not None]
        table.add_row(name, str(len(mine)), states, *_middle(waited), *_middle(took))
    return table


def _middle(seconds: Sequence[float]) -> tuple[str, str]:
    return (f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("-", "-")


def _memory(title: str, samples: Sequence[Sample], peak: dict[str, float]) -> Table:
    """First, middle and last sample, and a straight line through all but the first, in which things settle."""
    table = _table(title, "process", "first", "second", "middle", "last", "peak at work", "MiB an hour")
    rows = [one.memory | {"all": sum(one.memory.values())} for one in samples]
    names = dict.fromkeys(name for one in rows for name in one)
    for name in names:
        values = [one.get(name, 0.0) for one in rows]
        settled = [one.hour for one in samples][1:]
        trend = "-"
        if len(settled) > 2:
            fit = line(settled, values[1:])
            trend = f"{fit.slope:+.2f} +- {fit.error:.2f}"
        shown = (values[0], values[1], values[len(values) // 2], values[-1])
        most = f"{peak[name]:,.0f}" if name in peak else ""
        table.add_row(name, *(f"{value:,.1f}" for value in shown), most, trend)
    return table


def _sizes(title: str, samples: Sequence[Sample]) -> Table:
    return _grown(title, [(one.hour, one.sizes) for one in samples], 0)


def _tables(database: str, samples: Sequence[Sample]) -> Table:
    return _grown(f"{database}, by table, MiB", [(one.hour, one.tables[database]) for one in samples], LEAST)


def _grown(title: str, told: Sequence[tuple[float, dict[str, int]]], least: int) -> Table:
    """The last is after maintenance, and tells of no growth."""
    table = _table(title, "kind", "begin", "then", "end", "a day", "after maintain")
    for name, rate in sorted(daily(told[:-1]).items(), key=lambda one: -one[1]):
        if abs(rate) >= least:
            begin, then, end, after = (told[at][1].get(name, 0) / MIB for at in (0, 1, -2, -1))
            table.add_row(
                name, *(f"{value:,.2f}" for value in (begin, then, end)), f"{rate / MIB:+,.2f}", f"{after:,.2f}"
            )
    return table


def _bounds(samples: Sequence[Sample]) -> Table:
    """Growth a day times the days that it is kept."""
    table = _table("What bounds it, with the default retention", "what", "MiB a day", "days", "MiB in the end", "by")
    grown = {name: daily([(one.hour, one.tables[name]) for one in samples]) for name in samples[0].tables}
    files = daily([(one.hour, one.sizes) for one in samples])
    grown["files"] = {kind: rate for kind, rate in files.items() if kind not in grown}
    total = 0.0
    for one in sorted(bounds(grown), key=lambda one: -one.growth):
        if one.growth >= LEAST and not one.what.endswith("(free)"):
            steady = "no end" if one.steady is None else f"{one.steady / MIB:,.0f}"
            total += one.steady or 0.0
            days = "-" if one.days is None else f"{one.days:g}"
            table.add_row(one.what, f"{one.growth / MIB:,.2f}", days, steady, one.by)
    table.caption = f"{total / MIB:,.0f} MiB of what has an end"
    return table


def _vacuumed(found: dict[str, tuple[int, int]]) -> Table:
    table = _table("Prefect's vacuum, everything aged beyond its retention: rows", "table", "before", "after")
    for name, (before, after) in found.items():
        table.add_row(name, f"{before:,}", f"{after:,}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if not number or column in ("states", "by") else "right")
    return table
