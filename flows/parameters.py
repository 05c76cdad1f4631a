"""The types and limits of the parameters that flows share.

What each means stands in the flows' docstrings, from which Prefect makes the forms' descriptions.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

Symbol = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,32}$")]
Symbols = Annotated[list[Symbol], Field(min_length=1)]
SourceName = Literal["exchange", "engine", "files"]
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
