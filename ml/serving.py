"""The model behind MLflow's pyfunc and ``mlflow models serve``: raw candles in, one row of analysis out.

MLflow finds it by ``loader_module="ml.serving"``, with the artifact's directory as ``data_path``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ml.artifact import load
from ml.model import Model, Prediction
from trading import candles as candle_frames
from trading.errors import CandleContractError, InvalidRequest


@dataclass(frozen=True)
class PyfuncModel:
    """What MLflow calls: candles in, one row with the analysis of the last candle out."""

    model: Model

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The prediction for the last of the candles.

        Args:
            model_input: raw candles; ``open_time`` is the index or a column, as times with a zone, text
                with a zone, or milliseconds since the epoch.
            params: none are known.

        Returns:
            One row: open_time (ISO 8601), signal, confidence, p_short, p_neutral, p_long, reasons (text).

        Raises:
            InvalidRequest: params were given.
            CandleContractError, CandleGap, InsufficientHistory: as ``Model.predict``.
        """
        if params:
            raise InvalidRequest(f"this model takes no parameters, and got {sorted(params)}")
        return _answer(self.model.predict(_candles_of(model_input)))

    def example(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """What ``predict`` gives, for a signature: also of candles that it would refuse for bars that are missing."""
        return _answer(self.model.example(_candles_of(model_input)))


def _answer(prediction: Prediction) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "open_time": prediction.open_time.isoformat(),
                "signal": prediction.signal.value,
                "confidence": prediction.confidence,
                "p_short": prediction.p_short,
                "p_neutral": prediction.p_neutral,
                "p_long": prediction.p_long,
                "reasons": "; ".join(prediction.reasons),
            }
        ]
    )


def _load_pyfunc(path: str) -> PyfuncModel:
    """MLflow's entry: files that are not what their manifest says are refused before they are parsed.

    The registry's signature is not here to be checked: ``tradeflows models verify`` does, before serving.
    """
    return PyfuncModel(load(Path(path)))


def _candles_of(frame: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in candle_frames.COLUMNS if name not in frame.columns]
    if missing:
        raise CandleContractError(f"candles lack the columns {missing}; needed are {list(candle_frames.COLUMNS)}")
    times: Any = frame[candle_frames.INDEX_NAME] if candle_frames.INDEX_NAME in frame.columns else frame.index
    numeric = pd.api.types.is_numeric_dtype(times.dtype)
    if numeric and candle_frames.INDEX_NAME not in frame.columns:
        raise CandleContractError("candles have no open_time: give it as a column or as the index of times")
    try:
        index = pd.DatetimeIndex(pd.to_datetime(times, unit="ms", utc=True) if numeric else pd.to_datetime(times))
        values = frame[list(candle_frames.COLUMNS)].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CandleContractError(f"candles cannot be read: {error}") from error
    if index.tz is None:
        raise CandleContractError("open_time has no time zone; give it in UTC, or as milliseconds since the epoch")
    if index.hasnans:
        raise CandleContractError("open_time is missing in some rows; every candle needs one")
    return candle_frames.frame_of(index.tz_convert("UTC").as_unit("ms").asi8, values)
