"""What the sandbox exchange remembers while it runs: markets, clock, faults, and what it was asked."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
from starlette.requests import Request

from deployments.sandbox.faults import Faults
from deployments.sandbox.markets import Market, Markets
from deployments.sandbox.moments import milliseconds

FASTEST: Final = 1_000_000.0  # at eleven days a second the calendar still lasts for days
MINUTE: Final = 60.0


@dataclass
class State:
    """What can be changed from outside while the exchange runs.

    Attributes:
        running_since: reading of ``ticks`` when the clock was last set; None where it stands still.
        speed: seconds of a running clock per real second.
        requests: how often candles were asked for.
        replies: how many replies of each status there were, by the name of what was asked.
        weights: when requests came in the last minute, and what they weigh.
    """

    markets: Markets
    set_to: datetime
    faults: Faults
    rng: np.random.Generator
    running_since: float | None = None
    requests: int = 0
    speed: float = 1.0
    replies: dict[str, Counter[str]] = field(default_factory=dict)
    weights: deque[tuple[float, int]] = field(default_factory=deque)
    used_weight: int = 0
    ticks: Callable[[], float] = time.monotonic

    @property
    def clock(self) -> datetime:
        """The exchange's time: what it was set to, and the seconds since where it runs."""
        if self.running_since is None:
            return self.set_to
        return self.set_to + timedelta(seconds=(self.ticks() - self.running_since) * self.speed)

    def set(self, moment: datetime) -> None:
        """Set the clock; one that runs goes on from there."""
        self.set_to = moment
        if self.running_since is not None:
            self.running_since = self.ticks()

    def run(self, speed: float) -> None:
        """Let the clock run from where it is, ``speed`` of its seconds per real one; 0 stops it."""
        self.set_to = self.clock
        self.running_since = self.ticks() if speed else None
        self.speed = speed

    def newest(self, market: Market) -> int:
        """Open time in ms of the newest candle that may be shown."""
        now = milliseconds(self.clock)
        if not self.faults.late:
            return now
        return now - market.step - int(self.faults.late * 1000)

    def weigh(self, weight: int) -> int:
        """Count a request of that weight; what all of the last minute weigh, by real time."""
        now = self.ticks()
        self.weights.append((now, weight))
        self.used_weight += weight
        while self.weights[0][0] <= now - MINUTE:
            self.used_weight -= self.weights.popleft()[1]
        return self.used_weight

    def count(self, name: str, status: int) -> None:
        """Remember a reply."""
        self.replies.setdefault(name, Counter())[str(status)] += 1


def require_speed(value: Any) -> float:
    """A speed that a clock can run at.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= FASTEST:
        raise ValueError(f"speed is {value!r}; give seconds of the clock per real second, 0 to {FASTEST:,.0f}")
    return float(value)


def state_of(request: Request) -> State:
    """The state of the exchange that was asked."""
    state: Any = request.app.state.exchange
    assert isinstance(state, State)  # noqa: S101 - narrows the type for the reader and the checker
    return state
