"""The LLM that the settings name: why there is none, or one that can be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from tasks import llm_limits, log
from tasks.circuit import Breaker, Rule
from tasks.documents import Documents
from tasks.llm import Llm, Setup
from tasks.llm_budget import Budget, price_of
from tasks.llm_client import opened_client
from tasks.llm_keys import KeyPool, KeyRule
from tasks.llm_tracing import opened_tracer
from tasks.settings import Settings
from trading.errors import ConfigurationError


def missing(settings: Settings) -> str | None:
    """Why the LLM cannot be asked at all; None where it can."""
    if not settings.llm:
        return "the LLM is off; set TRADEFLOWS_LLM=on and OPENAI_API_KEY"
    if not settings.llm_keys:
        return "the LLM has no key; set OPENAI_API_KEY"
    try:
        price_of(settings)
        _require_sendable(settings)
    except ConfigurationError as error:
        return str(error)
    return None


@contextmanager
def opened_llm(
    settings: Settings, documents: Documents, *, metered: bool = False, traced: bool = True
) -> Iterator[Llm]:
    """The LLM of the settings, to be asked from any number of threads.

    Args:
        metered: ask Prefect's global limit ``tradeflows-llm`` before each call, too; needs a Prefect server.
        traced: keep what is said as traces in MLflow.

    Raises:
        ConfigurationError: it is off or cannot be used (``missing``), or its address may not be talked to.
        LlmError: Prefect's server does not let the limit be set.
    """
    reason = missing(settings)
    if reason is not None:
        raise ConfigurationError(reason)
    keys = settings.llm_keys
    setup = Setup(
        settings.llm_model,
        price_of(settings),
        settings.llm_max_tokens,
        settings.llm_temperature,
        timedelta(seconds=settings.llm_patience),
    )
    rule = KeyRule(settings.llm_requests_per_minute, timedelta(seconds=settings.llm_key_pause))
    opening = Rule(settings.circuit_failures, timedelta(seconds=settings.circuit_seconds))
    with ExitStack() as closing:
        client = closing.enter_context(
            opened_client(settings.llm_url, keys, access=settings.access, seconds=settings.llm_timeout)
        )
        yield Llm(
            client,
            KeyPool(documents, keys, rule),
            Budget(documents, settings.llm_daily_budget, settings.llm_monthly_budget),
            Breaker(documents, circuit_name(client.host), opening),
            setup,
            throttle=llm_limits.opened(settings) if metered else None,
            tracer=closing.enter_context(opened_tracer(settings)) if traced else None,
            # threads that ask later know nothing of the run they belong to
            flow_run_id=log.flow_run_id(),
        )


def circuit_name(host: str) -> str:
    """What the circuit of an endpoint is called."""
    return f"llm {host}"


def _require_sendable(settings: Settings) -> None:
    for number, key in enumerate(settings.llm_keys, 1):
        secret = key.get_secret_value()
        # an error about the header would show the key
        if not (secret.isascii() and secret.isprintable()):
            raise ConfigurationError(
                f"LLM key {number} has characters that no header can hold; look at OPENAI_API_KEY and "
                "OPENAI_BACKUP_API_KEYS"
            )
