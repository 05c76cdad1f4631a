"""What is told to Prefect's automations and to other programs, as events."""

from __future__ import annotations

import uuid
from typing import Any, Final

from tasks import log

CANDLES_INGESTED: Final = "tradeflows.candles.ingested"


def candles_ingested(symbols: list[str], timeframe: str, data_mode: str, end: str) -> None:
    """New candles up to now are in the store: the ``analyse`` deployment waits for it (prefect.yaml).

    Args:
        symbols: those with new candles.
        end: of the last bar, ISO 8601, UTC.
    """
    payload = {"symbols": symbols, "timeframe": timeframe, "data_mode": data_mode, "end": end}
    key = f"{timeframe}/{end}/{','.join(symbols)}"
    emit(CANDLES_INGESTED, f"tradeflows.candles.{timeframe}", f"candles {timeframe}", payload, key)


def emit(event: str, resource: str, name: str, payload: dict[str, Any], key: str) -> None:
    """One event, where there is a run or a server to tell.

    Its id follows from ``key``, so that the same told twice is one event.
    """
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
