"""The parameters that flows share: their titles, descriptions, defaults and limits make the forms."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

Symbol = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,32}$")]

Symbols = Annotated[
    list[Symbol],
    Field(title="Symbols", description="Symbols as the source spells them, such as BTCUSDT", min_length=1),
]
Source = Literal["exchange", "engine", "files"]

SourceName = Annotated[
    Source,
    Field(
        title="Source",
        description="exchange: Binance-style REST; engine: the execution engine's chart API; files: parquet or csv",
    ),
]
Refresh = Annotated[
    Source | None,
    Field(title="Refresh", description="Source to bring the candles up to date from first; empty: use what is stored"),
]
Days = Annotated[
    int, Field(title="Days", description="How many days to look back where no start is given", ge=1, le=20_000)
]
Start = Annotated[
    datetime | None, Field(title="Start", description="Open time of the first bar (UTC); empty: so many days back")
]
End = Annotated[
    datetime | None,
    Field(title="End", description="End of the last bar (UTC); empty: the last bar that is over when the run is due"),
]
Horizon = Annotated[int, Field(title="Horizon", description="Bars from fill to the label's end", ge=1, le=1_000)]
Folds = Annotated[int, Field(title="Folds", description="Folds of the purged walk-forward", ge=2, le=20)]
Seed = Annotated[int, Field(title="Seed", description="Seed of everything that draws", ge=0)]
FeeRate = Annotated[
    float, Field(title="Fee rate", description="Fee per side as a share of the notional: 0.001 is 0.1 %", ge=0, lt=1)
]
SlippageRate = Annotated[
    float, Field(title="Slippage rate", description="Slippage per side as a share of the price", ge=0, lt=1)
]
Cash = Annotated[float, Field(title="Cash", description="Starting cash in the quote currency", gt=0)]
