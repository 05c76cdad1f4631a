"""Times as the sandbox exchange is told them and as its protocol writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def utc_of(text: str) -> datetime:
    """A time of ISO 8601, in UTC unless it says otherwise.

    Raises:
        ValueError, TypeError, OverflowError: it is none.
    """
    told = datetime.fromisoformat(text)
    return told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)


def milliseconds(moment: datetime) -> int:
    """Whole milliseconds since the epoch."""
    return int(moment.timestamp() * 1000)


def told(value: Any) -> int:
    """Milliseconds since the epoch of a time that is given in them, or in ISO 8601.

    Raises:
        ValueError, TypeError, OverflowError: it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return milliseconds(utc_of(value))
