"""What a measurement is, for ``make bench``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from deployments.sandbox.generator import RECIPES, generate
from deployments.sandbox.markets import GENERATED_START
from trading.candles import frame_of


@dataclass(frozen=True)
class Figure:
    """One measured thing: ours and a peer's best time in milliseconds, and what else there is to say."""

    what: str
    ours: float
    peer: str
    theirs: float
    note: str = ""


def best(work: Callable[[], object], repeats: int) -> float:
    """The shortest of several runs, in milliseconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def market(bars: int, step_ms: int) -> pd.DataFrame:
    """A generated candle frame of ``bars`` bars."""
    opens = int(GENERATED_START.timestamp() * 1000) + step_ms * np.arange(bars, dtype="int64")
    return frame_of(opens, generate(RECIPES[:1], bars, 7)["BTCSIM"])
