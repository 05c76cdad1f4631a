"""The types and limits of the parameters that flows share.

What each means stands in the flows' docstrings, from which Prefect makes the forms' descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from trading.window import Timeframe

Symbol = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,32}$")]
Symbols = Annotated[list[Symbol], Field(min_length=1)]
SourceName = Literal["exchange", "mirror", "engine", "files"]
Fallback = Annotated[Sequence[SourceName], Field(max_length=3)]
Compare = SourceName | None
Recheck = Annotated[int, Field(ge=0, le=1_000_000)]
Repair = bool
Derive = Annotated[Sequence[Timeframe], Field(max_length=11)]
Refresh = SourceName | None
Days = Annotated[int, Field(ge=1, le=20_000)]
Start = datetime | None
End = datetime | None
Horizon = Annotated[int, Field(ge=1, le=1_000)]
Folds = Annotated[int, Field(ge=2, le=20)]
Seed = Annotated[int, Field(ge=0)]
FeeRate = Annotated[float, Field(ge=0, lt=1)]
SlippageRate = Annotated[float, Field(ge=0, lt=1)]
BuyThreshold = Annotated[float, Field(ge=0, lt=1)]
SellThreshold = Annotated[float, Field(gt=-1, le=0)]
Cash = Annotated[float, Field(gt=0)]
LabelKind = Literal["forward", "triple_barrier"]
TuneTrials = Annotated[int, Field(ge=0, le=1_000)]
TuneMinutes = Annotated[int, Field(ge=1, le=1_440)]
PsiThreshold = Annotated[float, Field(gt=0, le=10)]
Level = Annotated[float, Field(gt=0, lt=1)]
HitRateDrop = Annotated[float, Field(gt=0, lt=1)]
EstimatorNames = Annotated[Sequence[Literal["logistic", "boosting", "lightgbm"]], Field(max_length=3)]
BarrierWidth = Annotated[float, Field(gt=0, le=100)]
RollingDays = Annotated[int, Field(ge=1, le=20_000)] | None
FeatureParameters = dict[str, Any]
EstimatorParameters = dict[str, dict[str, Any]]
