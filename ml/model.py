"""A model in use: raw candles in, signals with their probabilities and reasons out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np
import pandas as pd

from ml.estimators import Fitted
from ml.features import FeatureSet, features
from ml.labels import LabelDefinition
from ml.signals import SignalRule, signals
from trading import candles as candle_frames
from trading.analysis import Signal
from trading.errors import CandleContractError, InsufficientHistory
from trading.window import Timeframe

_NAMED_FEATURES: Final = 3


@dataclass(frozen=True)
class Prediction:
    """What the model says at the close of the bar that opened at ``open_time`` (UTC).

    ``confidence`` is the probability of the class that the signal stands for.
    """

    open_time: datetime
    signal: Signal
    confidence: float
    p_short: float
    p_neutral: float
    p_long: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted estimator with all that its predictions depend on; ``manifest`` is what it was loaded with."""

    fitted: Fitted
    feature_set: FeatureSet
    label: LabelDefinition
    rule: SignalRule
    timeframe: Timeframe
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def rows_needed(self) -> int:
        """How many candles a prediction needs."""
        return self.feature_set.rows_needed

    def predict(self, candles: pd.DataFrame) -> Prediction:
        """The signal at the close of the last candle, with reasons a person can read.

        Raises:
            CandleContractError: missing columns, NaN, unsorted, impossible, or not of the model's timeframe.
            InsufficientHistory: fewer than ``rows_needed`` candles; says how many are needed.
        """
        # only the last rows matter, but all must keep the contract
        row = self._checked_rows(candles)[-1:]
        probabilities = self.fitted.predict_proba(row)
        signal = Signal.of(float(signals(probabilities, self.rule)[0]))
        short, neutral, long_ = (float(value) for value in probabilities[0])
        return Prediction(
            open_time=pd.Timestamp(pd.DatetimeIndex(candles.index)[-1]).to_pydatetime(),
            signal=signal,
            confidence=min({Signal.SHORT: short, Signal.NEUTRAL: neutral, Signal.LONG: long_}[signal], 1.0),
            p_short=short,
            p_neutral=neutral,
            p_long=long_,
            reasons=(self._rule_reason(signal, short, long_), *self._feature_reasons(row[0])),
        )

    def predict_all(self, candles: pd.DataFrame) -> pd.DataFrame:
        """Every bar's ``signal`` (int8), ``p_short``, ``p_neutral``, ``p_long``; indexed like ``candles``.

        The first ``rows_needed - 1`` bars have signal 0 and NaN probabilities.

        Raises: as ``predict``.
        """
        rows = self._checked_rows(candles)
        probabilities = np.full((len(candles), 3), np.nan)
        probabilities[self.rows_needed - 1 :] = self.fitted.predict_proba(rows)
        table = pd.DataFrame(probabilities, index=candles.index, columns=["p_short", "p_neutral", "p_long"])
        table.insert(0, "signal", signals(probabilities, self.rule))
        return table

    def targets(self, candles: pd.DataFrame, *, short_allowed: bool = True) -> np.ndarray:
        """Target directions for a backtest: int8 (n,), decided on each close; warm-up is 0.

        Args:
            short_allowed: False turns Short into 0.

        Raises: as ``predict``.
        """
        sides = self.predict_all(candles)["signal"].to_numpy(dtype=np.int8)
        return sides if short_allowed else np.maximum(sides, 0)

    def probabilities(self, candles: pd.DataFrame) -> np.ndarray:
        """Probabilities of -1, 0, +1 for the bars after the warm-up: float64 (n - rows_needed + 1, 3).

        Raises: as ``predict``.
        """
        return self.fitted.predict_proba(self._checked_rows(candles))

    def _checked_rows(self, candles: pd.DataFrame) -> np.ndarray:
        candle_frames.check(candles)
        if len(candles) < self.rows_needed:
            raise InsufficientHistory(
                f"a prediction needs {self.rows_needed} {self.timeframe} candles and there are {len(candles)}; "
                "ingest a longer window"
            )
        step = int(self.timeframe.delta.total_seconds() * 1000)
        # the smallest step: nights, week-ends and missing bars only make larger ones
        least = int(np.diff(candle_frames.open_times_ms(candles)).min())
        if least != step:
            raise CandleContractError(
                f"the model was trained on {self.timeframe} candles and these are at least {least / 60_000:g} "
                f"minutes apart; give it {self.timeframe} candles"
            )
        return features(candles, self.feature_set).to_numpy()[self.rows_needed - 1 :]

    def _rule_reason(self, signal: Signal, short: float, long_: float) -> str:
        said = f"P(long) {long_:.3f}, P(short) {short:.3f} over {self.label.horizon} bars"
        needed = f"needed {self.rule.min_long:.3f} or {self.rule.min_short:.3f} and a lead of {self.rule.min_edge:.3f}"
        return f"{said}; {needed}: {signal.value}"

    def _feature_reasons(self, row: np.ndarray) -> tuple[str, ...]:
        shares = self.fitted.contributions(row)
        strongest = np.argsort(-np.abs(shares), kind="stable")[:_NAMED_FEATURES]
        return tuple(
            f"{self.feature_set.names[at]} = {row[at]:.4g} speaks for {'Long' if shares[at] > 0 else 'Short'} "
            f"({shares[at]:+.3f} in log odds)"
            for at in strongest
            if shares[at] != 0
        )
