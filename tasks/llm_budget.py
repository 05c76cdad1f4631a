"""What the LLM may cost and what it did: reserved before each call, settled after it, one document per call.

A month's budget is one document: what each day has cost, and the calls under way with the most that each can
cost. A call is let through only if all of that together stays within the day's and the month's budget, so neither
is ever crossed, however many workers call at once. A call whose worker died stays reserved until ``reconcile``
books it as *lost*, at its worst case: it may have been billed. Amounts are whole nano-dollars, rounded up.
"""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from tasks import log
from tasks.documents import Document, Documents, Span
from tasks.llm_commits import GroupCommit
from tasks.llm_keys import tomorrow
from tasks.settings import Settings
from tasks.store import LLM_BUDGETS, LLM_CALLS
from trading.errors import BudgetExhausted, ConfigurationError, RevisionConflict

NANO: Final = 1_000_000_000
CONFLICT_ATTEMPTS: Final = 200
# longer than any call may take
LOST_AFTER: Final = timedelta(hours=1)
# what the protocol adds to each message, generously
TOKENS_AROUND: Final = 32

ANSWERED: Final = "answered"
REJECTED: Final = "rejected"
DECLINED: Final = "declined"
LOST: Final = "lost"


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens of the prompt and of the completion."""

    prompt: float
    completion: float

    def nano(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What so many tokens cost, in nano-dollars, rounded up."""
        # a millionth of a dollar per token is 1,000 nano-dollars; rounded first, for 0.1 + 0.2
        return math.ceil(round((prompt_tokens * self.prompt + completion_tokens * self.completion) * 1000, 3))


@dataclass(frozen=True)
class Reservation:
    """The most that a call under way can cost."""

    id: str
    at: datetime
    nano: int
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Spent:
    """US dollars of a day and of its month: settled or lost, under way, and left of the budgets."""

    day: float
    month: float
    under_way: float
    day_left: float
    month_left: float


def price_of(settings: Settings) -> Price:
    """The price of the model that the settings name.

    Raises:
        ConfigurationError: it has none there; a call could cost anything.
    """
    found = settings.llm_prices.get(settings.llm_model)
    if found is None:
        raise ConfigurationError(
            f"the price of the LLM {settings.llm_model!r} is not known, so it is not asked; add it to "
            f"TRADEFLOWS_LLM_PRICES (known: {', '.join(sorted(settings.llm_prices)) or 'none'})"
        )
    return Price(*found)


def prompt_bound(messages: Sequence[Mapping[str, str]], response_format: Mapping[str, Any]) -> int:
    """No prompt of these messages has more tokens: a token stands for one byte at least."""
    parts = [*(message["content"] for message in messages), json.dumps(response_format)]
    return sum(len(part.encode()) for part in parts) + TOKENS_AROUND * (len(parts) + 1)


def day_of(moment: datetime) -> str:
    """The UTC day as calls and budgets spell it, such as 2026-11-21; its first seven letters are the month."""
    return f"{moment.astimezone(UTC):%Y-%m-%d}"


# a month with the change in it, or itself where there is nothing to change; raises BudgetExhausted
_Change = Callable[[Document], Document]


class Budget:
    """Reserves and settles. Safe for threads and processes."""

    def __init__(
        self,
        documents: Documents,
        daily: float,
        monthly: float,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        # rounded down: a budget is what may not be crossed
        self._daily, self._monthly = (math.floor(round(usd * NANO, 3)) for usd in (daily, monthly))
        self._documents, self._clock = documents, clock
        self._months: dict[str, GroupCommit[_Change, None]] = {}
        # one at a time: more would be in each other's way, and in that of the next reservation
        self._recording = threading.Lock()

    def require(self, nano: int) -> None:
        """Look whether a call that may cost so much would be let through.

        Raises:
            BudgetExhausted: it would not.
        """
        now = self._clock()
        self._refuse_above(_month(self._documents, day_of(now)[:7]), nano, now)

    def reserve(self, nano: int, about: Mapping[str, Any]) -> Reservation:
        """Set aside what a call may cost.

        Args:
            about: what the call's document is to say besides: model, symbol and the like.

        Raises:
            BudgetExhausted: it could cost more than is left; nothing was set aside.
        """
        now = self._clock()
        made = Reservation(uuid.uuid4().hex, now, nano, dict(about))

        def add(month: Document) -> Document:
            self._refuse_above(month, nano, now)
            entry = {"day": day_of(now), "at": now, "nano": nano, "about": dict(about)}
            return {**month, "open": {**month["open"], made.id: entry}}

        self._change(day_of(now)[:7], add)
        return made

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back for a call that was not made."""
        self._close(reservation, 0)

    def settle(
        self,
        reservation: Reservation,
        outcome: str,
        *,
        nano: int,
        latency: float,
        tokens: tuple[int, int] | None,
    ) -> None:
        """Write down how a call ended and what it cost, in place of its reservation; twice is once.

        Args:
            latency: seconds.
            tokens: of prompt and completion; None where nobody told, and ``nano`` is an estimate.
        """
        if nano > reservation.nano:
            log.logger().warning(
                "LLM call cost more than its worst case", usd=nano / NANO, reserved_usd=reservation.nano / NANO
            )
        call = _call(reservation, outcome, nano=nano, latency=latency, tokens=tokens)
        # first the document: where the other write is lost, reconcile finds the true cost
        with self._recording:
            self._documents.put(LLM_CALLS, call)
        self._close(reservation, nano)

    def spent(self, day: str | None = None) -> Spent:
        """What a UTC day (default: today) and its month have cost so far."""
        wanted = day or day_of(self._clock())
        month = _month(self._documents, wanted[:7])
        of_day, of_month = _totals(month, wanted)
        return Spent(
            month["spent"].get(wanted, 0) / NANO,
            sum(month["spent"].values()) / NANO,
            sum(entry["nano"] for entry in month["open"].values()) / NANO,
            max(self._daily - of_day, 0) / NANO,
            max(self._monthly - of_month, 0) / NANO,
        )

    def reconcile(self, older_than: timedelta = LOST_AFTER) -> int:
        """Book calls that nobody settled in that time at what they may have cost; how many there were."""
        now, lost = self._clock(), 0
        this = day_of(now)[:7]
        for name in {this, day_of(now.replace(day=1) - timedelta(days=1))[:7]}:
            for key, entry in _month(self._documents, name)["open"].items():
                if entry["at"] > now - older_than:
                    continue
                reservation = Reservation(key, entry["at"], entry["nano"], entry["about"])
                settled = self._documents.get(LLM_CALLS, key)
                if settled is None:
                    lost += 1
                    call = _call(reservation, LOST, nano=reservation.nano, latency=None, tokens=None)
                    self._documents.put(LLM_CALLS, call)
                self._close(reservation, int(settled["nano"]) if settled else reservation.nano)
        return lost

    def _close(self, reservation: Reservation, nano: int) -> None:
        day = day_of(reservation.at)

        def close(month: Document) -> Document:
            if reservation.id not in month["open"]:
                return month
            left = {key: entry for key, entry in month["open"].items() if key != reservation.id}
            return {**month, "open": left, "spent": {**month["spent"], day: month["spent"].get(day, 0) + nano}}

        self._change(day[:7], close)

    def _refuse_above(self, month: Document, nano: int, now: datetime) -> None:
        of_day, of_month = _totals(month, day_of(now))
        for total, budget, name, until in (
            (of_day, self._daily, "day", tomorrow(now)),
            (of_month, self._monthly, "month", _next_month(now)),
        ):
            if total + nano > budget:
                raise BudgetExhausted(
                    f"the LLM's budget of this UTC {name} is {budget / NANO:g} USD, of which {total / NANO:.6f} are "
                    f"spent or reserved, and a call may cost {nano / NANO:.6f}; it is renewed at "
                    f"{until:%Y-%m-%dT%H:%MZ}, or raise "
                    f"TRADEFLOWS_LLM_{'DAILY' if name == 'day' else 'MONTHLY'}_BUDGET",
                    until,
                )

    def _change(self, name: str, change: _Change) -> None:
        """Change a month; changes of threads that come at the same time are one write."""
        self._months.setdefault(name, GroupCommit(partial(self._changed, name))).submit(change)

    def _changed(self, name: str, changes: list[_Change]) -> list[Exception | None]:
        """What became of each change: None, or why it was refused."""
        for _ in range(CONFLICT_ATTEMPTS):
            month = before = _month(self._documents, name)
            refused: list[Exception | None] = []
            for change in changes:
                try:
                    month = change(month)
                except BudgetExhausted as error:
                    refused.append(error)
                else:
                    refused.append(None)
            if month is before or self._documents.compare_and_set(LLM_BUDGETS, month, before.get("rev", 0)):
                return refused
        raise RevisionConflict(f"the LLM's budget was changed by others {CONFLICT_ATTEMPTS} times in a row; try again")


def calls_of(documents: Documents, day: str) -> list[Document]:
    """The calls of a UTC day, oldest first."""
    return documents.find(LLM_CALLS, {"day": day}, Span("at"))


def _call(
    reservation: Reservation, outcome: str, *, nano: int, latency: float | None, tokens: tuple[int, int] | None
) -> Document:
    day = day_of(reservation.at)
    return {
        **reservation.about,
        "_id": reservation.id,
        "at": reservation.at,
        "day": day,
        "month": day[:7],
        "outcome": outcome,
        "prompt_tokens": tokens[0] if tokens else None,
        "completion_tokens": tokens[1] if tokens else None,
        "usd": nano / NANO,
        "nano": nano,
        "reserved_usd": reservation.nano / NANO,
        "latency": latency,
    }


def _month(documents: Documents, name: str) -> Document:
    return documents.get(LLM_BUDGETS, name) or {"_id": name, "spent": {}, "open": {}}


def _totals(month: Document, day: str) -> tuple[int, int]:
    """Nano-dollars of the day and of the month, calls under way included."""
    under_way = month["open"].values()
    of_day = month["spent"].get(day, 0) + sum(entry["nano"] for entry in under_way if entry["day"] == day)
    return of_day, sum(month["spent"].values()) + sum(entry["nano"] for entry in under_way)


def _next_month(now: datetime) -> datetime:
    first = tomorrow(now).replace(day=1)
    return first if first > now else (first + timedelta(days=32)).replace(day=1)
