"""Every error that tradeflows raises on purpose, in one tree.

    TradeflowsError
    ├── ConfigurationError       a setting is missing, unknown or wrong
    ├── InvalidRequest           what was asked for makes no sense (also a ValueError)
    │   ├── BadTimeframe
    │   ├── BadWindow
    │   └── UnknownSymbol
    ├── DataError                the data cannot be trusted or does not suffice
    │   ├── CandleContractError  a frame breaks the candle contract
    │   ├── ExpectationFailed    a batch broke a critical expectation; it was not stored
    │   ├── DataModeConflict     live, sample and simulated data were about to be mixed
    │   ├── InsufficientHistory  fewer approved candles than the work needs
    │   ├── CandleGap            bars are missing among the candles that a prediction needs
    │   ├── SourcesDisagree      two sources give other prices for the same bars
    │   └── DatasetLost          an old dataset cannot be read back exactly any more
    ├── SourceError              a market-data source
    │   ├── SourceUnavailable    transient: unreachable, timed out, 5xx
    │   │   └── CircuitOpen      not asked at all: it failed too often just now; carries ``until``
    │   ├── RateLimited          transient: 429 or 418; carries ``retry_after`` seconds
    │   ├── SourceRefused        the source said no (other 4xx); carries ``status`` and ``reply``
    │   └── MalformedResponse    the reply is not what the protocol promises
    ├── StoreError
    │   ├── StoreUnavailable     transient when ``transient`` says so (busy), else not (unwritable)
    │   └── RevisionConflict     transient: another writer changed the document first
    ├── ModelError
    │   ├── ModelNotFound
    │   └── ModelRejected        a model's files or schema do not match its manifest
    ├── LlmError                 the LLM, or what stands before it
    │   ├── LlmUnavailable       transient: unreachable, timed out, 5xx, a reply that is none
    │   ├── LlmRateLimited       transient: 429; carries ``retry_after`` seconds and whether the ``quota`` is used up
    │   ├── LlmKeyRefused        401 or 403: another key may do
    │   ├── LlmRefused           any other 4xx, or it declined to answer
    │   ├── LlmReplyRejected     an answer, and twice not one that can be used
    │   ├── NoLlmKey             every key cools down, is refused or in use; carries ``until``
    │   └── BudgetExhausted      the call could cost more than what is left; carries ``until``
    ├── RunError                 a flow run that was asked for over Prefect's API
    │   ├── RunFailed            it failed, crashed or was cancelled; carries ``state``
    │   └── RunUnfinished        it is still to start or under way after as long as somebody waited
    ├── SettingsTooOld           the engine's settings were read too long ago to act on, or never
    ├── NotificationFailed       transient: somebody who should be told was not; carries ``targets``
    └── StrategyError
        ├── LookAhead            a strategy's decisions change with what comes after them
        └── StrategyFailed       it raised, changed its input, or gave an answer that makes no sense

A message says what was wrong, with which value, and what to do. ``transient`` is what
``tasks.retry.is_transient`` reads: only those are tried again.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trading.analysis import Cost


class TradeflowsError(Exception):
    """Root of the tree. ``transient`` is True where trying again can help."""

    transient: bool = False


class ConfigurationError(TradeflowsError):
    """A setting is missing, unknown or wrong."""


class InvalidRequest(TradeflowsError, ValueError):
    """What was asked for makes no sense, whatever the data."""


class BadTimeframe(InvalidRequest):
    """A timeframe that the candle contract does not know."""


class BadWindow(InvalidRequest):
    """A window that is empty, naive, misaligned or not over yet."""


class UnknownSymbol(InvalidRequest):
    """A symbol that the source does not trade."""


class DataError(TradeflowsError):
    """The data cannot be trusted or does not suffice."""


class CandleContractError(DataError):
    """A frame that breaks the candle contract."""


class ExpectationFailed(DataError):
    """A batch that broke a critical expectation; nothing of it was stored."""


class DataModeConflict(DataError):
    """Live, sample and simulated data were about to be mixed in one series."""


class InsufficientHistory(DataError):
    """Fewer approved candles than the work needs."""


class CandleGap(DataError):
    """Bars are missing among the candles that a prediction needs; more history does not help, a repair may."""


class SourcesDisagree(DataError):
    """Two sources give other prices for the same bars: they may not be the same market."""


class DatasetLost(DataError):
    """The candles of an old dataset were corrected since, and what they were is no longer kept."""


class SourceError(TradeflowsError):
    """A market-data source failed."""


class SourceUnavailable(SourceError):
    """The source was unreachable, timed out or answered 5xx."""

    transient = True


class CircuitOpen(SourceUnavailable):
    """The source failed too often just now and is left alone until ``until`` (UTC)."""

    def __init__(self, message: str, until: datetime) -> None:
        super().__init__(message)
        self.until = until


class RateLimited(SourceError):
    """The source asked us to slow down; ``retry_after`` is in seconds where it said how long."""

    transient = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SourceRefused(SourceError):
    """The source refused the request: ``status`` and ``reply`` (its body) are what it answered, where it did."""

    def __init__(self, message: str, status: int | None = None, reply: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.reply = reply


class MalformedResponse(SourceError):
    """The reply is not what the protocol promises."""


class StoreError(TradeflowsError):
    """The document store failed."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, opened or written."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class RevisionConflict(StoreError):
    """Another writer changed the document first."""

    transient = True


class ModelError(TradeflowsError):
    """A model cannot be used."""


class ModelNotFound(ModelError):
    """No registered model version answers to that name and alias."""


class ModelRejected(ModelError):
    """A model whose files or schema do not match its manifest."""


class StrategyError(TradeflowsError):
    """A strategy cannot be used."""


class LookAhead(StrategyError):
    """A strategy whose decisions change with what comes after them."""


class StrategyFailed(StrategyError):
    """A strategy that raised, changed its candles, answered twice differently, or with what makes no sense."""


class LlmError(TradeflowsError):
    """The LLM cannot be asked, or did not answer. ``cost``: what the question cost all the same."""

    cost: Cost | None = None


class LlmUnavailable(LlmError):
    """No answer: unreachable, timed out, cut short, 5xx. ``billed``: whether it may cost something all the same."""

    transient = True

    def __init__(self, message: str, *, billed: bool) -> None:
        super().__init__(message)
        self.billed = billed


class LlmRateLimited(LlmError):
    """A key was told to slow down, for ``retry_after`` seconds where it said how long; ``quota``: it is used up."""

    transient = True

    def __init__(self, message: str, retry_after: float | None = None, *, quota: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.quota = quota


class LlmKeyRefused(LlmError):
    """The endpoint does not accept a key."""


class LlmRefused(LlmError):
    """The endpoint refuses the request, or the model declines to answer; asking again gives the same."""


class LlmReplyRejected(LlmError):
    """The model answered, and what it said cannot be used, nor what it said when it was told why."""


class NoLlmKey(LlmError):
    """No key may be used before ``until`` (UTC; None where there is none at all)."""

    def __init__(self, message: str, until: datetime | None) -> None:
        super().__init__(message)
        self.until = until


class BudgetExhausted(LlmError):
    """A call could cost more than is left of a day's or a month's budget, which is renewed at ``until`` (UTC)."""

    def __init__(self, message: str, until: datetime) -> None:
        super().__init__(message)
        self.until = until


class RunError(TradeflowsError):
    """A flow run that was asked for did not give what it was asked for."""


class RunFailed(RunError):
    """The run failed, crashed or was cancelled, as ``state`` says."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class RunUnfinished(RunError):
    """The run has not ended in the time that somebody waited for it; it goes on."""


class SettingsTooOld(TradeflowsError):
    """The engine's settings were last read too long ago to act on, or never."""


class NotificationFailed(TradeflowsError):
    """A message did not reach everybody who should have it; ``targets`` are the names of those it did not."""

    transient = True

    def __init__(self, message: str, targets: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.targets = targets
