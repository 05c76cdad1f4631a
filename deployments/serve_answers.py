"""What the model server is asked, and what it answers: candles in, the verified champion's signal out."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from deployments.serve_champion import Served, require
from tasks.models import Champion
from tasks.sources import Milliseconds
from trading.calendars import require_calendar
from trading.candles import frame_of
from trading.errors import CandleContractError, ConfigurationError, InvalidRequest

if TYPE_CHECKING:
    import pandas as pd

# clocks of two programs differ
CLOCKS_APART: Final = timedelta(seconds=5)


class Candle(msgspec.Struct):
    """A candle as the engine's chart has it: ``timestamp`` is the open, in milliseconds since the epoch, UTC."""

    timestamp: Milliseconds
    open: float
    high: float
    low: float
    close: float
    volume: float


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``/signal``.

    Attributes:
        candles: finished ones, the oldest first: objects, or rows of timestamp, open, high, low, close, volume.
        symbol: what they are of; one that the model was not trained on is refused.
        timeframe: what the caller takes the model's timeframe for; another one is refused.
        calendar: of their market, where the model knows several.
        data_mode: ``dataMode`` as the engine's chart has it, live, sample or simulated; the answer repeats it.
    """

    candles: list[Candle | tuple[Milliseconds, float, float, float, float, float]]
    symbol: str | None = None
    timeframe: str | None = None
    calendar: str | None = None
    data_mode: str | None = msgspec.field(default=None, name="dataMode")


class Split(msgspec.Struct):
    """MLflow's ``dataframe_split``."""

    columns: list[str]
    data: list[list[Any]]


class Invoked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``/invocations``: one of the two."""

    dataframe_split: Split | None = None
    dataframe_records: list[dict[str, Any]] | None = None


ASKED: Final = msgspec.json.Decoder(Asked)
INVOKED: Final = msgspec.json.Decoder(Invoked)


def answer(champion: Champion, asked: Asked, now: datetime) -> dict[str, Any]:
    """The signal at the close of the last candle, with the version behind it.

    Raises:
        InvalidRequest: a symbol or timeframe that is not the model's, or a calendar that is none.
        CandleContractError: candles that are none, or a last one that is still forming.
        InsufficientHistory, CandleGap: as ``ml.model.Model.predict``.
    """
    model, about = champion.model, champion.model.manifest["metadata"]
    trained_on = about.get("symbols")
    if asked.symbol is not None and trained_on is not None and asked.symbol not in trained_on:
        raise InvalidRequest(f"{champion.name} was trained on {', '.join(trained_on)}, and not on {asked.symbol}")
    if asked.timeframe is not None and asked.timeframe != model.timeframe.value:
        raise InvalidRequest(f"{champion.name} is of {model.timeframe} candles, and not of {asked.timeframe} ones")
    if asked.calendar is not None:
        try:
            require_calendar(asked.calendar)
        except ConfigurationError as error:
            raise InvalidRequest(str(error)) from error
    candles = frame(asked)
    prediction = model.predict(candles, asked.calendar)
    close = prediction.open_time + model.timeframe.delta
    if close > now + CLOCKS_APART:
        raise CandleContractError(
            f"the last candle is over at {close:%Y-%m-%dT%H:%M:%SZ}, and here it is {now:%Y-%m-%dT%H:%M:%SZ}; leave "
            "out the one that is still forming"
        )
    return {
        "symbol": asked.symbol,
        "timeframe": model.timeframe.value,
        "timestamp": close.isoformat(),
        "signal": prediction.signal.value,
        "confidence": prediction.confidence,
        "p_short": prediction.p_short,
        "p_neutral": prediction.p_neutral,
        "p_long": prediction.p_long,
        "reasons": list(prediction.reasons),
        "price": float(candles["close"].iloc[-1]),
        "horizon": model.label.horizon,
        "model": champion.name,
        "version": champion.version,
        "estimator": champion.estimator,
        "run_id": champion.run_id,
        "degraded": champion.degraded,
        "data_mode": asked.data_mode,
        "trained_on": about.get("data_mode"),
    }


def frame(asked: Asked) -> pd.DataFrame:
    """The posted candles as a candle frame, not checked yet."""
    rows = [msgspec.structs.astuple(one) if isinstance(one, Candle) else one for one in asked.candles]
    # times apart: as float64 they would do up to the year 287,396, and look like prices
    stamps = np.array([row[0] for row in rows], dtype=np.int64)
    return frame_of(stamps, np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 5))


def predictions(champion: Champion, invoked: Invoked) -> dict[str, Any]:
    """What MLflow's server would answer: one row about the last candle.

    Raises:
        InvalidRequest: neither or both forms, or rows that are no table.
        CandleContractError, InsufficientHistory, CandleGap: as ``ml.serving.PyfuncModel.predict``.
    """
    import pandas as pd

    from ml.serving import PyfuncModel

    if (invoked.dataframe_split is None) == (invoked.dataframe_records is None):
        raise InvalidRequest("give candles as dataframe_split or as dataframe_records, and not as both")
    try:
        if invoked.dataframe_split is not None:
            table = pd.DataFrame(invoked.dataframe_split.data, columns=invoked.dataframe_split.columns)
        else:
            table = pd.DataFrame(invoked.dataframe_records)
    except ValueError as error:
        raise InvalidRequest(f"the candles are no table: {error}") from error
    return {"predictions": PyfuncModel(champion.model).predict(table).to_dict(orient="records")}


def described(served: Served) -> dict[str, Any]:
    """What is served, and what candles it needs.

    Raises:
        ModelNotFound: nothing is.
    """
    champion = require(served)
    model, about = champion.model, champion.model.manifest["metadata"]
    return {
        "model": champion.name,
        "version": champion.version,
        "estimator": champion.estimator,
        "run_id": champion.run_id,
        "manifest_sha256": champion.manifest_sha256,
        "degraded": champion.degraded,
        "link": champion.link,
        "symbols": about.get("symbols"),
        "trained_on": about.get("data_mode"),
        "timeframe": model.timeframe.value,
        "candles_needed": model.rows_needed,
        "gaps_tolerated": model.gaps_tolerated,
        "calendar": model.calendar,
        "horizon": model.label.horizon,
        "verified_at": served.since.isoformat(),
    }
