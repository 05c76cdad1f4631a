"""The record of every analyst, as it was known at a time: figures by analyst, version and symbol, and weights."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np

from tasks.documents import Document, Span
from tasks.settling import COMBINED, SettleRequest, settlements
from tasks.store import SCOREBOARDS, Store
from trading.analysis import CHALLENGER, MODEL, Signal
from trading.scoring import Outcomes, Score, cluster_of, score, typical_move
from trading.window import Timeframe

# analyst, version, role
Who = tuple[str, str, str]
_COLUMNS: Final = ("direction", "confidence", "moved", "profit", "idle", "usd")


@dataclass(frozen=True, eq=False)
class Scoreboard:
    """Everybody's record. ``figures``: over all symbols; ``by_symbol``: of each; ``scale``: a typical move.

    ``hindsight``: settlements of analyses that were made late; they are in the figures and not in the weights.
    """

    timeframe: Timeframe
    until: datetime
    figures: dict[Who, Score]
    by_symbol: dict[tuple[Who, str], Score]
    weights: dict[Who, float]
    newest: dict[str, str]
    scale: float
    settled: int
    hindsight: int
    modes: tuple[str, ...]
    digest: str

    def document(self) -> Document:
        """As it is stored."""
        return {
            "timeframe": self.timeframe.value,
            "until": self.until,
            "weights": [
                {"analyst": name, "version": version, "role": role, "weight": weight}
                for (name, version, role), weight in self.weights.items()
            ],
            "scores": [
                {"analyst": name, "version": version, "role": role, "symbol": "", **one.document()}
                for (name, version, role), one in self.figures.items()
            ]
            + [
                {"analyst": name, "version": version, "role": role, "symbol": symbol, **one.document()}
                for ((name, version, role), symbol), one in self.by_symbol.items()
            ],
            "newest": self.newest,
            "scale": self.scale,
            "settled": self.settled,
            "hindsight": self.hindsight,
            "modes": list(self.modes),
            "digest": self.digest,
        }


@dataclass
class _Rows:
    """Outcomes of one analyst as they are read, in columns."""

    columns: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in _COLUMNS})
    cluster: array[int] = field(default_factory=lambda: array("q"))
    symbol: list[str] = field(default_factory=list)
    late: list[bool] = field(default_factory=list)

    def add(self, result: Mapping[str, Any], symbol: str, cluster: int, late: bool) -> None:
        values = {**result, "direction": Signal(result["signal"]).direction}
        for name in _COLUMNS:
            self.columns[name].append(float(values[name]))
        self.cluster.append(cluster)
        self.symbol.append(symbol)
        self.late.append(late)

    def outcomes(self, chosen: np.ndarray) -> Outcomes:
        """Those rows, (n,) booleans."""
        values = {name: np.asarray(column)[chosen] for name, column in self.columns.items()}
        return Outcomes(
            direction=values["direction"].astype(np.int8),
            confidence=values["confidence"],
            moved=values["moved"],
            profit=values["profit"],
            idle=values["idle"] > 0,
            usd=values["usd"],
            cluster=np.asarray(self.cluster, dtype=np.int64)[chosen],
        )


def scoreboard(store: Store, request: SettleRequest) -> Scoreboard:
    """Everybody's record over the settlements of the ``score_days`` before ``end``."""
    start = request.end - timedelta(days=request.score_days)
    return tally(settlements(store, request.timeframe, start, request.end), request)


def tally(settled: Iterable[Document], request: SettleRequest) -> Scoreboard:
    """The figures of these settlements, which are in order of time."""
    rows: dict[Who, _Rows] = {}
    newest: dict[str, str] = {}
    modes: set[str] = set()
    hashed = hashlib.sha256(json.dumps([request.cost_per_side, request.timeframe.value]).encode())
    count = late = 0
    step = int(request.timeframe.delta.total_seconds() * 1000)
    for one in settled:
        # an outcome that was not known by ``end`` is none yet; late ones are taken along on demand
        if one["exit_at"] >= request.end or (one["hindsight"] and not request.hindsight):
            continue
        count, late = count + 1, late + one["hindsight"]
        modes.add(one["data_mode"])
        filled = int(one["entry_at"].timestamp() * 1000)
        hashed.update(json.dumps([one["_id"], one["results"]], sort_keys=True).encode())
        for result in one["results"]:
            who = (result["analyst"], result["version"], result["role"])
            cluster = cluster_of(filled, result["horizon"] * step)
            rows.setdefault(who, _Rows()).add(result, one["symbol"], cluster, one["hindsight"])
            newest[result["analyst"]] = result["version"]
    together = next((mine for (name, *_), mine in rows.items() if name == COMBINED), _Rows())
    scale = typical_move(np.asarray(together.columns["moved"]))
    figures: dict[Who, Score] = {}
    by_symbol: dict[tuple[Who, str], Score] = {}
    weights: dict[Who, float] = {}
    for who, mine in sorted(rows.items()):
        symbols, made_late = np.array(mine.symbol), np.array(mine.late)
        figures[who] = score(mine.outcomes(np.ones(len(symbols), dtype=bool)), scale)
        weights[who] = score(mine.outcomes(~made_late), scale).weight if late else figures[who].weight
        by_symbol |= {(who, name): score(mine.outcomes(symbols == name), scale) for name in np.unique(symbols).tolist()}
    return Scoreboard(
        timeframe=request.timeframe,
        until=request.end,
        figures=figures,
        by_symbol=by_symbol,
        weights=weights,
        newest=newest,
        scale=scale,
        settled=count,
        hindsight=late,
        modes=tuple(sorted(modes)),
        digest=hashed.hexdigest(),
    )


def put_scoreboard(store: Store, board: Scoreboard, run_id: str, now: datetime) -> None:
    """Store what was known of all analysts of a timeframe from bars that ended by ``board.until``."""
    key = f"{board.timeframe.value}|{board.until:%Y-%m-%dT%H:%M:%SZ}"
    store.documents.put(SCOREBOARDS, {**board.document(), "_id": key, "run_id": run_id, "created_at": now})


def scoreboard_at(store: Store, timeframe: Timeframe, moment: datetime) -> Document | None:
    """The newest record that uses nothing after ``moment``, or None: an analysis of the past knows no later one."""
    span = Span("until", None, moment + timedelta(milliseconds=1))
    found = store.documents.find(SCOREBOARDS, {"timeframe": timeframe.value}, span, newest=1)
    return found[0] if found else None


def weights_at(store: Store, timeframe: Timeframe, moment: datetime) -> dict[tuple[str, str], float]:
    """What each analyst counts by name and version, from settlements up to ``moment``; see ``trading.scoring``."""
    board = scoreboard_at(store, timeframe, moment)
    if board is None:
        return {}
    found = {(one["analyst"], one["version"]): one["weight"] for one in board["weights"]}
    # a challenger that was promoted brings its record along
    promoted = {(MODEL, version): weight for (name, version), weight in found.items() if name == CHALLENGER}
    return {**promoted, **found}
