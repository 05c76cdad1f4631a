"""How the sandbox exchange misbehaves when it is told to: what there is, how it is checked, what it does to rows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np

from deployments.sandbox.moments import utc_of

WHOLE: Final = frozenset({"seed", "only"})


@dataclass(frozen=True)
class Faults:
    """How often the exchange misbehaves; shares between 0 and 1 of the candle requests, or of the rows.

    Candles are asked for by klines and by the engine's chart, and both are struck alike.

    Attributes:
        rate_limited: answered 429 with Retry-After ``retry_after`` seconds.
        failing: answered 503.
        hanging: answered ``hang_seconds`` late.
        truncated: the JSON text is cut in half.
        duplicated, missing, malformed: rows sent twice, left out, or with high below low.
        shuffled: pages whose rows come in another order.
        only: the shares end after so many candle requests; 0 for never.
        late: a candle appears so many seconds of the exchange's clock after its close, and none that is
            still forming is shown.
        outage_start: from this moment of its clock (ISO 8601) on, every request under ``/api`` is answered 503,
            for ``outage_seconds`` of its clock.
    """

    seed: int = 0
    rate_limited: float = 0.0
    retry_after: float = 1.0
    failing: float = 0.0
    hanging: float = 0.0
    hang_seconds: float = 30.0
    truncated: float = 0.0
    duplicated: float = 0.0
    missing: float = 0.0
    malformed: float = 0.0
    shuffled: float = 0.0
    only: int = 0
    late: float = 0.0
    outage_start: str | None = None
    outage_seconds: float = 0.0

    @property
    def spoils_rows(self) -> bool:
        """Whether rows may be sent twice, left out or broken."""
        return bool(self.duplicated or self.missing or self.malformed)

    def after_one(self) -> Faults:
        """What is left after one candle request."""
        if not self.only:
            return self
        if self.only > 1:
            return replace(self, only=self.only - 1)
        # what hangs on the clock does not end with the number of requests
        return Faults(late=self.late, outage_start=self.outage_start, outage_seconds=self.outage_seconds)

    def out_at(self, clock: datetime) -> bool:
        """Whether the exchange is out of service at that moment of its clock."""
        if self.outage_start is None:
            return False
        return timedelta(0) <= clock - utc_of(self.outage_start) < timedelta(seconds=self.outage_seconds)


def checked(asked: Any) -> Faults:
    """The faults that a request asks for.

    Raises:
        ValueError, TypeError, OverflowError: it asks for none that there is; says which.
    """
    if not isinstance(asked, dict):
        raise TypeError(f"give an object of faults, not {asked!r}")
    for name, value in asked.items():
        if name == "outage_start":
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if not number or (name in WHOLE and not isinstance(value, int)):
            raise ValueError(f"{name} is {value!r}; give a number from 0 on, a whole one for seed and only")
    faults = Faults(**asked)
    if (faults.outage_start is None) != (faults.outage_seconds == 0):
        raise ValueError("an outage takes outage_start (ISO 8601) and outage_seconds above 0")
    if faults.outage_start is not None:
        start = utc_of(faults.outage_start)
        faults.out_at(start)  # a span that no timedelta holds is refused here
        faults = replace(faults, outage_start=start.isoformat())
    return faults


def spoilt(rows: list[str], faults: Faults, rng: np.random.Generator) -> list[str]:
    """``rows`` (JSON texts) less those that get lost, with some broken and some twice."""
    if not faults.spoils_rows:
        return rows
    fates = rng.random((len(rows), 3))
    made = []
    for row, (lost, broken, twice) in zip(rows, fates.tolist(), strict=True):
        if lost < faults.missing:
            continue
        sent = _broken(row) if broken < faults.malformed else row
        made += [sent, sent] if twice < faults.duplicated else [sent]
    return made


def _broken(row: str) -> str:
    """A kline or a candle of the chart whose high lies below its low."""
    fields = json.loads(row)
    if isinstance(fields, list):
        fields[2] = repr(float(fields[3]) * 0.99)
    else:
        fields["high"] = fields["low"] * 0.99
    return json.dumps(fields)
