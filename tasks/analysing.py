"""Analyses: the champion and the technical rules on the last finished bar of each symbol, stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from prefect import task

from tasks import ledger, log, registry
from tasks.models import Champion, champion
from tasks.retry import STORE, prefect_options
from tasks.settings import load_settings
from tasks.store import Store, configured_store, put_analysis, read_candles
from tasks.training import model_name
from trading.analysis import Analysis, Opinion, Signal, combine
from trading.calendars import expected_opens
from trading.errors import CandleGap, InsufficientHistory, ModelNotFound, ModelRejected, TradeflowsError
from trading.window import Timeframe, Window

if TYPE_CHECKING:
    import pandas as pd

    from ml.model import Prediction

# the model has been measured against a baseline, the rules have not
WEIGHTS: Final = {"model": 2.0}
RULE_NAMES: Final = ("rsi", "macd")
RULE_CONFIDENCE: Final = 0.5


@dataclass(frozen=True)
class Analysed:
    """One row of an analysis run."""

    symbol: str
    timestamp: str
    signal: str
    confidence: float
    price: float
    reasons: list[str]
    model_version: str | None
    data_mode: str


@dataclass(frozen=True, eq=False)
class Look:
    """What is known of a symbol before anything is said of it: candles up to the bar to analyse.

    ``silent`` says why the model, where there is one, has no prediction.
    """

    window: Window
    candles: pd.DataFrame
    data_mode: str
    prediction: Prediction | None
    silent: str | None = None


def look(store: Store, window: Window, chosen: Champion | None) -> Look:
    """Read the candles of ``window`` and ask the champion, where there is one, about the last of them.

    Args:
        window: enough history for the model and the rules, ending at the bar to analyse.

    Raises:
        InsufficientHistory: the last bar that the market should have is not in the store.
    """
    candles = read_candles(store, window)
    entries = ledger.entries(store, window.symbol, window.timeframe)
    if candles.empty or not entries:
        raise InsufficientHistory(f"the store holds no candles of {window}; run tradeflows ingest for it")
    _require_last(candles, window, entries[-1].calendar)
    mode, calendar = entries[-1].data_mode, entries[-1].calendar
    if chosen is None:
        return Look(window, candles, mode, None)
    try:
        return Look(window, candles, mode, chosen.model.predict(candles, calendar))
    except (CandleGap, InsufficientHistory) as error:
        # the rules need less; the analysis names who was missing, and why
        log.logger().warning("model is silent", reason=str(error))
        return Look(window, candles, mode, None, f"{chosen.name} version {chosen.version} is silent: {error}")


@dataclass(frozen=True)
class Judged:
    """What the suite said: ``refused`` has the reason by symbol, ``warnings`` concern the whole run."""

    refused: dict[str, str]
    warnings: tuple[str, ...]


def judge_predictions(predictions: dict[str, Prediction]) -> Judged:
    """Judge the predictions of a run, by symbol, in one pass."""
    if not predictions:
        return Judged({}, ())
    from expectations.predictions import judge

    verdicts, of_run = judge(list(predictions.values()))
    refused = {
        symbol: "; ".join(map(str, verdict.critical))
        for symbol, verdict in zip(predictions, verdicts, strict=True)
        if verdict.critical
    }
    return Judged(refused, tuple(map(str, of_run.findings)))


def conclude(
    store: Store, seen: Look, chosen: Champion | None, judged: Judged, absent: Sequence[str], *, now: datetime
) -> Analysed:
    """Combine the opinions on the last bar and store the analysis under the bar's close.

    A prediction that was refused has no say: the analysis calls the model absent and says why.

    Args:
        chosen: the champion, or None where it is among the ``absent``.
    """
    window, candles = seen.window, seen.candles
    opinions = [_rule_opinion(name, candles) for name in RULE_NAMES]
    refused = judged.refused.get(window.symbol)
    remarks: tuple[str, ...] = ()
    if chosen is not None and refused is not None:
        remarks = (f"the prediction of {chosen.name} version {chosen.version} was refused: {refused}",)
        chosen, absent = None, [*absent, "model"]
    elif seen.silent is not None:
        remarks = (seen.silent,)
        chosen, absent = None, [*absent, "model"]
    elif chosen is not None and seen.prediction is not None:
        opinions.insert(0, _model_opinion(chosen, seen.prediction))
        remarks = (*judged.warnings, *([chosen.degraded] if chosen.degraded else []))
    analysis = combine(opinions, WEIGHTS, absent=absent)
    analysis = replace(analysis, reasons=(*analysis.reasons, *remarks))
    bar_close = _last_open(candles) + window.timeframe.delta
    put_analysis(store, _document(window, analysis, bar_close, seen.data_mode, chosen, now))
    return Analysed(
        symbol=window.symbol,
        timestamp=bar_close.isoformat(),
        signal=analysis.signal.value,
        confidence=round(analysis.confidence, 4),
        price=float(candles["close"].iloc[-1]),
        reasons=list(analysis.reasons),
        model_version=_version(chosen) if chosen is not None else None,
        data_mode=seen.data_mode,
    )


def _document(
    window: Window, analysis: Analysis, bar_close: datetime, mode: str, chosen: Champion | None, now: datetime
) -> dict[str, Any]:
    # symbol, timestamp, analysis and created_at are what the engine reads; the rest is ours
    return {
        "symbol": window.symbol,
        "timeframe": window.timeframe.value,
        "timestamp": bar_close,
        "analysis": {
            "signal": analysis.signal.value,
            "confidence": analysis.confidence,
            "reasoning": "\n".join(analysis.reasons),
            "opinions": [
                {**asdict(opinion), "signal": opinion.signal.value, "reasons": list(opinion.reasons)}
                for opinion in analysis.opinions
            ],
            "absent": list(analysis.absent),
        },
        "data_mode": mode,
        "model": _named(chosen) if chosen else None,
        "flow_run_id": log.flow_run_id(),
        "created_at": now,
    }


def _version(chosen: Champion) -> str:
    return f"v{chosen.version} {chosen.estimator}" + (", degraded" if chosen.degraded else "")


def _named(chosen: Champion) -> dict[str, Any]:
    return {"name": chosen.name, "version": chosen.version, "run_id": chosen.run_id, "degraded": chosen.degraded}


def _rule_opinion(name: str, candles: pd.DataFrame) -> Opinion:
    from trading.strategies import explain

    target, reason = explain(name, candles)
    signal = Signal.of(target)
    return Opinion(name, signal, RULE_CONFIDENCE, (reason,))


def _model_opinion(chosen: Champion, prediction: Prediction) -> Opinion:
    return Opinion(
        "model",
        prediction.signal,
        prediction.confidence,
        prediction.reasons,
        {"model": chosen.name, "version": chosen.version, "run_id": chosen.run_id, "manifest": chosen.manifest_sha256},
    )


def _last_open(candles: pd.DataFrame) -> datetime:
    last: datetime = candles.index[-1].to_pydatetime()
    return last


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


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="analyse-symbols", **prefect_options(STORE))
def analyse_task(
    symbols: list[str], model_symbols: list[str], timeframe: Timeframe, start: datetime, end: datetime, now: datetime
) -> tuple[list[Analysed], list[str]]:
    """Analyse each symbol; returns the rows, and the errors of symbols that could not be analysed."""
    settings = load_settings()
    rows: list[Analysed] = []
    errors: list[str] = []
    with configured_store(settings) as store:
        chosen, absent = None, []
        name = model_name(model_symbols, timeframe)
        try:
            chosen = champion(registry.connect(settings), settings, name, store=store, now=now)
        except ModelNotFound as error:
            # the rules can still speak; the analysis names who was missing
            log.logger().warning("no champion", reason=str(error))
            absent = ["model"]
        except ModelRejected as error:
            # likewise; but somebody has to look, so the run ends failed
            errors.append(str(error))
            absent = ["model"]
        looks = []
        for symbol in symbols:
            window = Window(symbol, timeframe, start, end)
            with log.about(window), _collected(symbol, errors):
                looks.append(look(store, window, chosen))
        judged = judge_predictions({each.window.symbol: each.prediction for each in looks if each.prediction})
        for warning in judged.warnings:
            log.logger().warning("odd predictions", finding=warning)
        for seen in looks:
            symbol = seen.window.symbol
            with log.about(seen.window), _collected(symbol, errors):
                if symbol in judged.refused:
                    log.logger().error("prediction refused", findings=judged.refused[symbol])
                rows.append(conclude(store, seen, chosen, judged, absent, now=now))
    return rows, errors


@contextmanager
def _collected(symbol: str, errors: list[str]) -> Iterator[None]:
    """One symbol's failure does not stop the others."""
    try:
        yield
    except TradeflowsError as error:
        log.logger().error("not analysed", error=str(error))
        errors.append(f"{symbol}: {error}")
