"""The document port: what the store asks of a database, and nothing more.

A document is a dict of BSON values with a string ``_id`` and an integer ``rev`` that the port keeps: 1
after the first write, one more after each. Every collection declares its indexed fields; only those can
be searched. Times are UTC datetimes with millisecond precision. No NaN: ``checked`` refuses what BSON
would take without a word and give back as something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Protocol, Self

from trading.errors import StoreError

Document = dict[str, Any]


@dataclass(frozen=True)
class Index:
    """An index over some fields of a collection's documents, in their order."""

    name: str
    fields: tuple[str, ...]
    unique: bool = False


@dataclass(frozen=True)
class Collection:
    """A kind of document: its name, its indexes, and the field that says when one may go."""

    name: str
    indexes: tuple[Index, ...] = ()
    expires: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Every indexed field once."""
        named = [field for index in self.indexes for field in index.fields]
        return tuple(dict.fromkeys([*named, *([self.expires] if self.expires else [])]))


@dataclass(frozen=True)
class Span:
    """Half-open range ``[low, high)`` of one indexed field; None leaves that side open."""

    field: str
    low: Any = None
    high: Any = None


LEASES: Final = Collection("leases", expires="expires_at")
COUNTERS: Final = Collection("counters")


def checked(collection: Collection, document: Mapping[str, Any]) -> Document:
    """The document, if a body may store it.

    Raises:
        StoreError: it has no string ``_id``, holds a naive time or NaN, has no value for a field of a unique index,
            something in an indexed field that cannot be searched for, or a field whose name begins with $.
    """
    if not isinstance(document.get("_id"), str):
        raise StoreError(f"a document of {collection.name} needs a string _id, and got {document.get('_id')!r}")
    where = f"{document['_id']} of {collection.name}"
    _check_value(document, where)
    for name in document:
        if str(name).startswith("$"):  # MongoDB would take it for an operator
            raise StoreError(f"{where}: the field {name} begins with $; rename it")
    for field in collection.fields:
        try:
            searchable(document.get(field))
        except StoreError as error:
            raise StoreError(f"{where}, {field}: {error}") from error
    for index in collection.indexes:
        for field in index.fields:
            # None twice breaks a unique index of MongoDB, and does not break one of SQLite
            if index.unique and document.get(field) is None:
                raise StoreError(f"{where} has no {field}, which the unique index {index.name} needs")
    return dict(document)


def encoded(collection: Collection, document: Document) -> bytes:
    """The document as BSON.

    Raises:
        StoreError: it holds a value that BSON does not know.
    """
    import bson

    try:
        return bytes(bson.encode(document))
    except (bson.errors.InvalidDocument, OverflowError, ValueError) as error:
        raise StoreError(
            f"{document['_id']} of {collection.name} is not a BSON document ({error}); "
            "turn numpy and pandas values into Python ones first"
        ) from error


def known(collection: Collection, field: str) -> str:
    """The field itself, if it is indexed.

    Raises:
        StoreError: it is not.
    """
    if field not in collection.fields:
        raise StoreError(f"{field} is not indexed in {collection.name}; search one of {list(collection.fields)}")
    return field


def searchable(value: Any) -> Any:
    """The value itself, if every body can search for it.

    Raises:
        StoreError: it cannot be searched for.
    """
    if isinstance(value, datetime):
        return aware(value)
    refused = (
        (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, int) and not -(2**63) <= value < 2**63)
        or not (value is None or isinstance(value, str | int | float | bytes))
    )
    if refused:
        raise StoreError(f"{value!r} cannot be searched for; turn numpy and pandas values into Python ones first")
    return value


def aware(moment: datetime) -> datetime:
    """The time itself, if it has a time zone.

    Raises:
        StoreError: it has none.
    """
    if moment.tzinfo is None:
        raise StoreError(f"{moment.isoformat()} has no time zone; store times in UTC")
    return moment


def _check_value(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_value(inner, f"{where}, {name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_value(inner, where)
    elif isinstance(value, datetime) and value.tzinfo is None:
        raise StoreError(f"{where}: the time {value} has no time zone; store times in UTC")
    elif isinstance(value, float) and math.isnan(value):
        raise StoreError(f"{where}: NaN is not stored; use None for what is not known")


class Documents(Protocol):
    """A database of documents. Safe for several processes; each write is atomic and durable.

    What cannot be stored or searched for is refused with ``StoreError``.
    """

    def get(self, collection: Collection, key: str) -> Document | None:
        """The document with that ``_id``, or None."""

    def put(self, collection: Collection, document: Document) -> None:
        """Write a document whole, whatever was there; the last writer wins."""

    def insert(self, collection: Collection, document: Document) -> bool:
        """Write a document if its ``_id`` is new; whether it was."""

    def insert_all(self, collection: Collection, documents: Iterable[Document]) -> int:
        """Write those documents whose ``_id`` is new; how many were.

        Much faster than one by one. Each document is whole or not there, but when the call fails some may be there:
        repeat it.
        """

    def compare_and_set(self, collection: Collection, document: Document, expected: int) -> bool:
        """Write a document if the stored ``rev`` is ``expected`` (0: it is not there yet); whether it was."""

    def delete(self, collection: Collection, key: str) -> bool:
        """Remove a document; whether it was there."""

    def find(
        self,
        collection: Collection,
        where: Mapping[str, Any] | None = None,
        span: Span | None = None,
        *,
        newest: int | None = None,
    ) -> list[Document]:
        """Documents whose indexed fields equal ``where`` and lie in ``span``, ascending by the span's field.

        With ``newest``, that many from the end, descending.
        """

    def increment(self, name: str, by: int = 1) -> int:
        """Add to a named counter, which starts at 0; its value after."""

    def acquire(self, name: str, owner: str, ttl: timedelta, now: datetime) -> bool:
        """Take or renew a lease until ``now + ttl``; False while another owner holds it."""

    def release(self, name: str, owner: str) -> None:
        """Give a lease back, if ``owner`` holds it."""

    def purge(self, now: datetime) -> int:
        """Remove documents that expired before ``now``; how many."""

    def close(self) -> None:
        """Give back connections and files."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
