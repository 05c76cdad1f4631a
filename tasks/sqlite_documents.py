"""The document port on SQLite: one file, several processes, nothing acknowledged is lost.

WAL mode, so that readers never wait for a writer; ``synchronous=FULL``, so that a commit that returned
is on the disk even when the power goes. Documents are BSON, indexed fields are columns beside them.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tasks.documents import (
    COUNTERS,
    LEASES,
    Collection,
    Document,
    Span,
    aware,
    checked,
    encoded,
    known,
    searchable,
)
from trading.errors import StoreError, StoreUnavailable

BUSY_SECONDS: Final = 30.0
BATCH: Final = 500
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class SqliteDocuments:
    """``tasks.documents.Documents`` in the file ``path``; one connection per thread.

    Raises:
        StoreUnavailable: the file cannot be made, opened or written; says which and what to do.
    """

    def __init__(self, path: Path, collections: Iterable[Collection]) -> None:
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: list[sqlite3.Connection] = []
        self._collections = (*collections, LEASES, COUNTERS)
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._connection()
            have = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {collection.name for collection in self._collections} <= have:
                with self._writing() as writer:
                    for collection in self._collections:
                        _declare(writer, collection)

    def get(self, collection: Collection, key: str) -> Document | None:
        with self._translated():
            row = self._connection().execute(f"SELECT body FROM {collection.name} WHERE _id = ?", (key,)).fetchone()  # noqa: S608 - names are ours
            return _decode(row[0]) if row else None

    def put(self, collection: Collection, document: Document) -> None:
        document = checked(collection, document)
        with self._writing() as writer:
            _write(writer, collection, document, _rev(writer, collection, document["_id"]) + 1)

    def insert(self, collection: Collection, document: Document) -> bool:
        return self.compare_and_set(collection, document, 0)

    def insert_all(self, collection: Collection, documents: Iterable[Document]) -> int:
        written = 0
        coming = (checked(collection, document) for document in documents)
        # a commit waits for the disk, and other writers wait for so many documents at most
        while batch := list(islice(coming, BATCH)):
            with self._writing() as writer:
                for document in batch:
                    if _rev(writer, collection, document["_id"]) == 0:
                        _write(writer, collection, document, 1)
                        written += 1
        return written

    def compare_and_set(self, collection: Collection, document: Document, expected: int) -> bool:
        document = checked(collection, document)
        with self._writing() as writer:
            if _rev(writer, collection, document["_id"]) != expected:
                return False
            _write(writer, collection, document, expected + 1)
        return True

    def delete(self, collection: Collection, key: str) -> bool:
        with self._writing() as writer:
            return writer.execute(f"DELETE FROM {collection.name} WHERE _id = ?", (key,)).rowcount > 0  # noqa: S608

    def find(
        self,
        collection: Collection,
        where: Mapping[str, Any] | None = None,
        span: Span | None = None,
        *,
        newest: int | None = None,
    ) -> list[Document]:
        clauses, values = [], []
        for field, value in (where or {}).items():
            clauses.append(f"{known(collection, field)} IS ?")  # as =, and None equals None
            values.append(_column(value))
        order = "_id"
        if span is not None:
            order = known(collection, span.field)
            for bound, sign in ((span.low, ">="), (span.high, "<")):
                if bound is not None:
                    clauses.append(f"{order} {sign} ?")
                    values.append(_column(bound))
        query = f"SELECT body FROM {collection.name}"  # noqa: S608
        if clauses:
            query += " WHERE " + " AND ".join(clauses)
        query += f" ORDER BY {order}"
        if newest is not None:
            query += f" DESC LIMIT {int(newest)}"
        with self._translated():
            return [_decode(body) for (body,) in self._connection().execute(query, values)]

    def increment(self, name: str, by: int = 1) -> int:
        with self._writing() as writer:
            current = writer.execute(f"SELECT body FROM {COUNTERS.name} WHERE _id = ?", (name,)).fetchone()  # noqa: S608
            before: Document = _decode(current[0]) if current else {"_id": name, "rev": 0, "value": 0}
            value = int(before["value"]) + by
            _write(writer, COUNTERS, {"_id": name, "value": value}, int(before["rev"]) + 1)
        return value

    def acquire(self, name: str, owner: str, ttl: timedelta, now: datetime) -> bool:
        aware(now)
        with self._writing() as writer:
            row = writer.execute(f"SELECT body FROM {LEASES.name} WHERE _id = ?", (name,)).fetchone()  # noqa: S608
            held = _decode(row[0]) if row else None
            if held is not None and held["owner"] != owner and held["expires_at"] > now:
                return False
            _write(
                writer, LEASES, {"_id": name, "owner": owner, "expires_at": now + ttl}, (held or {"rev": 0})["rev"] + 1
            )
        return True

    def release(self, name: str, owner: str) -> None:
        with self._writing() as writer:
            row = writer.execute(f"SELECT body FROM {LEASES.name} WHERE _id = ?", (name,)).fetchone()  # noqa: S608
            if row and _decode(row[0])["owner"] == owner:
                writer.execute(f"DELETE FROM {LEASES.name} WHERE _id = ?", (name,))  # noqa: S608

    def purge(self, now: datetime) -> int:
        removed = 0
        with self._writing() as writer:
            for collection in self._collections:
                if collection.expires:
                    query = f"DELETE FROM {collection.name} WHERE {collection.expires} < ?"  # noqa: S608
                    removed += writer.execute(query, (_column(now),)).rowcount
        return removed

    def close(self) -> None:
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()
            self._local = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # closed by whichever thread closes the store, hence no thread check
            connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
            except sqlite3.Error:
                connection.close()
                raise
            self._local.connection = connection
            with self._lock:
                self._open.append(connection)
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._translated():
            connection = self._connection()
            # the write lock is taken at once, so that what is read inside is what is written over
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # on a full disk SQLite has rolled back already
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from bson.errors import InvalidBSON

        try:
            yield
        except (InvalidBSON, UnicodeDecodeError) as error:  # the latter from damaged names in the schema
            raise StoreUnavailable(f"the store {self._path} is damaged ({error}); restore it from a backup") from error
        except sqlite3.Error as error:
            # errors of the module itself, such as a closed connection, carry no code
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                message = f"the store {self._path} is damaged ({error}); restore it from a backup"
                raise StoreUnavailable(message) from error
            busy = code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
            remedy = "try again" if busy else "set TRADEFLOWS_HOME to a folder that you can write and that has space"
            raise StoreUnavailable(
                f"the store {self._path} cannot be used ({error}); {remedy}", transient=busy
            ) from error
        except OSError as error:
            raise StoreUnavailable(
                f"the folder {self._path.parent} cannot be used ({error.strerror}); "
                "set TRADEFLOWS_HOME to a folder that you can write"
            ) from error


def _declare(writer: sqlite3.Connection, collection: Collection) -> None:
    columns = "".join(f", {field}" for field in collection.fields)
    writer.execute(
        f"CREATE TABLE IF NOT EXISTS {collection.name} (_id TEXT PRIMARY KEY, rev INTEGER NOT NULL, body BLOB NOT NULL{columns})"  # noqa: E501
    )
    for index in collection.indexes:
        kind = "UNIQUE INDEX" if index.unique else "INDEX"
        writer.execute(f"CREATE {kind} IF NOT EXISTS {index.name} ON {collection.name} ({', '.join(index.fields)})")
    if collection.expires:
        writer.execute(
            f"CREATE INDEX IF NOT EXISTS {collection.name}_expires_idx ON {collection.name} ({collection.expires})"
        )


def _rev(writer: sqlite3.Connection, collection: Collection, key: str) -> int:
    row = writer.execute(f"SELECT rev FROM {collection.name} WHERE _id = ?", (key,)).fetchone()  # noqa: S608
    return int(row[0]) if row else 0


def _write(writer: sqlite3.Connection, collection: Collection, document: Document, rev: int) -> None:
    stored = {**document, "rev": rev}
    values = [
        document["_id"],
        rev,
        encoded(collection, stored),
        *(_column(stored.get(name)) for name in collection.fields),
    ]
    names = ["_id", "rev", "body", *collection.fields]
    marks, updates = ", ".join("?" * len(values)), ", ".join(f"{name} = excluded.{name}" for name in names[1:])
    try:
        writer.execute(
            f"INSERT INTO {collection.name} ({', '.join(names)}) VALUES ({marks}) "  # noqa: S608
            f"ON CONFLICT(_id) DO UPDATE SET {updates}",
            values,
        )
    except sqlite3.IntegrityError as error:
        raise StoreError(f"{document['_id']} of {collection.name} breaks a unique index ({error})") from error


def _decode(body: bytes) -> Document:
    import bson
    from bson.codec_options import CodecOptions

    return dict(bson.decode(body, codec_options=CodecOptions(tz_aware=True, tzinfo=UTC)))


def _column(value: Any) -> Any:
    """A value as SQLite compares it: times are whole milliseconds since the epoch, as BSON keeps them."""
    value = searchable(value)
    if isinstance(value, datetime):
        return (value - EPOCH) // timedelta(milliseconds=1)
    return int(value) if isinstance(value, bool) else value
