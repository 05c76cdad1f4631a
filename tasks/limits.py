"""Rate limits by weight, shared by all workers: Prefect's global concurrency limits with slot decay.

Exchanges count weights per minute and address. A limit of half that weight which decays by half of it a
minute can never be exceeded in any minute, whoever draws from it and however they burst.
"""

from __future__ import annotations

import threading
from typing import Final

from tasks.settings import Settings
from trading.errors import ConfigurationError, SourceError

PREFIX: Final = "tradeflows-"
# one draw asks the Prefect server once, so that a page of candles does not cost a request there too
BLOCK: Final = 40
# how long to wait for a draw before saying so
PATIENCE: Final = 600.0


def limit_name(kind: str) -> str:
    """The global concurrency limit of a kind of source, such as ``tradeflows-exchange``."""
    return PREFIX + kind


def weights_per_minute(settings: Settings) -> dict[str, int]:
    """What each kind of source over HTTP may be asked for in a minute."""
    return {
        "exchange": settings.exchange_weight_per_minute,
        "mirror": settings.exchange_weight_per_minute,
        "engine": settings.engine_requests_per_minute,
    }


def ensure(settings: Settings, kind: str) -> None:
    """Make the limit of a kind of source what the settings say it is."""
    from prefect.client.orchestration import get_client

    per_minute = weights_per_minute(settings)[kind]
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(
            limit_name(kind), limit=max(per_minute // 2, BLOCK), slot_decay_per_second=per_minute / 2 / 60
        )


class Meter:
    """``tasks.http.Guard`` that draws weight from the limit of a kind of source, a block at a time."""

    def __init__(self, kind: str) -> None:
        self._name = limit_name(kind)
        self._left = 0
        self._lock = threading.Lock()

    def admit(self, weight: int) -> None:
        """Spend weight that was drawn, or wait for more.

        Raises:
            ConfigurationError: the limit does not exist, or gave nothing for ``PATIENCE`` seconds.
        """
        with self._lock:
            while self._left < weight:
                self._left += self._draw(max(BLOCK, weight))
            self._left -= weight

    def heard(self, error: SourceError | None) -> None:
        """Nothing to learn: what was asked was spent."""

    def _draw(self, weight: int) -> int:
        from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
        from prefect.concurrency.sync import rate_limit

        try:
            rate_limit(self._name, occupy=weight, timeout_seconds=PATIENCE, strict=True)
        except ConcurrencySlotAcquisitionError as error:
            raise ConfigurationError(
                f"the Prefect concurrency limit {self._name} cannot be drawn from ({error}); run the flow again, "
                "which makes it, or create it with `prefect gcl create`"
            ) from error
        except TimeoutError as error:
            raise ConfigurationError(
                f"the Prefect concurrency limit {self._name} gave nothing for {PATIENCE:.0f} s; look at it with "
                "`prefect gcl inspect`, or raise the weight per minute in the settings"
            ) from error
        return weight
