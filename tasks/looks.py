"""What analysts are shown of a symbol: candles up to the bar to analyse, and the digests that name them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from tasks.analysis_documents import Seen, inputs_digest
from tasks.documents import Span
from tasks.panels import AnalysisRequest, Panel
from tasks.periods import reach
from tasks.store import LEDGER, Store, read_candles, series_key
from trading.analysis import Abstention, Opinion
from trading.calendars import ALWAYS_OPEN, expected_opens
from trading.candles import digest
from trading.errors import InsufficientHistory
from trading.window import Window

if TYPE_CHECKING:
    import pandas as pd

# raise it whenever analyses come out differently for the same inputs
REVISION: Final = 2


@dataclass(frozen=True, eq=False)
class Look:
    """What an analyst is shown: candles up to the bar to analyse, the last ``horizon`` bars before it is settled."""

    window: Window
    candles: pd.DataFrame
    calendar: str
    seen: Seen
    technical: Opinion | Abstention | None = None


def look(store: Store, window: Window, request: AnalysisRequest, panel: Panel) -> Look:
    """Read the candles of ``window``, which end at the bar to analyse, from as far back as the models need.

    Raises:
        InsufficientHistory: the last bar that the market should have is not in the store.
    """
    span = Span("start", None, window.end)
    newest = store.documents.find(LEDGER, {"series": series_key(window.symbol, window.timeframe.value)}, span, newest=1)
    calendar = newest[0]["calendar"] if newest else ALWAYS_OPEN
    heard = [one for one in (panel.models.champion, panel.models.challenger) if one is not None]
    bars = max((one.model.rows_needed for one in heard), default=0)
    start = window.timeframe.floor(window.end - reach(bars, window.timeframe, calendar))
    window = Window(window.symbol, window.timeframe, min(window.start, start), window.end)
    candles = read_candles(store, window)
    if candles.empty or not newest:
        raise InsufficientHistory(f"the store holds no candles of {window}; run tradeflows ingest for it")
    _require_last(candles, window, calendar)
    found = digest(candles)
    strategies = [[one.rule, one.version] for one in panel.strategies]
    weights = sorted([*key, round(value, 6)] for key, value in panel.weights.items())
    inputs = inputs_digest(
        REVISION, window.symbol, window.timeframe.value, found, panel.models.versions(), strategies, panel.llm,
        weights, panel.threshold, request.horizon, panel.settings_version, panel.disabled,
        [one.analyst for one in panel.unconfigured],
    )  # fmt: skip
    last: datetime = candles.index[-1].to_pydatetime()
    chosen = panel.models.champion
    seen = Seen(
        symbol=window.symbol,
        timeframe=window.timeframe,
        bar_close=last.astimezone(UTC) + window.timeframe.delta,
        price=float(candles["close"].iloc[-1]),
        data_mode=newest[0]["data_mode"],
        candles_digest=found,
        inputs_digest=inputs,
        # all are settled over the same bars: those that the model speaks of
        horizon=chosen.model.label.horizon if chosen is not None else request.horizon,
        settings_version=panel.settings_version,
        candles_start=candles.index[0].to_pydatetime().astimezone(UTC),
    )
    return Look(window, candles, calendar, seen)


def _require_last(candles: pd.DataFrame, window: Window, calendar: str) -> None:
    """Refuse to analyse an old bar as if it were the newest."""
    # ten days reach over every holiday of a stock exchange
    recent = window.within(max(window.start, window.end - timedelta(days=10)), window.end)
    expected = expected_opens(recent, calendar)
    if not len(expected):
        return
    have = int(candles.index[-1].timestamp() * 1000)
    if have < expected[-1]:
        due = datetime.fromtimestamp(expected[-1] / 1000, tz=window.end.tzinfo)
        raise InsufficientHistory(
            f"the newest candle of {window.symbol} {window.timeframe} opened at {candles.index[-1]:%Y-%m-%dT%H:%MZ} "
            f"and the one of {due:%Y-%m-%dT%H:%MZ} is due; run tradeflows ingest first"
        )
