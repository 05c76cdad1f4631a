"""The parameters that flows share: type, limits, and what a form says of each.

Prefect makes the form of a deployment from a flow's annotations. It takes limits from pydantic's ``Field``, and puts
the name of the parameter where ``Field`` gives a title; what ``form`` says comes through. A parameter that means
something else in one flow is annotated again there, with another ``form``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints

from trading.window import Timeframe

# the server compares no formats, but patterns; a time without a zone would be refused by the run
MOMENT: Final = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.]\d+)?)?(Z|[+-]\d\d:?\d\d)$"
DATE: Final = r"^\d{4}-\d\d-\d\d$"
IDENTIFIER: Final = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
# of a rule, a parameter or a feature
NAME: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
# what seeds of every library may be
LARGEST_SEED: Final = 2_147_483_647
LARGEST_CASH: Final = 1e12


def form(title: str, description: str, *examples: Any) -> Any:
    """What a form says of a parameter, for ``Annotated``.

    Args:
        title: what stands above the field.
        description: what it means, in which unit, and what an empty one stands for.
        examples: values that make sense.
    """
    shown: dict[str, Any] = {"title": title, "description": description}
    if examples:
        shown["examples"] = list(examples)
    return Field(json_schema_extra=shown)


def names(known: Sequence[str] | str) -> Any:
    """What the keys of a table may be, for ``Annotated``: some of ``known``, or what fits that pattern."""
    return Field(
        json_schema_extra={"propertyNames": {"pattern": known} if isinstance(known, str) else {"enum": list(known)}}
    )


def _each_once(symbols: list[str]) -> list[str]:
    twice = [symbol for symbol, count in Counter(symbols).items() if count > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} given more than once; give each symbol once")
    return symbols


Symbol = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,32}$")]
Symbols = Annotated[
    list[Symbol],
    Field(min_length=1, max_length=2_000),
    Field(json_schema_extra={"uniqueItems": True}),
    AfterValidator(_each_once),
    form("Symbols", "Symbols as the source spells them.", ["BTCUSDT", "ETHUSDT"]),
]
Bar = Annotated[Timeframe, form("Timeframe", "Length of a bar.", "1h")]
Days = Annotated[
    int, Field(ge=1, le=20_000), form("Days back", "How many days to look back where no start is given.", 365)
]
Moment = Annotated[datetime, Field(json_schema_extra={"pattern": MOMENT})]
Start = Annotated[
    Moment | None,
    form("Start", "Open time of the first bar (UTC). Empty: so many days back.", "2026-01-01T00:00:00Z"),
]
End = Annotated[
    Moment | None,
    form(
        "End",
        "End of the last bar (UTC). Empty: the last bar that is over when the run is due.",
        "2026-02-01T00:00:00Z",
    ),
]

SourceName = Literal["exchange", "mirror", "engine", "files"]
Source = Annotated[
    SourceName,
    form(
        "Source",
        "Where candles come from: exchange or mirror (Binance-style REST), engine (its chart API) or files.",
        "exchange",
    ),
]
Refresh = Annotated[
    SourceName | None,
    form("Refresh from", "Source to bring the candles up to date from first. Empty: use what is stored.", "exchange"),
]

FeeRate = Annotated[
    float, Field(ge=0, lt=1), form("Fee rate", "Fee per side as a share of the notional, 0.001 for 0.1 %.", 0.001)
]
SlippageRate = Annotated[
    float, Field(ge=0, lt=1), form("Slippage rate", "Slippage per side as a share of the price.", 0.0005)
]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED), form("Seed", "Seed of everything that draws.", 7)]

Horizon = Annotated[int, Field(ge=1, le=1_000), form("Horizon", "Bars from the fill to the end of the label.", 12)]
Folds = Annotated[int, Field(ge=2, le=20), form("Folds", "Folds of the purged walk-forward.", 4)]
BuyThreshold = Annotated[
    float,
    Field(ge=0, lt=1),
    form("Buy threshold", "Forward return above which the label is Long, as a fraction.", 0.005),
]
SellThreshold = Annotated[
    float,
    Field(gt=-1, le=0),
    form("Sell threshold", "Forward return below which the label is Short, as a fraction.", -0.005),
]
EstimatorName = Literal["logistic", "boosting", "lightgbm"]
RollingDays = Annotated[
    Annotated[int, Field(ge=1, le=20_000)] | None,
    form("Rolling days", "Train each fold on so many days before it. Empty: on all of the past.", 365),
]
