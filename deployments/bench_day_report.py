"""What ``deployments.bench_day`` saw, as tables."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from deployments.bench_growth import MIB, Lived, Sample, Seen, bounds, growth, line

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
        console.print(_sizes("Bytes on disk, doing nothing", lived.quiet[0], lived.quiet[-1]))
    console.print(_sizes("Bytes on disk", lived.samples[0], lived.samples[-1], lived.after))
    for name in lived.samples[0].tables:
        console.print(_tables(name, lived.samples[0], lived.samples[-1], lived.after))
    console.print(_bounds(lived.samples[0], lived.samples[-1]))
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


def _sizes(title: str, first: Sample, last: Sample, after: Sample | None = None) -> Table:
    table = _table(title, "kind", "begin", "end", "a day", "after maintain")
    grown = growth(first.sizes, last.sizes, last.hour - first.hour)
    for name, rate in grown.items():
        then = f"{after.sizes.get(name, 0) / MIB:,.2f}" if after else ""
        table.add_row(
            name,
            f"{first.sizes.get(name, 0) / MIB:,.2f}",
            f"{last.sizes[name] / MIB:,.2f}",
            f"{rate / MIB:+,.2f}",
            then,
        )
    table.caption = "MiB"
    return table


def _tables(database: str, first: Sample, last: Sample, after: Sample) -> Table:
    table = _table(f"{database}, by table", "table", "begin", "end", "a day", "after maintain")
    grown = growth(first.tables[database], last.tables[database], last.hour - first.hour)
    for name, rate in sorted(grown.items(), key=lambda one: -one[1]):
        if abs(rate) >= LEAST:
            begin, end, then = (one.tables[database].get(name, 0) / MIB for one in (first, last, after))
            table.add_row(name, f"{begin:,.2f}", f"{end:,.2f}", f"{rate / MIB:+,.2f}", f"{then:,.2f}")
    table.caption = "MiB"
    return table


def _bounds(first: Sample, last: Sample) -> Table:
    """Growth a day times the days that it is kept."""
    table = _table("What bounds it, with the default retention", "what", "MiB a day", "days", "MiB in the end", "by")
    hours = last.hour - first.hour
    grown = {name: growth(first.tables[name], last.tables[name], hours) for name in first.tables}
    files = growth(first.sizes, last.sizes, hours)
    grown["files"] = {kind: rate for kind, rate in files.items() if kind not in first.tables}
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
