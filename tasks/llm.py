"""Questions to the LLM: a key, a reservation, a request, a settlement; again where that can help; all of it traced.

An answer is JSON of a pydantic class, which is also what the endpoint is told to keep to. One that does not fit is
sent back once, with what was wrong. ``tasks.llm_setup`` makes an ``Llm`` of the settings.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, Protocol, TypeVar

from pydantic import BaseModel

from tasks import llm_limits, log
from tasks.circuit import Breaker
from tasks.llm_budget import ANSWERED, DECLINED, NANO, REJECTED, Budget, Price, Reservation, prompt_bound
from tasks.llm_client import Client, Reply
from tasks.llm_keys import KeyPool, Lease
from tasks.llm_schema import problem_of, response_format
from tasks.retry import LLM, RetryPolicy
from trading.analysis import Cost
from trading.errors import (
    CircuitOpen,
    LlmError,
    LlmKeyRefused,
    LlmRateLimited,
    LlmRefused,
    LlmReplyRejected,
    LlmUnavailable,
    SourceError,
    SourceUnavailable,
    TradeflowsError,
)

Message = dict[str, str]
T = TypeVar("T", bound=BaseModel)

# how much of a refused reply is sent back
SHOWN: Final = 4_000
REPAIR: Final = (
    "Your reply was refused: {problem}. Answer the first message again, with one JSON object that fits the schema and "
    "nothing else."
)


@dataclass(frozen=True)
class About:
    """What a question is about: for the record, not for the model."""

    purpose: str
    symbol: str | None = None
    data_mode: str | None = None


@dataclass(frozen=True)
class Exchange:
    """One request and what came of it; ``started`` is UTC, ``reply`` None where there was none."""

    call: str
    key: int
    started: datetime
    seconds: float
    messages: tuple[Message, ...]
    reply: Reply | None
    outcome: str
    nano: int
    tokens: tuple[int, int] | None


@dataclass
class Conversation:
    """All the requests that one question took; the tracer is told of it at the end."""

    id: str
    about: About
    model: str
    price: Price
    host: str
    flow_run_id: str | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    error: str | None = None

    @property
    def cost(self) -> Cost:
        """What all of it cost; tokens as far as they are known."""
        tokens = [one.tokens for one in self.exchanges if one.tokens]
        usd = sum(one.nano for one in self.exchanges) / NANO
        return Cost(usd, sum(one[0] for one in tokens), sum(one[1] for one in tokens))


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What the model said, checked; ``seconds`` from the question on, waiting included; ``trace`` leads to MLflow."""

    value: T
    model: str
    cost: Cost
    seconds: float
    calls: int
    trace: str | None


class Tracer(Protocol):
    """Keeps conversations where people can look at them."""

    def keep(self, conversation: Conversation) -> str | None:
        """Id of the trace; None where it could not be kept."""


@dataclass(frozen=True)
class Setup:
    """How the model is asked."""

    model: str
    price: Price
    max_tokens: int = 1200
    temperature: float = 0.0
    patience: timedelta = timedelta(seconds=120)
    policy: RetryPolicy = LLM


class Llm:
    """Asks one model. Safe for threads."""

    def __init__(
        self,
        client: Client,
        pool: KeyPool,
        budget: Budget,
        breaker: Breaker,
        setup: Setup,
        *,
        throttle: llm_limits.Throttle | None = None,
        tracer: Tracer | None = None,
        flow_run_id: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._pool, self._budget, self._breaker = client, pool, budget, breaker
        self._setup, self._throttle, self._tracer = setup, throttle, tracer
        self._flow_run_id = flow_run_id
        self._clock, self._sleep = clock, sleep

    @property
    def host(self) -> str:
        """Where the model is."""
        return self._client.host

    def ask(self, messages: Sequence[Message], reply: type[T], about: About) -> Answer[T]:
        """The model's answer as a ``reply``, repaired at most once.

        Raises:
            LlmError: there is none; says why. What it cost all the same is on record.
            StoreError: the store cannot be used; what was under way stays reserved.
        """
        setup, began = self._setup, time.monotonic()
        talk = Conversation(uuid.uuid4().hex, about, setup.model, setup.price, self.host, self._flow_run_id)
        try:
            value = self._conversed(list(messages), reply, talk)
        except LlmError as error:
            talk.error = str(error)
            error.cost = talk.cost
            raise
        finally:
            trace = self._tracer.keep(talk) if self._tracer is not None and talk.exchanges else None
        last = talk.exchanges[-1].reply
        model = last.model if last is not None else setup.model
        return Answer(value, model, talk.cost, time.monotonic() - began, len(talk.exchanges), trace)

    def _conversed(self, messages: list[Message], reply: type[T], talk: Conversation) -> T:
        latest = self._clock() + self._setup.patience
        problem = ""
        for _ in range(2):
            said = self._answered(messages, reply, talk, latest)
            if said.refusal is not None:
                raise LlmRefused(f"{said.model} declined to answer")
            found, problem = problem_of(said.text, reply, cut=said.finish == "length")
            if found is not None:
                return found
            again = REPAIR.format(problem=problem)
            messages = [
                *messages,
                {"role": "assistant", "content": said.text[:SHOWN] or "(nothing)"},
                {"role": "user", "content": again},
            ]
        raise LlmReplyRejected(f"{self._setup.model} gave no usable reply, asked twice: {problem}")

    def _answered(self, messages: list[Message], reply: type[T], talk: Conversation, latest: datetime) -> Reply:
        """A reply of any content, from whichever key gives one."""
        setup = self._setup
        form = response_format(reply)
        worst = setup.price.nano(prompt_bound(messages, form), setup.max_tokens)
        request = {
            "model": setup.model,
            "messages": messages,
            "temperature": setup.temperature,
            "max_tokens": setup.max_tokens,
            "response_format": form,
        }
        told: Mapping[str, Any] = {
            "model": setup.model,
            "purpose": talk.about.purpose,
            "symbol": talk.about.symbol,
            "data_mode": talk.about.data_mode,
            "question": talk.id,
            "flow_run_id": talk.flow_run_id,
        }
        pauses = iter(setup.policy.delays)
        # each key may be refused or told to slow down once or twice; what is left are failures of the endpoint
        for _ in range(2 * len(self._pool) + setup.policy.attempts + 1):
            self._budget.require(worst)
            if self._throttle is not None:
                self._throttle.admit()
            lease, reservation = self._admitted(worst, told, latest)
            found = self._sent(lease, reservation, request, talk, reply)
            if isinstance(found, Reply):
                return found
            if isinstance(found, LlmRefused):
                raise found
            last = found
            if isinstance(found, LlmUnavailable):
                pause = next(pauses, None)
                if pause is None:
                    raise found
                self._sleep(pause * (1 - setup.policy.jitter * random.random()))  # noqa: S311 - not a secret
        raise last

    def _admitted(self, worst: int, told: Mapping[str, Any], latest: datetime) -> tuple[Lease, Reservation]:
        """A key and a reservation for one call, now."""
        while True:
            lease = self._pool.take(latest)
            try:
                reservation = self._budget.reserve(worst, told)
            except TradeflowsError:
                self._pool.give_back(lease)
                raise
            if self._pool.late(lease):
                # the store kept us waiting: the call would arrive after the promise has ceased to count
                self._budget.release(reservation)
                self._pool.give_back(lease)
                continue
            try:
                self._breaker.admit(1)
            except CircuitOpen as error:
                self._budget.release(reservation)
                self._pool.give_back(lease)
                raise LlmUnavailable(str(error), billed=False) from None
            return lease, reservation

    def _sent(
        self,
        lease: Lease,
        reservation: Reservation,
        request: Mapping[str, Any],
        talk: Conversation,
        wanted: type[BaseModel],
    ) -> Reply | LlmError:
        """One request, settled and on record."""
        started, ticks = self._clock(), time.monotonic()
        reply, error = None, None
        try:
            reply = self._client.complete(lease.key, request)
        except LlmError as failure:
            error = failure
        seconds = time.monotonic() - ticks
        tokens = reply.tokens if reply is not None else None
        nano = _cost(reply, error, reservation, self._setup.price)
        outcome = _outcome(reply, error, wanted)
        self._budget.settle(reservation, outcome, nano=nano, latency=seconds, tokens=tokens)
        self._pool.heard(lease, error)
        self._breaker.heard(_for_breaker(error))
        sent = tuple(request["messages"])
        talk.exchanges.append(
            Exchange(reservation.id, lease.number, started, seconds, sent, reply, outcome, nano, tokens)
        )
        if error is not None:
            log.logger().warning("LLM call failed", key=lease.number, outcome=outcome, reason=str(error))
        return reply if reply is not None else error or LlmUnavailable("no reply", billed=True)


def _cost(reply: Reply | None, error: LlmError | None, reservation: Reservation, price: Price) -> int:
    if reply is not None:
        return price.nano(*reply.tokens) if reply.tokens is not None else reservation.nano
    # cut off or late: it may have been billed, and nobody tells how much
    return reservation.nano if isinstance(error, LlmUnavailable) and error.billed else 0


def _outcome(reply: Reply | None, error: LlmError | None, wanted: type[BaseModel]) -> str:
    if reply is not None:
        if reply.refusal is not None:
            return DECLINED
        return ANSWERED if problem_of(reply.text, wanted)[0] is not None else REJECTED
    if isinstance(error, LlmRateLimited):
        return "quota used up" if error.quota else "rate limited"
    return {LlmKeyRefused: "key refused", LlmRefused: "refused"}.get(type(error), "unavailable")  # type: ignore[arg-type]


def _for_breaker(error: LlmError | None) -> SourceError | None:
    # a rate limit or a refusal is an answer: the endpoint is there
    return SourceUnavailable(str(error)) if isinstance(error, LlmUnavailable) else None
