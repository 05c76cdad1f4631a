"""The record of every analyst, as it was known at a time: figures by analyst, version and symbol, and weights."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np

from tasks.documents import Document, Span
from tasks.settling import COMBINED, SettleRequest, counted
from tasks.store import SCOREBOARDS, Store
from trading.analysis import CHALLENGER, MODEL, Signal
from trading.scoring import Outcomes, Score, cluster_of, score, typical_move
from trading.window import Timeframe

# analyst, version, role
Who = tuple[str, str, str]
_DIRECTIONS: Final = {signal.value: signal.direction for signal in Signal}
_ALL: Final = slice(None)


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
    """Outcomes of one analyst as they are read, in columns; symbols by their number. 43 bytes each."""

    direction: array[int] = field(default_factory=lambda: array("b"))
    idle: array[int] = field(default_factory=lambda: array("b"))
    late: array[int] = field(default_factory=lambda: array("b"))
    confidence: array[float] = field(default_factory=lambda: array("d"))
    moved: array[float] = field(default_factory=lambda: array("d"))
    profit: array[float] = field(default_factory=lambda: array("d"))
    usd: array[float] = field(default_factory=lambda: array("d"))
    cluster: array[int] = field(default_factory=lambda: array("q"))
    symbol: array[int] = field(default_factory=lambda: array("i"))

    def add(self, result: Mapping[str, Any], symbol: int, cluster: int, late: bool) -> None:
        self.direction.append(_DIRECTIONS[result["signal"]])
        self.idle.append(result["idle"])
        self.late.append(late)
        self.confidence.append(result["confidence"])
        self.moved.append(result["moved"])
        self.profit.append(result["profit"])
        self.usd.append(result["usd"])
        self.cluster.append(cluster)
        self.symbol.append(symbol)

    def outcomes(self, chosen: np.ndarray | slice = _ALL) -> Outcomes:
        """Those rows, by booleans or numbers; all by default."""
        return Outcomes(
            direction=np.asarray(self.direction)[chosen],
            confidence=np.asarray(self.confidence)[chosen],
            moved=np.asarray(self.moved)[chosen],
            profit=np.asarray(self.profit)[chosen],
            idle=np.asarray(self.idle)[chosen] > 0,
            usd=np.asarray(self.usd)[chosen],
            cluster=np.asarray(self.cluster)[chosen],
        )

    def digest(self) -> bytes:
        """Names all that is in the columns."""
        return hashlib.sha256(b"".join(column.tobytes() for column in vars(self).values())).digest()


def scoreboard(store: Store, request: SettleRequest) -> Scoreboard:
    """Everybody's record over the settlements of the ``score_days`` before ``end`` that count; see ``counted``."""
    start = request.end - timedelta(days=request.score_days)
    return tally(counted(store, request.timeframe, start, request.end), request)


def tally(settled: Iterable[Document], request: SettleRequest) -> Scoreboard:
    """The figures of these settlements, which are in order of time."""
    rows: dict[Who, _Rows] = defaultdict(_Rows)
    newest: dict[str, str] = {}
    symbols: dict[str, int] = {}
    unheard: dict[str, float] = {}
    modes: set[str] = set()
    hashed = hashlib.sha256(json.dumps([request.cost_per_side, request.timeframe.value]).encode())
    count = late = 0
    step = int(request.timeframe.delta.total_seconds() * 1000)
    for one in settled:
        made_late = one["hindsight"]
        # an outcome that was not known by ``end`` is none yet; late ones are taken along on demand
        if one["exit_at"] >= request.end or (made_late and not request.hindsight):
            continue
        count, late = count + 1, late + made_late
        modes.add(one["data_mode"])
        filled = int(one["entry_at"].timestamp() * 1000)
        number = symbols.setdefault(one["symbol"], len(symbols))
        hashed.update(one["_id"].encode())
        for name, usd in one.get("unheard", {}).items():
            unheard[name] = unheard.get(name, 0.0) + usd
        for result in one["results"]:
            name, version = result["analyst"], result["version"]
            cluster = cluster_of(filled, result["horizon"] * step)
            # what an analyst was paid for nothing is borne by what it says next
            usd = result["usd"] + unheard.pop(name, 0.0)
            rows[name, version, result["role"]].add({**result, "usd": usd}, number, cluster, made_late)
            newest[name] = version
    together = next((mine for (name, *_), mine in rows.items() if name == COMBINED), _Rows())
    scale = typical_move(np.asarray(together.moved))
    figures: dict[Who, Score] = {}
    by_symbol: dict[tuple[Who, str], Score] = {}
    weights: dict[Who, float] = {}
    for who, mine in sorted(rows.items()):
        hashed.update(json.dumps(who).encode() + mine.digest())
        figures[who] = score(mine.outcomes(), scale)
        weights[who] = score(mine.outcomes(np.asarray(mine.late) == 0), scale).weight if late else figures[who].weight
        of = np.asarray(mine.symbol)
        each = ((symbol, np.flatnonzero(of == number)) for symbol, number in sorted(symbols.items()))
        by_symbol |= {(who, symbol): score(mine.outcomes(chosen), scale) for symbol, chosen in each if len(chosen)}
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
