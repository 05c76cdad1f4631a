"""Which stored analysis somebody means: by its id, by symbol and time, or by the flow run that made it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from tasks.analysis_documents import analysis_key
from tasks.documents import Document, Span
from tasks.store import ANALYSES, SIGNALS, Store
from trading.errors import InvalidRequest
from trading.window import Timeframe, as_utc

# analyses of each symbol that are gone through for those of a flow run, or of some bars
NEWEST: Final = 500
SHOWN: Final = 10
_SEPARATORS: Final = re.compile(r"[|/]")


def find_analysis(store: Store, asked: str, *, at: datetime | None = None, timeframe: str | None = None) -> Document:
    """The analysis that somebody asks for.

    Args:
        asked: an id (``BTCUSDT|1h|2026-11-21T10:00:00Z``, or with slashes), a symbol, or the id of a flow run.
        at: of a symbol: the newest analysis whose bar had closed by then; None: the newest.
        timeframe: of a symbol: of these bars only.

    Raises:
        InvalidRequest: there is none, or the flow run made several; says which there are.
    """
    known = store.documents.get(ANALYSES, asked) or store.documents.get(ANALYSES, _as_id(asked))
    if known is not None:
        return known
    if _is_uuid(asked):
        return _of_run(store, str(UUID(asked)))
    span = Span("timestamp", None, as_utc(at) + timedelta(milliseconds=1) if at is not None else None)
    wanted = Timeframe.parse(timeframe).value if timeframe is not None else None
    newest = store.documents.find(ANALYSES, {"symbol": asked}, span, newest=NEWEST if wanted else 1)
    for one in newest:
        if wanted in (None, one["timeframe"]):
            return one
    raise InvalidRequest(_nothing(store, asked, at, wanted))


def id_of(stored: Mapping[str, Any]) -> str:
    """The id of a stored analysis."""
    return analysis_key(stored["symbol"], Timeframe(stored["timeframe"]), stored["timestamp"])


def _as_id(asked: str) -> str:
    """An id as it is stored, of one with slashes or without seconds; symbols may have slashes of their own."""
    parts = _SEPARATORS.split(asked)
    if len(parts) < 3:
        return asked
    symbol = asked[: len(asked) - len(parts[-1]) - len(parts[-2]) - 2]
    try:
        moment = datetime.fromisoformat(parts[-1])
        bar = Timeframe(parts[-2])
    except ValueError:
        return asked
    return analysis_key(symbol, bar, moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment)


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _of_run(store: Store, run: str) -> Document:
    made = [
        one
        for symbol in _analysed(store)
        for one in store.documents.find(ANALYSES, {"symbol": symbol}, Span("timestamp"), newest=NEWEST)
        if one["flow_run_id"] == run
    ]
    if len(made) == 1:
        return made[0]
    if not made:
        raise InvalidRequest(
            f"the flow run {run} made none of the newest {NEWEST} analyses of any symbol; give the id of an analysis, "
            "such as BTCUSDT/1h/2026-11-21T10:00:00Z, or a symbol"
        )
    shown = ", ".join(id_of(one) for one in made[:SHOWN])
    raise InvalidRequest(f"the flow run {run} made {len(made)} analyses; give the id of one: {shown}")


def _nothing(store: Store, asked: str, at: datetime | None, timeframe: str | None) -> str:
    newest = store.documents.find(ANALYSES, {"symbol": asked}, Span("timestamp"), newest=1)
    if newest:
        bars = f" of {timeframe} bars" if timeframe else ""
        when = f" whose bar had closed by {as_utc(at):%Y-%m-%dT%H:%M:%SZ}" if at is not None else ""
        return f"{asked} has no analysis{bars}{when}; its newest is {id_of(newest[0])}"
    known = _analysed(store)
    there = f"there are some of {', '.join(known[:SHOWN])}" if known else "there are none yet: run tradeflows analyse"
    return (
        f"there is no analysis {asked!r}; {there}. Give an id such as BTCUSDT/1h/2026-11-21T10:00:00Z, or a symbol "
        "with --at TIME"
    )


def _analysed(store: Store) -> list[str]:
    """The symbols that have analyses."""
    return sorted({str(one["_id"]).rsplit("|", 1)[0] for one in store.documents.find(SIGNALS)})
