"""What somebody must be told of the LLM: keys that are refused, a budget that runs out, an endpoint that is down.

Read from the store, so it can be asked after every run; each piece of news is told once a day.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from prefect import task

from tasks import circuit
from tasks.documents import Documents
from tasks.llm_budget import NANO, Budget, day_of, price_of
from tasks.llm_client import host_of
from tasks.llm_keys import QUOTA, REFUSED, key_states
from tasks.llm_setup import circuit_name, missing
from tasks.notification_texts import Message, Severity
from tasks.notifying import notify
from tasks.retry import NOTIFY, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import configured_store

NEARLY: Final = 0.8
# a prompt has no more; with it a budget is called used up when the next call will be refused
PROMPT_TOKENS: Final = 4_000
# the news of a day or a month is over by then
_TOLD: Final = timedelta(days=32)


def notices(documents: Documents, settings: Settings, now: datetime) -> list[Message]:
    """What there is to be told now, told before or not; nothing where the LLM is off."""
    if not settings.llm:
        return []
    reason = missing(settings)
    if reason is not None:
        return [Message(Severity.WARNING, "LLM cannot be asked", reason, f"llm-missing-{day_of(now)}")]
    found = [*_of_keys(documents, settings, now), *_of_budgets(documents, settings, now)]
    return [*found, *_of_endpoint(documents, settings)]


def tell_once(documents: Documents, settings: Settings, now: datetime, send: Callable[[Message], object]) -> int:
    """Send the notices that nobody has sent yet; how many those were.

    A notice whose sending fails is left for the next time, and the error goes on.
    """
    sent, owner = 0, uuid.uuid4().hex
    for message in notices(documents, settings, now):
        name = f"told|{message.key}"
        if not documents.acquire(name, owner, _TOLD, now):
            continue
        try:
            send(message)
        except BaseException:
            documents.release(name, owner)
            raise
        sent += 1
    return sent


def _of_keys(documents: Documents, settings: Settings, now: datetime) -> list[Message]:
    found = []
    states = key_states(documents, settings.llm_keys)
    for state in states:
        if state.resting(now) and state.until is not None and state.why in {REFUSED, QUOTA}:
            text = (
                f"Key {state.number} of {len(states)} is left alone until {state.until:%Y-%m-%dT%H:%MZ} ({state.why}). "
                "Replace it in OPENAI_API_KEY or OPENAI_BACKUP_API_KEYS, or look at its account."
            )
            # a part of the keyed hash, so that another key in the same place is news again
            key = f"llm-key-{state.fingerprint[:12]}-{day_of(now)}"
            found.append(Message(Severity.WARNING, f"LLM key {state.number}: {state.why}", text, key))
    if len(found) == len(states):
        text = f"All keys ({len(states)}) are refused or have no quota; the LLM abstains until one is replaced."
        found.append(Message(Severity.WARNING, "LLM has no key left", text, f"llm-no-key-{day_of(now)}"))
    return found


def _of_budgets(documents: Documents, settings: Settings, now: datetime) -> list[Message]:
    spent = Budget(documents, settings.llm_daily_budget, settings.llm_monthly_budget, clock=lambda: now).spent()
    call = price_of(settings).nano(PROMPT_TOKENS, settings.llm_max_tokens) / NANO
    found = []
    for name, budget, used, left, period in (
        ("daily", settings.llm_daily_budget, spent.day, spent.day_left, day_of(now)),
        ("monthly", settings.llm_monthly_budget, spent.month, spent.month_left, day_of(now)[:7]),
    ):
        text = f"{used:.4f} of {budget:g} USD are spent in {period}"
        if left < call:
            text += f", and the next call may cost {call:.4f}: the LLM abstains. TRADEFLOWS_LLM_{name.upper()}_BUDGET."
            key = f"llm-budget-{name}-used-{period}"
            found.append(Message(Severity.WARNING, f"LLM {name} budget is used up", text, key))
        elif left <= (1 - NEARLY) * budget:
            key = f"llm-budget-{name}-nearly-{period}"
            title = f"LLM {name} budget is {1 - left / budget:.0%} used"
            found.append(Message(Severity.INFO, title, f"{text}.", key))
    return found


def _of_endpoint(documents: Documents, settings: Settings) -> list[Message]:
    host = host_of(settings.llm_url)
    known = circuit.find(documents, circuit_name(host))
    if known.state is circuit.State.CLOSED or known.since is None:
        return []
    text = f"{host} failed {known.failures} times in a row, the last: {known.reason}"
    return [Message(Severity.WARNING, "LLM endpoint is down", text, f"llm-down-{host}-{day_of(known.since)}")]


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="tell-of-the-llm", **prefect_options(NOTIFY))
def tell_of_llm_task(now: datetime) -> int:
    """``tell_once`` those who want to know; nothing where the LLM is off."""
    settings = load_settings()
    if not settings.llm:
        return 0
    with configured_store(settings) as store:
        return tell_once(store.documents, settings, now, lambda news: notify(store, settings, news, now=now))
