"""How good the stored candles are: figures per series, and a page of the day that a browser shows.

The page is one file without anything from elsewhere. It is made anew by each ingest of its day, from the ledger,
the gaps on record and the quarantine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

from prefect import task

from tasks import circuit, gaps, ledger, quarantine
from tasks.gaps import ConfirmedGap
from tasks.retry import STORE, prefect_options
from tasks.settings import load_settings
from tasks.store import Store, configured_store, corrections, read_candles
from trading.calendars import expected_opens
from trading.candles import between
from trading.quality import TRAILING, Drift, drift
from trading.window import Window

SHOWN = 200


@dataclass(frozen=True)
class SeriesQuality:
    """One series over one window.

    Attributes:
        expected: bars that the calendar expects in the window.
        gaps: confirmed ones, by time.
        held: rows in quarantine per reason, of those that nobody has released and no good candle replaced.
        behind: whole bars between the last candle and the window's end.
        drift: of the newest bars against the trailing month; None where there are too few.
    """

    window: Window
    data_mode: str
    rows: int
    expected: int
    gaps: tuple[ConfirmedGap, ...]
    held: dict[str, int]
    last: datetime | None
    behind: int
    corrected: int
    drift: Drift | None

    @property
    def coverage(self) -> float:
        """Share of the expected bars that are stored."""
        return self.rows / self.expected if self.expected else 1.0

    def row(self) -> dict[str, object]:
        """The figures as a row of a table for people."""
        longest = max((known.gap.bars for known in self.gaps), default=0)
        missing = sum(known.gap.bars for known in self.gaps)
        shown = self.drift
        return {
            "symbol": self.window.symbol,
            "timeframe": self.window.timeframe.value,
            "data": self.data_mode,
            "coverage": f"{self.coverage:.3%}",
            "rows": self.rows,
            "gaps": f"{len(self.gaps)} ({missing} bars, longest {longest})" if self.gaps else "0",
            "in quarantine": ", ".join(f"{count} {reason}" for reason, count in sorted(self.held.items())) or "0",
            "corrected": self.corrected,
            "last candle": f"{self.last:%Y-%m-%d %H:%M}" if self.last else "none",
            "behind": f"{self.behind} bars",
            "volume, day / month": f"x{shown.volume_ratio:.2f} (KS {shown.volume_ks:.2f})" if shown else "-",
            "range, day / month": f"x{shown.range_ratio:.2f} (KS {shown.range_ks:.2f})" if shown else "-",
        }


def quality(store: Store, window: Window, calendar: str) -> SeriesQuality:
    """The figures of one stored series over a window."""
    symbol, timeframe = window.symbol, window.timeframe.value
    expected = expected_opens(window, calendar)
    candles = read_candles(store, window)
    newest = between(candles, window.within(max(window.start, window.end - 2 * TRAILING), window.end))
    entries = ledger.entries(store, symbol, timeframe)
    known = tuple(gaps.within(store, window))
    held: Counter[str] = Counter()
    for row in quarantine.find(store, symbol, timeframe, quarantine.HELD):
        if window.start <= row["open_time"] < window.end:
            held.update(row["reasons"])
    last = newest.index[-1].to_pydatetime() if len(newest) else None
    behind = int((expected > last.timestamp() * 1000).sum()) if last else len(expected)
    late = [one for one in corrections(store, symbol, timeframe) if window.start <= one.open_time < window.end]
    return SeriesQuality(
        window=window,
        data_mode=entries[-1].data_mode if entries else "",
        rows=len(candles),
        expected=len(expected),
        gaps=known,
        held=dict(held),
        last=last,
        behind=behind,
        corrected=len(late),
        drift=drift(newest),
    )


def write_page(
    store: Store, folder: Path, qualities: Sequence[SeriesQuality], now: datetime, max_bad_share: float
) -> Path:
    """The page of ``now``'s day, of all that was ingested on it: ``<folder>/<day>.html``, written whole."""
    from jinja2 import Environment, PackageLoader

    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    aside = quarantine.seen_between(store, day, day + timedelta(days=1))
    series = ledger.summary(store)
    known = [(one, gap) for one in series for gap in gaps.find(store, one.symbol, one.timeframe)]
    late = [(one, made) for one in series if one.corrected for made in corrections(store, one.symbol, one.timeframe)]
    templates = Environment(loader=PackageLoader("tasks", "pages"), autoescape=True)
    page = templates.get_template("day.html").render(
        day=day,
        now=now,
        series=[_summary_row(one, now) for one in series],
        qualities=[quality.row() for quality in qualities],
        entries=ledger.recorded_between(store, day, day + timedelta(days=1))[-SHOWN:],
        aside=aside[:SHOWN],
        aside_count=len(aside),
        gaps=known[-SHOWN:],
        corrections=[(one, made) for one, made in late if made.revision.at >= day][:SHOWN],
        circuits=circuit.every(store.documents),
        expectations=_expectations(max_bad_share),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{day:%Y-%m-%d}.html"
    _write_whole(path, page)
    days = sorted((one.stem for one in folder.glob("????-??-??.html")), reverse=True)
    _write_whole(folder / "index.html", templates.get_template("index.html").render(days=days))
    return path


def _write_whole(path: Path, text: str) -> None:
    # runs of the same moment write the same page, each its own file: the last to replace it stands
    written = path.with_name(f".{path.stem}-{uuid4().hex}.tmp")
    try:
        written.write_text(text, encoding="utf-8")
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def _summary_row(one: ledger.SeriesSummary, now: datetime) -> dict[str, object]:
    return {
        "symbol": one.symbol,
        "timeframe": one.timeframe,
        "data": one.data_mode,
        "first": f"{one.first:%Y-%m-%d %H:%M}" if one.first else "none",
        "last": f"{one.last:%Y-%m-%d %H:%M}" if one.last else "none",
        "rows": one.rows,
        "bars behind": one.bars_behind(now),
        "bars missing": one.gaps,
        "in quarantine": one.quarantined,
        "corrected": one.corrected,
        "windows refused": one.refused,
    }


def _expectations(max_bad_share: float) -> list[dict[str, str]]:
    from expectations.candles import batch_suite, candle_suite
    from expectations.suites import described

    return [row for suite in (candle_suite(), batch_suite(max_bad_share)) for row in described(suite)]


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="measure-quality", **prefect_options(STORE))
def quality_task(windows: Sequence[tuple[Window, str]], now: datetime, news: bool) -> tuple[list[SeriesQuality], str]:
    """``quality`` of each window with its calendar, on the configured store; and where the page of the day is.

    Args:
        news: whether the run judged anything; the page is made anew only then.
    """
    settings = load_settings()
    with configured_store(settings) as store:
        found = [quality(store, window, calendar) for window, calendar in windows]
        if not news:
            return found, ""
        page = write_page(store, settings.home / "reports" / "data", found, now, settings.max_bad_share)
        return found, str(page)
