"""What maintenance, backup and restore share: one at a time, and large collections a few documents at a time."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tasks.documents import Collection, Document, Span
from tasks.store import CHUNKS, RESULTS, Store
from trading.errors import RevisionConflict

LEASE_NAME: Final = "maintenance"
LEASE: Final = timedelta(minutes=5)
_PAGE: Final = 100
_PAGE_OF_LARGE: Final = 10
_MOMENT: Final = timedelta(milliseconds=1)


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def alone(
    store: Store, what: str, *, clock: Callable[[], datetime] = _now, patience: float = 0.0
) -> Iterator[Callable[[], None]]:
    """Hold the lease that maintenance and backups share; gives a function to call often, which renews it.

    Args:
        what: is doing it, for the message.
        patience: seconds to wait for whoever holds it.

    Raises:
        RevisionConflict: somebody else holds it, or took it while the function was not called.
    """
    owner = uuid.uuid4().hex
    until = time.monotonic() + patience
    while not store.documents.acquire(LEASE_NAME, owner, LEASE, clock()):
        if time.monotonic() >= until:
            raise RevisionConflict(f"a maintenance or a backup is at work, and {what} would disturb it; try again")
        time.sleep(0.05)
    renewed = clock()

    def hold() -> None:
        nonlocal renewed
        if clock() - renewed < LEASE / 5:
            return
        if not store.documents.acquire(LEASE_NAME, owner, LEASE, clock()):
            raise RevisionConflict(f"{what} was held up for longer than {LEASE}, and another began; try again")
        renewed = clock()

    try:
        yield hold
    finally:
        store.documents.release(LEASE_NAME, owner)


def earlier(
    store: Store, collection: Collection, field: str, cutoff: datetime | None, where: Mapping[str, Any] | None = None
) -> Iterator[Document]:
    """Documents whose ``field`` lies before ``cutoff`` (None: all of them), the newest first, a few at a time."""
    high, size = cutoff, _PAGE_OF_LARGE if collection in (RESULTS, CHUNKS) else _PAGE
    seen: set[str] = set()
    while True:
        page = store.documents.find(collection, where, Span(field, None, high), newest=size)
        yield from (one for one in page if one["_id"] not in seen)
        if len(page) < size:
            return
        last = page[-1][field]
        if last + _MOMENT == high:
            size *= 2  # a page full of one moment: without it there is no way on
        # others of that moment may not have been on the page
        high = last + _MOMENT
        seen = {one["_id"] for one in page if one[field] == last}
