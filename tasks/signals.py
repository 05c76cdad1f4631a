"""What other programs are told of analyses: Prefect events when a signal changes, and when an answer is degraded.

``tradeflows.signal.changed``: the signal of a symbol and timeframe is another than the one stored before.
``tradeflows.analysis.degraded``: somebody who should have spoken did not, or symbols could not be analysed.
Ids follow from what is told, so that the same thing told twice is one event.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from tasks import log
from tasks.analysis_documents import analysis_key
from tasks.documents import Document
from tasks.store import SIGNALS, Store, series_key
from trading.window import Timeframe

CHANGED: Final = "tradeflows.signal.changed"
DEGRADED: Final = "tradeflows.analysis.degraded"


@dataclass(frozen=True)
class Changed:
    """A signal that is another than ``before``; ``analysis`` is the id that ``tradeflows trace`` follows."""

    symbol: str
    timeframe: str
    signal: str
    before: str
    confidence: float
    basis: str
    timestamp: str
    price: float
    data_mode: str
    analysis: str
    made_at: str


def follow(store: Store, stored: Document, tell: Callable[[Changed], None]) -> None:
    """Note the newest signal of a series; ``tell`` what changed, before it is noted: rather twice than never.

    An analysis of an earlier bar than the one noted changes nothing. The first one of a series has no signal before
    it, and is no change.
    """
    key = series_key(stored["symbol"], stored["timeframe"])
    known = store.documents.get(SIGNALS, key)
    if known is not None and stored["timestamp"] < known["timestamp"]:
        return
    signal = stored["analysis"]["signal"]
    if known is not None and known["signal"] != signal:
        tell(
            Changed(
                symbol=stored["symbol"],
                timeframe=stored["timeframe"],
                signal=signal,
                before=known["signal"],
                confidence=stored["analysis"]["confidence"],
                basis=stored["basis"],
                timestamp=stored["timestamp"].isoformat(),
                price=stored["price"],
                data_mode=stored["data_mode"],
                analysis=analysis_key(stored["symbol"], Timeframe(stored["timeframe"]), stored["timestamp"]),
                made_at=stored["created_at"].isoformat(),
            )
        )
    if known is None or known["signal"] != signal or known["timestamp"] != stored["timestamp"]:
        store.documents.put(SIGNALS, {"_id": key, "signal": signal, "timestamp": stored["timestamp"]})


def emit_changed(changed: Changed) -> None:
    """Tell Prefect that a signal changed."""
    _emit(
        CHANGED,
        f"tradeflows.signal.{changed.symbol}.{changed.timeframe}",
        f"{changed.symbol} {changed.timeframe}",
        asdict(changed),
        # a signal may change back and forth on one bar; a retry says the same again
        f"{changed.symbol}/{changed.timeframe}/{changed.timestamp}/{changed.before}/{changed.signal}/{changed.made_at}",
    )


def emit_degraded(
    timeframe: str, absent: Mapping[str, str], symbols: list[str], failures: list[str], state: str, now: datetime
) -> None:
    """Tell Prefect that analyses are less than they should be.

    Args:
        absent: why, by analyst; ``symbols``: those whose analyses lack somebody.
        failures: symbols that were not analysed at all, each with its error.
        state: of the run: Degraded, Partly or Failed.
    """
    payload = {
        "timeframe": timeframe,
        "state": state,
        "absent": dict(absent),
        "symbols": symbols,
        "failures": failures,
    }
    key = f"{timeframe}/{now.isoformat()}/{state}/{sorted(absent)}"
    _emit(DEGRADED, f"tradeflows.analysis.{timeframe}", f"analysis {timeframe}", payload, key)


def _emit(event: str, resource: str, name: str, payload: dict[str, Any], key: str) -> None:
    from prefect.settings import PREFECT_API_URL

    # an event alone is not worth the start of a server
    if log.flow_run_id() is None and not PREFECT_API_URL.value():
        return
    from prefect.events import emit_event

    emit_event(
        event,
        resource={"prefect.resource.id": resource, "prefect.resource.name": name},
        payload={**payload, "flow_run_id": log.flow_run_id()},
        id=uuid.uuid5(uuid.NAMESPACE_URL, f"{event}/{key}"),
    )
