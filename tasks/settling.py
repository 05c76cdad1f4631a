"""Settlements: what became of each analysis once its horizon was over, by analyst; and everybody's record.

An analysis is settled from finished candles that are in the store: filled at the open of the first bar after the
one that it was about, given up at the open of the bar ``horizon`` bars later. Where one of those candles is missing
it waits. An analysis that was made after its fill knew more than it could have used: it is left out, or taken
along on demand and marked, but never counts towards a weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from prefect import task

from tasks import log
from tasks.datasets import MODES
from tasks.documents import Document, Span
from tasks.retry import STORE, prefect_options
from tasks.settings import load_settings
from tasks.store import (
    LEDGER,
    SERIES,
    SETTLEMENTS,
    Store,
    analyses,
    configured_store,
    newest_analysis,
    read_candles,
    series_key,
)
from trading.analysis import Signal
from trading.calendars import ALWAYS_OPEN, expected_opens
from trading.candles import open_times_ms
from trading.errors import TradeflowsError
from trading.scoring import settle, version_of
from trading.window import Timeframe, Window

COMBINED: Final = "combined"
# who gave the opinion: one that counted, a part of one, one for comparison only, or all together
ANALYST, PART, COMPARED = "analyst", "part", "compared"
DAY: Final = timedelta(days=1)


@dataclass(frozen=True)
class SettleRequest:
    """Which analyses to settle, at what costs, and how far back the record reaches; see the flow.

    ``reach_back``: also those of bars that closed before ``start`` and whose horizon was not over then.
    """

    timeframe: Timeframe
    start: datetime
    end: datetime
    fee_rate: float = 0.001
    slippage_rate: float = 0.0005
    horizon: int = 12
    score_days: int = 90
    hindsight: bool = False
    reach_back: bool = False

    @property
    def cost_per_side(self) -> float:
        """Fee and slippage."""
        return self.fee_rate + self.slippage_rate


@dataclass
class Settled:
    """What a run settled. ``early``: the horizon is not over. ``waiting``: why others could not be settled yet."""

    fresh: int = 0
    known: int = 0
    early: int = 0
    late_made: int = 0
    waiting: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)


def settle_all(store: Store, symbols: Sequence[str], request: SettleRequest, *, now: datetime) -> Settled:
    """Settle the analyses of ``[start, end)`` whose horizon is over; those settled before stay as they are.

    Raises:
        TradeflowsError: of the transient kind: the store does not answer. What was settled until then is kept.
    """
    found = Settled()
    since = {symbol: _since(store, symbol, request) for symbol in symbols}
    known = {one["_id"] for one in settlements(store, request.timeframe, min(since.values()), request.end)}
    for symbol in symbols:
        with log.about(symbol=symbol):
            try:
                _settle_symbol(store, symbol, replace(request, start=since[symbol]), known, found, now)
            except TradeflowsError as error:
                if error.transient:
                    raise
                log.logger().error("not settled", error=str(error))
                found.errors.append(f"{symbol}: {error}")
    return found


def _since(store: Store, symbol: str, request: SettleRequest) -> datetime:
    """Close of the first bar whose analysis is looked at."""
    newest = newest_analysis(store, symbol, request.timeframe.value, request.end) if request.reach_back else None
    if newest is None:
        return request.start
    bars = max(span for span, *_ in _opinions(newest, request.horizon))
    delta, start = request.timeframe.delta, request.timeframe.floor(request.start)
    # a session has 6.5 hours of 24 and 5 days of 7, and there are holidays
    window = Window(symbol, request.timeframe, request.timeframe.floor(start - 8 * bars * delta - 14 * DAY), start)
    opens = expected_opens(window, _calendar(store, window))
    return datetime.fromtimestamp(int(opens[max(len(opens) - bars - 1, 0)]) / 1000, tz=UTC)


def _settle_symbol(
    store: Store, symbol: str, request: SettleRequest, known: set[str], found: Settled, now: datetime
) -> None:
    pending = []
    for stored in analyses(store, symbol, request.start):
        if stored["timeframe"] != request.timeframe.value or not stored["timestamp"] < request.end:
            continue
        if stored["_id"] in known:
            found.known += 1
        else:
            pending.append(stored)
    if not pending:
        return
    window = Window(symbol, request.timeframe, request.timeframe.floor(request.start), request.end)
    market = _market(store, window)
    made = []
    for stored in pending:
        entry, leaves = market.bars(stored, request.horizon)
        if entry is not None and _made_late(stored, entry, request.timeframe) and not request.hindsight:
            found.late_made += 1
            continue
        if entry is None or leaves is None:
            found.early += 1
            continue
        missing = [opens for opens in (entry, *leaves.values()) if opens not in market.opens]
        if missing:
            at = datetime.fromtimestamp(min(missing) / 1000, tz=UTC)
            found.waiting.append(f"{stored['_id']} waits for the candle of {at:%Y-%m-%dT%H:%MZ}")
            continue
        made.append(_settlement(stored, market, entry, leaves, request, now))
    # of those that another run has settled meanwhile, what that one wrote stands
    found.fresh += store.documents.insert_all(SETTLEMENTS, made)
    found.modes.update(one["data_mode"] for one in made)


@dataclass(frozen=True, eq=False)
class _Market:
    """Opens by open time (ms UTC), and the open times that the market should have (int64, ms UTC)."""

    opens: dict[int, float]
    expected: np.ndarray

    def bars(self, stored: Document, horizon: int) -> tuple[int | None, dict[int, int] | None]:
        """When the analysis was filled, and when it was given up by horizon; None: that is still to come."""
        closed = int(stored["timestamp"].timestamp() * 1000)
        at = int(np.searchsorted(self.expected, closed))
        if at >= len(self.expected):
            return None, None
        entry = int(self.expected[at])
        spans = {span for span, *_ in _opinions(stored, horizon)}
        if at + max(spans) >= len(self.expected):
            return entry, None
        return entry, {span: int(self.expected[at + span]) for span in spans}


def _market(store: Store, window: Window) -> _Market:
    candles = read_candles(store, window)
    opens = dict(zip(open_times_ms(candles).tolist(), candles["open"].to_list(), strict=True))
    return _Market(opens, expected_opens(window, _calendar(store, window)))


def _calendar(store: Store, window: Window) -> str:
    """The newest that the ledger names for the series."""
    span = Span("start", None, window.end)
    newest = store.documents.find(LEDGER, {"series": series_key(window.symbol, window.timeframe.value)}, span, newest=1)
    return str(newest[0]["calendar"]) if newest else ALWAYS_OPEN


def _opinions(stored: Document, horizon: int) -> Iterator[tuple[int, str, Document]]:
    """Horizon, role and opinion: all together first, then each analyst with its parts, then those compared."""
    analysis, own = stored["analysis"], int(stored.get("horizon") or horizon)
    together = {name: analysis[name] for name in ("signal", "confidence")}
    yield own, COMBINED, {"analyst": COMBINED, "provenance": {}, **together}
    for role, opinions in ((ANALYST, analysis["opinions"]), (COMPARED, analysis.get("compared", []))):
        for opinion in opinions:
            mine = int(opinion.get("horizon") or own)
            yield mine, role, opinion
            for part in opinion.get("parts", []):
                yield mine, PART, part


def _settlement(
    stored: Document,
    market: _Market,
    entry: int,
    leaves: dict[int, int],
    request: SettleRequest,
    now: datetime,
) -> Document:
    results = []
    filled, costs = market.opens[entry], request.cost_per_side
    for horizon, role, opinion in _opinions(stored, request.horizon):
        leave = market.opens[leaves[horizon]]
        sides = {side: settle(side, filled, leave, costs) for side in Signal}
        # what the bar cost, also for analyses of it that were replaced
        spent = stored.get("spent", {}).get(opinion["analyst"], 0.0) if role in (ANALYST, COMPARED) else 0.0
        results.append(
            {
                "analyst": opinion["analyst"],
                "version": version_of(opinion["provenance"]),
                "role": role,
                "signal": opinion["signal"],
                "confidence": opinion["confidence"],
                "horizon": horizon,
                "moved": leave / filled - 1,
                "profit": sides[Signal(opinion["signal"])],
                "idle": max(sides[Signal.LONG], sides[Signal.SHORT]) <= 0,
                "usd": spent,
            }
        )
    heard = {result["analyst"] for result in results}
    return {
        "_id": stored["_id"],
        "symbol": stored["symbol"],
        "timeframe": stored["timeframe"],
        "timestamp": stored["timestamp"],
        "entry_at": datetime.fromtimestamp(entry / 1000, tz=UTC),
        "exit_at": datetime.fromtimestamp(max(leaves.values()) / 1000, tz=UTC),
        "cost_per_side": costs,
        "results": results,
        # what was paid to analysts that said nothing which could be used
        "unheard": {name: usd for name, usd in stored.get("spent", {}).items() if usd and name not in heard},
        "hindsight": _made_late(stored, entry, request.timeframe),
        "data_mode": stored["data_mode"],
        "settled_at": now,
    }


def _made_late(stored: Document, entry: int, timeframe: Timeframe) -> bool:
    """Whether the analysis was made when the bar that it was filled in, opening at ``entry``, was over already."""
    made: datetime = stored["created_at"]
    # after a session's last bar the next one opens days later
    return made > datetime.fromtimestamp(entry / 1000, tz=UTC) + timeframe.delta


def settlements(store: Store, timeframe: Timeframe, start: datetime, end: datetime) -> Iterator[dict[str, Any]]:
    """The settlements of analyses of bars that closed in ``[start, end)``, by time; a day at a time in memory."""
    at = start
    while at < end:
        span = Span("timestamp", at, min(at + DAY, end))
        found = store.documents.find(SETTLEMENTS, {"timeframe": timeframe.value}, span)
        # those of one bar in one order, whatever the store
        yield from sorted(found, key=lambda one: (one["timestamp"], one["_id"]))
        at += DAY


def counted(store: Store, timeframe: Timeframe, start: datetime, end: datetime) -> Iterator[dict[str, Any]]:
    """``settlements`` of the most real kind of data that the store has of the timeframe.

    What somebody earned on generated markets says nothing of live ones.
    """
    stored = {
        one["data_mode"]
        for one in store.documents.find(SERIES)
        if "data_mode" in one and one["_id"].endswith(f"|{timeframe.value}")
    }
    chosen = max(stored, key=MODES.index, default=None)
    return (one for one in settlements(store, timeframe, start, end) if chosen in (None, one["data_mode"]))


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="settle-analyses", **prefect_options(STORE))
def settle_task(symbols: list[str], request: SettleRequest, now: datetime) -> Settled:
    """``settle_all`` on the configured store. Tried again, it finds settled what it has settled."""
    with configured_store(load_settings()) as store:
        return settle_all(store, symbols, request, now=now)
