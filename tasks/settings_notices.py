"""What somebody must be told of the engine's settings: that it has none to tell, once, with the setting to change."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from prefect import task

from tasks.notification_texts import Message, Severity
from tasks.notifying import NOBODY, Notified, notify
from tasks.retry import NOTIFY, prefect_options
from tasks.settings import load_settings
from tasks.store import Store, configured_store

# told again where it is still so a year later
TOLD: Final = timedelta(days=365)
# nobody to tell: asked again so much later, for settings are read every five minutes
UNTOLD: Final = timedelta(days=1)
# beyond what telling may take: one that dies over it leaves it to others after that
_TELLING: Final = timedelta(minutes=15)


def tell_unserved(store: Store, reason: str, *, now: datetime, send: Callable[[Message], Notified]) -> bool:
    """Send word that the engine serves no settings, unless somebody did before; whether it was sent.

    A message whose sending fails is left for the next time, one that there is nobody to send to for the next day; an
    error goes on.

    Args:
        send: one that was told a short while ago (suppressed) counts as sent.
    """
    name, owner = "told|settings-unserved", uuid.uuid4().hex
    if not store.documents.acquire(name, owner, _TELLING, now):
        return False
    message = Message(Severity.WARNING, "The engine serves no strategy settings", reason, "settings-unserved")
    try:
        sent = send(message).outcome != NOBODY
    except BaseException:
        store.documents.release(name, owner)
        raise
    store.documents.acquire(name, owner, TOLD if sent else UNTOLD, now)
    return sent


# --- Prefect task --------------------------------------------------------------------------------


@task(name="tell-of-settings", **prefect_options(NOTIFY))
def tell_unserved_task(reason: str, now: datetime) -> bool:
    """``tell_unserved`` those who want to know."""
    settings = load_settings()
    with configured_store(settings) as store:
        return tell_unserved(store, reason, now=now, send=lambda news: notify(store, settings, news, now=now))
