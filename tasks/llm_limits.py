"""The LLM's global rate limit in Prefect: one number of requests a minute for all keys, workers and flows together.

The store already keeps each key within its limit (``tasks.llm_keys``), and needs no Prefect server for it. This
limit lies over all of them, in Prefect's pages beside those of the exchanges, and can be turned down while flows run
(``prefect gcl update tradeflows-llm --limit 10``); the next run makes it what the settings say.
"""

from __future__ import annotations

from typing import Final, Protocol

from tasks.addresses import without_login
from tasks.limits import limit_name
from tasks.settings import Settings
from trading.errors import LlmError, NoLlmKey

KIND: Final = "llm"


class Throttle(Protocol):
    """Stands before each call."""

    def admit(self) -> None:
        """Wait until a call may go out. Raises NoLlmKey where none may in good time."""


class PrefectThrottle:
    """Draws one slot per call from the limit ``tradeflows-llm``; a slot decays as fast as calls are allowed."""

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def admit(self) -> None:
        """Draw a slot, or wait for one.

        Raises:
            NoLlmKey: the limit gave none in time, or is not there any more.
        """
        from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
        from prefect.concurrency.sync import rate_limit

        try:
            rate_limit(limit_name(KIND), occupy=1, timeout_seconds=self._patience, strict=True)
        except (ConcurrencySlotAcquisitionError, TimeoutError) as error:
            raise NoLlmKey(
                f"the Prefect concurrency limit {limit_name(KIND)} gave nothing ({type(error).__name__}); look at it "
                "with `prefect gcl inspect`",
                None,
            ) from error


def opened(settings: Settings) -> PrefectThrottle:
    """The limit as the settings have it: what all keys together may be used in a minute.

    Raises:
        LlmError: Prefect's server does not let it be set.
    """
    import httpx
    from prefect.client.orchestration import get_client

    per_minute = settings.llm_requests_per_minute * max(len(settings.llm_keys), 1)
    try:
        with get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(
                limit_name(KIND), limit=per_minute, slot_decay_per_second=per_minute / 60
            )
    except httpx.HTTPError as error:
        raise LlmError(f"Prefect's limit {limit_name(KIND)} cannot be set: {without_login(str(error))[:300]}") from None
    return PrefectThrottle(max(settings.llm_patience, 1.0))
