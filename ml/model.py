"""A model in use: raw candles in, signals with their probabilities and reasons out.

Candles are checked before they are looked at, and each check has its error: ``CandleContractError`` for
columns, types, NaN, order, duplicates and the wrong timeframe, ``InsufficientHistory`` for too few rows,
``CandleGap`` for bars that are missing among those that the prediction needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from trading.calendars import ALWAYS_OPEN, expected_opens
from trading.errors import CandleContractError, CandleGap, InsufficientHistory
from trading.gaps import moment
from trading.window import Timeframe, Window

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
class Row:
    """What a prediction is made of: the last bar's open time (UTC) and its features, float64 (k,)."""

    open_time: datetime
    features: np.ndarray


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted estimator with all that its predictions depend on.

    ``manifest`` is what it was loaded with; ``calendar`` says when its markets trade (None: several, so
    that ``row`` must be told); ``gaps_tolerated`` bars may be missing among those a prediction needs.
    """

    fitted: Fitted
    feature_set: FeatureSet
    label: LabelDefinition
    rule: SignalRule
    timeframe: Timeframe
    manifest: Mapping[str, Any] = field(repr=False)
    calendar: str | None = ALWAYS_OPEN
    gaps_tolerated: int = 0

    @property
    def rows_needed(self) -> int:
        """How many candles a prediction needs."""
        return self.feature_set.rows_needed

    def predict(self, candles: pd.DataFrame, calendar: str | None = None) -> Prediction:
        """The signal at the close of the last candle, with reasons a person can read.

        Raises: as ``row``.
        """
        return self.predictions([self.row(candles, calendar)])[0]

    def row(self, candles: pd.DataFrame, calendar: str | None = None) -> Row:
        """The checked features of the last candle, computed from the last ``rows_needed`` candles alone.

        Args:
            calendar: of these candles, where it is not the model's.

        Raises:
            CandleContractError: missing columns, wrong types, NaN, unsorted, duplicate, impossible, or not of the
                model's timeframe.
            InsufficientHistory: fewer than ``rows_needed`` candles; says how many are needed.
            CandleGap: bars that the calendar expects are missing among the last ``rows_needed``.
        """
        self._check(candles)
        needed = candles.iloc[-self.rows_needed :]
        self._require_whole(needed, calendar or self.calendar)
        return self._row(needed)

    def example(self, candles: pd.DataFrame) -> Prediction:
        """What a prediction looks like; no trade is to follow it, so bars may be missing, as they may in training.

        Raises: as ``row``, without ``CandleGap``.
        """
        self._check(candles)
        return self.predictions([self._row(candles.iloc[-self.rows_needed :])])[0]

    def _row(self, needed: pd.DataFrame) -> Row:
        opened = pd.Timestamp(pd.DatetimeIndex(needed.index)[-1]).to_pydatetime()
        return Row(opened, features(needed, self.feature_set, self._step_ms).to_numpy()[-1])

    def predictions(self, rows: Sequence[Row]) -> list[Prediction]:
        """The predictions for rows of any number of symbols, in one pass of the estimator."""
        if not rows:
            return []
        probabilities = self.fitted.predict_proba(np.stack([row.features for row in rows]))
        sides = signals(probabilities, self.rule)
        return [
            self._prediction(row, each, Signal.of(float(side)))
            for row, each, side in zip(rows, probabilities, sides, strict=True)
        ]

    def _prediction(self, row: Row, probabilities: np.ndarray, signal: Signal) -> Prediction:
        short, neutral, long_ = (float(value) for value in probabilities)
        return Prediction(
            open_time=row.open_time,
            signal=signal,
            confidence=min({Signal.SHORT: short, Signal.NEUTRAL: neutral, Signal.LONG: long_}[signal], 1.0),
            p_short=short,
            p_neutral=neutral,
            p_long=long_,
            reasons=(self._rule_reason(signal, short, long_), *self._feature_reasons(row.features)),
        )

    def predict_all(self, candles: pd.DataFrame) -> pd.DataFrame:
        """Every bar's ``signal`` (int8), ``p_short``, ``p_neutral``, ``p_long``; indexed like ``candles``.

        The first ``rows_needed - 1`` bars have signal 0 and NaN probabilities. A gap in a long history is no
        error here, as it was none in training.

        Raises: as ``row``, without ``CandleGap``.
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

        Raises: as ``predict_all``.
        """
        sides = self.predict_all(candles)["signal"].to_numpy(dtype=np.int8)
        return sides if short_allowed else np.maximum(sides, 0)

    def probabilities(self, candles: pd.DataFrame) -> np.ndarray:
        """Probabilities of -1, 0, +1 for the bars after the warm-up: float64 (n - rows_needed + 1, 3).

        Raises: as ``predict_all``.
        """
        return self.fitted.predict_proba(self._checked_rows(candles))

    def _checked_rows(self, candles: pd.DataFrame) -> np.ndarray:
        self._check(candles)
        return features(candles, self.feature_set, self._step_ms).to_numpy()[self.rows_needed - 1 :]

    def _check(self, candles: pd.DataFrame) -> None:
        candle_frames.check(candles)
        if len(candles) < self.rows_needed:
            raise InsufficientHistory(
                f"a prediction needs {self.rows_needed} {self.timeframe} candles and there are {len(candles)}; "
                "ingest a longer window"
            )
        stamps = candle_frames.open_times_ms(candles)
        # the smallest step: nights, week-ends and missing bars only make larger ones
        least = int(np.diff(stamps).min())
        if least != self._step_ms:
            raise CandleContractError(
                f"the model was trained on {self.timeframe} candles and these are at least {least / 60_000:g} "
                f"minutes apart; give it {self.timeframe} candles"
            )
        off = stamps % self._step_ms != 0
        if off.any():
            raise CandleContractError(
                f"the candle at {candles.index[int(np.argmax(off))]} does not open on the {self.timeframe} grid"
            )

    @property
    def _step_ms(self) -> int:
        return int(self.timeframe.delta.total_seconds() * 1000)

    def _require_whole(self, candles: pd.DataFrame, calendar: str | None) -> None:
        if calendar is None:
            raise CandleContractError(
                "the model was trained on markets with several calendars; say which one these candles are of"
            )
        stamps = candle_frames.open_times_ms(candles)
        # on a market that never closes the first and the last bar tell how many there should be
        if calendar == ALWAYS_OPEN and stamps[-1] - stamps[0] == self._step_ms * (len(stamps) - 1):
            return
        span = Window("candles", self.timeframe, moment(stamps[0]), moment(stamps[-1]) + self.timeframe.delta)
        missing = np.setdiff1d(expected_opens(span, calendar), stamps)
        if len(missing) > self.gaps_tolerated:
            raise CandleGap(
                f"{len(missing)} {self.timeframe} bars are missing among the last {len(stamps)} candles, the first at "
                f"{moment(missing[0]):%Y-%m-%dT%H:%MZ}, the last at {moment(missing[-1]):%Y-%m-%dT%H:%MZ}; "
                f"a prediction tolerates {self.gaps_tolerated}: fill them with tradeflows ingest --repair"
            )

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
