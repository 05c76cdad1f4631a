"""What a review looks at: records of strategies and analysts, drift, promotions, backtests, costs and the market.

All of it is read from the store as it was known at the review's time; a part that is not there is empty.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np

from tasks.disabled_strategies import disabled, disablings
from tasks.documents import Document, Span
from tasks.llm_budget import calls_of, day_of
from tasks.scoreboards import scoreboard_at
from tasks.settling import PART, counted
from tasks.store import PROMOTIONS, RESULTS, SERIES, Store, read_candles
from trading.analysis import Signal
from trading.review import DAY, USUAL, MarketState, Record, market_state, record
from trading.scoring import cluster_of
from trading.window import Timeframe, Window

WEEK: Final = timedelta(days=7)
# of a backtest's figures, those that a person or an LLM can weigh at a glance
_FIGURES: Final = ("symbol", "strategy", "total_return", "sharpe", "max_drawdown", "trades", "hit_rate")
_SCORES: Final = ("analyst", "version", "role", "signals", "clusters", "hit_rate", "profit", "total", "usd")


@dataclass(frozen=True)
class Facts:
    """Everything as JSON values but for ``records``; times as ISO 8601, UTC.

    ``analysts``: figures and weight of each, by version. ``drift``: newest look at each model. ``costs``: of the
    LLM's calls in the week. ``modes``: kinds of data among all of it.
    """

    timeframe: str
    until: str
    records: dict[str, Record]
    analysts: list[dict[str, Any]]
    drift: list[dict[str, Any]]
    promotions: list[dict[str, Any]]
    backtests: list[dict[str, Any]]
    costs: dict[str, Any]
    market: list[dict[str, Any]]
    disabled: list[dict[str, Any]]
    modes: list[str] = field(default_factory=list)

    @property
    def drifted(self) -> dict[str, list[str]]:
        """Reasons by model that has drifted."""
        return {one["model"]: list(one["reasons"]) for one in self.drift if one["state"] == "drifted"}

    @property
    def weights(self) -> dict[str, float]:
        """What each analyst's newest version counts; parts and those for comparison left out."""
        return {one["analyst"]: one["weight"] for one in self.analysts if one["role"] == "analyst" and one["newest"]}


def gather(store: Store, timeframe: Timeframe, days: int, *, now: datetime) -> Facts:
    """The facts at ``now``; records reach ``days`` back, news a week."""
    board = scoreboard_at(store, timeframe, now) or {}
    weights = {(one["analyst"], one["version"], one["role"]): one["weight"] for one in board.get("weights", [])}
    newest = board.get("newest", {})
    analysts = [
        {
            **{name: one.get(name) for name in _SCORES},
            "weight": weights.get((one["analyst"], one["version"], one["role"]), 1.0),
            "newest": newest.get(one["analyst"]) == one["version"],
        }
        for one in board.get("scores", [])
        if not one["symbol"]
    ]
    market = markets(store, timeframe, now)
    drift, drift_modes = _drift(store, now)
    backtests, tested_modes = _backtests(store, now)
    return Facts(
        timeframe=timeframe.value,
        until=_told(now),
        records=records(store, timeframe, days, now=now),
        analysts=analysts,
        drift=drift,
        promotions=_promotions(store, now),
        backtests=backtests,
        costs=_costs(store, now),
        market=[{**asdict(one), "at": _told(one.at)} for one in market],
        disabled=[
            {"strategy": one.strategy, "until": _told(one.until), "reasons": list(one.reasons)}
            for one in disabled(store, now)
        ],
        modes=sorted({*board.get("modes", []), *(one.data_mode for one in market), *drift_modes, *tested_modes}),
    )


def records(store: Store, timeframe: Timeframe, days: int, *, now: datetime) -> dict[str, Record]:
    """The record of each strategy's newest version, by name, from what was settled by ``now``.

    What it said before the end of its last disabling is over and done with, and so is what others than the version
    of its newest word said: with other parameters it is another strategy.
    """
    said: defaultdict[str, list[tuple[str, float, bool, int]]] = defaultdict(list)
    since = {one.strategy: one.end for one in disablings(store) if one.end <= now}
    for at, result, cluster in _settled(store, timeframe, days, now):
        name = result["analyst"]
        if name in since and at < since[name]:
            continue
        direction = Signal(result["signal"]).direction
        if direction:
            said[name].append((result["version"], result["profit"], direction * result["moved"] > 0, cluster))
    found = {}
    for name, all_of_it in sorted(said.items()):
        mine = [one for one in all_of_it if one[0] == all_of_it[-1][0]]
        found[name] = record(
            np.array([one[1] for one in mine]),
            np.array([one[2] for one in mine]),
            np.array([one[3] for one in mine], dtype=np.int64),
        )
    return found


def markets(store: Store, timeframe: Timeframe, now: datetime) -> list[MarketState]:
    """The state of each stored market of that timeframe that has candles of the last 24 hours, by symbol."""
    end = timeframe.floor(now)
    found = []
    for one in store.documents.find(SERIES):
        symbol, _, of = one["_id"].rpartition("|")
        # other documents of the collection say what else is known of a series
        if "data_mode" not in one or of != timeframe.value:
            continue
        candles = read_candles(store, Window(symbol, timeframe, timeframe.floor(end - DAY - USUAL), end))
        state = market_state(symbol, timeframe, candles, end, one["data_mode"])
        found += [state] if state is not None else []
    return sorted(found, key=lambda state: state.symbol)


def _settled(
    store: Store, timeframe: Timeframe, days: int, now: datetime
) -> Iterator[tuple[datetime, dict[str, Any], int]]:
    """What strategies said, with the bar's close and the span of time that it counts in; oldest first."""
    step = int(timeframe.delta.total_seconds() * 1000)
    for one in counted(store, timeframe, now - timedelta(days=days), now):
        # an outcome that was not known yet is none, and one made in hindsight knew more than it could have used
        if one["exit_at"] >= now or one["hindsight"]:
            continue
        filled = int(one["entry_at"].timestamp() * 1000)
        for result in one["results"]:
            if result["role"] == PART:
                yield one["timestamp"], result, cluster_of(filled, result["horizon"] * step)


def _results(store: Store, kind: str, now: datetime) -> list[Document]:
    return store.documents.find(
        RESULTS, {"kind": kind}, Span("created_at", now - WEEK, now + timedelta(milliseconds=1))
    )


def _drift(store: Store, now: datetime) -> tuple[list[dict[str, Any]], set[str]]:
    latest = {one["result"]["model"]: one for one in _results(store, "monitor", now)}
    found = [
        {
            **{name: one["result"][name] for name in ("model", "version", "state", "reasons")},
            "at": _told(one["created_at"]),
        }
        for _, one in sorted(latest.items())
    ]
    return found, {one["result"]["data_mode"] for one in latest.values()}


def _promotions(store: Store, now: datetime) -> list[dict[str, Any]]:
    return [
        {
            **{name: one[name] for name in ("model", "kind", "from_version", "to_version")},
            "reasons": list(one["reasons"]),
            "at": _told(one["at"]),
        }
        for one in store.documents.find(PROMOTIONS, span=Span("number"))
        if now - WEEK <= one["at"] <= now
    ]


def _backtests(store: Store, now: datetime) -> tuple[list[dict[str, Any]], set[str]]:
    """The rows of the newest backtest."""
    found = _results(store, "backtest", now)
    if not found:
        return [], set()
    newest = found[-1]["result"]
    return [_plain(row, _FIGURES) for row in newest["rows"]], {newest["data_mode"]}


def _costs(store: Store, now: datetime) -> dict[str, Any]:
    calls = [
        call
        for days in range(8)
        for call in calls_of(store.documents, day_of(now - timedelta(days=days)))
        if now - WEEK < call["at"] <= now
    ]
    return {
        "calls": len(calls),
        "usd": round(sum(call["usd"] for call in calls), 6),
        "answered": sum(call["outcome"] == "answered" for call in calls),
    }


def _plain(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value := row[name], float) else value for name in names if name in row}


def _told(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%MZ}"
