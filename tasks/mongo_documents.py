"""The document port on a MongoDB server, for stores that several machines share.

One pooled client per process and URL, opened by the first call. Writes are acknowledged when a majority has
them in its journal. Indexes are made and then verified at the first opening of a collection in a process. The
user name and password of the URL appear in no message; the driver's own errors are never chained, since they
could hold them or whole documents.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote_plus

from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, DESCENDING, MongoClient, ReturnDocument, timeout
from pymongo.collection import Collection as MongoCollection
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    CursorNotFound,
    DuplicateKeyError,
    ExecutionTimeout,
    InvalidName,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)

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
from trading.errors import ConfigurationError, RevisionConflict, StoreError, StoreUnavailable

DATABASE: Final = "tradeflows"
LARGEST: Final = 16 * 1024 * 1024  # of one document, whatever the server
BATCH: Final = 500
CONFLICT_ATTEMPTS: Final = 100
GOODBYE_SECONDS: Final = 1.0
# what the port promises, whatever the URL says
PROMISED: Final[dict[str, Any]] = {
    "w": "majority",
    "journal": True,
    "readPreference": "primary",
    "tz_aware": True,
    "tzinfo": UTC,
    "connect": False,
    "appname": "tradeflows",
}
# what the URL may say otherwise; polling finds a server that came back in half a second, streaming in up to ten
DEFAULTS: Final[dict[str, Any]] = {
    "serverSelectionTimeoutMS": 5_000,
    "connectTimeoutMS": 5_000,
    "socketTimeoutMS": 30_000,
    "serverMonitoringMode": "poll",
}
# codes of the server
DUPLICATE: Final = 11000
NOT_ALLOWED: Final = {13, 18, 8000}  # Unauthorized, AuthenticationFailed, and the latter as Atlas says it
PASSING: Final = {91, 112, 189, 10107, 11600, 11602, 13435, 13436}  # shutdowns, write conflicts, elections

_clients: dict[tuple[str, int], MongoClient] = {}
_verified: set[tuple[str, str, Collection]] = set()


class MongoDocuments:
    """``tasks.documents.Documents`` in a database of the server at ``url``; threads and forks may share it.

    The database is ``database``, else the one in the URL's path, else ``tradeflows``.

    Raises:
        ConfigurationError: the URL makes no sense, or an index in the database is not as declared.
        StoreUnavailable: the server cannot be reached (transient) or refuses the user.
    """

    def __init__(self, url: str, collections: Iterable[Collection], *, database: str | None = None) -> None:
        self._url = url
        hosts, self._secrets = _parts(url)
        self._server = f"MongoDB at {hosts}"
        self._collections = (*collections, LEASES, COUNTERS)
        with self._translated():
            client = _client(url)
            try:
                self._database = (client[database] if database else client.get_default_database(DATABASE)).name
            except InvalidName as error:
                raise ConfigurationError(f"{database} is not the name of a database: {error}") from None
            for collection in self._collections:
                key = (url, self._database, collection)
                if key not in _verified:
                    self._verify(collection)
                    _verified.add(key)

    def get(self, collection: Collection, key: str) -> Document | None:
        with self._translated():
            found: Document | None = self._in(collection).find_one({"_id": key})
            return found

    def put(self, collection: Collection, document: Document) -> None:
        document = checked(collection, document)
        key = document["_id"]
        with self._translated():
            for _ in range(CONFLICT_ATTEMPTS):
                held = self._in(collection).find_one({"_id": key}, {"rev": True})
                # a document that another program wrote may have no rev: None finds it again
                written = (
                    self._insert(collection, document)
                    if held is None
                    else self._replace(collection, document, held.get("rev"))
                )
                if written:
                    return
        raise RevisionConflict(f"{key} of {collection.name} was written by others {CONFLICT_ATTEMPTS} times; try again")

    def insert(self, collection: Collection, document: Document) -> bool:
        document = checked(collection, document)
        with self._translated():
            return self._insert(collection, document)

    def insert_all(self, collection: Collection, documents: Iterable[Document]) -> int:
        written = 0
        coming = (checked(collection, document) for document in documents)
        while batch := list(islice(coming, BATCH)):
            with self._translated():
                written += self._insert_batch(collection, batch)
        return written

    def compare_and_set(self, collection: Collection, document: Document, expected: int) -> bool:
        document = checked(collection, document)
        with self._translated():
            if expected == 0:
                return self._insert(collection, document)
            return self._replace(collection, document, expected)

    def delete(self, collection: Collection, key: str) -> bool:
        with self._translated():
            return self._in(collection).delete_one({"_id": key}).deleted_count > 0

    def find(
        self,
        collection: Collection,
        where: Mapping[str, Any] | None = None,
        span: Span | None = None,
        *,
        newest: int | None = None,
    ) -> list[Document]:
        conditions = [{known(collection, field): {"$eq": searchable(value)}} for field, value in (where or {}).items()]
        order = "_id"
        if span is not None:
            order = known(collection, span.field)
            for bound, sign in ((span.low, "$gte"), (span.high, "$lt")):
                if bound is not None:
                    conditions.append({order: {sign: searchable(bound)}})
        if newest == 0:  # which MongoDB takes for no limit
            return []
        with self._translated():
            found = self._in(collection).find({"$and": conditions} if conditions else {})
            found = found.sort(order, ASCENDING if newest is None else DESCENDING)
            return list(found if newest is None else found.limit(newest))

    def increment(self, name: str, by: int = 1) -> int:
        # no upserts here and in acquire(): SecantusDB answers None to one that lost a race, and has counted it
        counters = self._in(COUNTERS)
        with self._translated():
            for _ in range(CONFLICT_ATTEMPTS):
                counter = counters.find_one_and_update(
                    {"_id": name}, {"$inc": {"value": by, "rev": 1}}, return_document=ReturnDocument.AFTER
                )
                if counter is not None:
                    return int(counter["value"])
                with suppress(DuplicateKeyError):  # another made it at the same time; now it is there
                    counters.insert_one({"_id": name, "value": by, "rev": 1})
                    return by
        raise RevisionConflict(f"{name} of {COUNTERS.name} was made by others {CONFLICT_ATTEMPTS} times; try again")

    def acquire(self, name: str, owner: str, ttl: timedelta, now: datetime) -> bool:
        aware(now)
        leases, taken = self._in(LEASES), {"owner": owner, "expires_at": now + ttl}
        # the server may be late to remove what has expired, so the filter decides
        free = {"_id": name, "$or": [{"owner": owner}, {"expires_at": {"$lte": now}}]}
        with self._translated():
            for _ in range(2):
                if leases.update_one(free, {"$set": taken, "$inc": {"rev": 1}}).matched_count == 1:
                    return True
                # it is held, unless the same owner took it just now: look again
                with suppress(DuplicateKeyError):
                    leases.insert_one({"_id": name, **taken, "rev": 1})
                    return True
        return False

    def release(self, name: str, owner: str) -> None:
        with self._translated():
            self._in(LEASES).delete_one({"_id": name, "owner": owner})

    def purge(self, now: datetime) -> int:
        aware(now)
        removed = 0
        with self._translated():
            for collection in self._collections:
                if collection.expires:
                    removed += self._in(collection).delete_many({collection.expires: {"$lt": now}}).deleted_count
        return removed

    def close(self) -> None:
        """Nothing: the connections are the process's, which closes them when it ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _in(self, collection: Collection) -> MongoCollection:
        return _client(self._url)[self._database][collection.name]

    def _insert(self, collection: Collection, document: Document) -> bool:
        body = _body(collection, document, 1)
        for _ in range(2):
            try:
                self._in(collection).insert_one(body)
            except DuplicateKeyError:
                if self._in(collection).find_one({"_id": document["_id"]}, {"_id": True}) is not None:
                    return False
                # another unique index, or it was removed in between: then a second try goes through
            else:
                return True
        raise _not_unique(collection, document)

    def _insert_batch(self, collection: Collection, batch: list[Document]) -> int:
        try:
            bodies = [_body(collection, document, 1) for document in batch]
            self._in(collection).insert_many(bodies, ordered=False)
            return len(batch)
        except BulkWriteError as error:
            failed: list[dict[str, Any]] = (error.details or {})["writeErrors"]
            if (error.details or {}).get("writeConcernErrors") or {one["code"] for one in failed} != {DUPLICATE}:
                raise
        # there already, unless it is another index that they break
        return len(batch) - len(failed) + sum(self._insert(collection, batch[one["index"]]) for one in failed)

    def _replace(self, collection: Collection, document: Document, held: int | None) -> bool:
        body = _body(collection, document, (held or 0) + 1)
        try:
            result = self._in(collection).replace_one({"_id": document["_id"], "rev": held}, body)
        except DuplicateKeyError:
            raise _not_unique(collection, document) from None
        return result.matched_count == 1

    def _verify(self, collection: Collection) -> None:
        wanted = _wanted(collection)
        if not wanted:
            return
        there = self._in(collection)
        indexes = {spec["name"]: spec for spec in there.list_indexes()}
        refused: dict[str, str] = {}
        for name in wanted.keys() - indexes.keys():
            options = {option: value for option, value in wanted[name].items() if option != "key"}
            try:
                there.create_index(list(wanted[name]["key"].items()), name=name, **options)
            except OperationFailure as error:
                if _passing(error):
                    raise
                refused[name] = "the data break it" if error.code == DUPLICATE else self._words(error)
        if wanted.keys() - indexes.keys():
            indexes = {spec["name"]: spec for spec in there.list_indexes()}
        for name, spec in wanted.items():
            should, found = _described(spec), _described(indexes[name]) if name in indexes else None
            if found == should:
                continue
            where = f"the index {name} of {collection.name} in the database {self._database} of {self._server}"
            if found is None:
                others = "; ".join(f"{other} {_described(spec)}" for other, spec in indexes.items())
                raise ConfigurationError(
                    f"{where} should be {should} and is missing ({refused.get(name, 'it was not made')}; there are: "
                    f"{others or 'none'}); remove what stands in its way, or ask the administrator to make it"
                )
            raise ConfigurationError(
                f"{where} should be {should} and is {found}; drop it, and the next start makes it again, "
                "or ask the administrator to"
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (InvalidBSON, UnicodeDecodeError):
            raise StoreUnavailable(f"{self._server} sent a damaged document; restore it from a backup") from None
        except (OverflowError, UnicodeEncodeError) as error:
            raise StoreError(f"{self._server} cannot be asked for this: {error}") from None
        except ConnectionFailure as error:
            reason = self._hidden(re.split(r" \(configured timeouts|, Timeout: ", str(error))[0])
            raise StoreUnavailable(
                f"{self._server} cannot be reached ({reason}); check that it runs and that MONGODB_URL names it",
                transient=True,
            ) from None
        except OperationFailure as error:
            if error.code in NOT_ALLOWED:
                raise StoreUnavailable(
                    f"{self._server} does not allow this ({self._words(error)}); check the user name, the password and "
                    "authSource in MONGODB_URL, and that the user may read and write the database"
                ) from None
            if _passing(error):
                raise StoreUnavailable(
                    f"{self._server} could not do this now ({self._words(error)}); try again", transient=True
                ) from None
            raise StoreError(f"{self._server} refused this ({self._words(error)})") from None
        except PyMongoError as error:  # a name that does not resolve, a server that is too old, a closed client
            reason = self._hidden(str(error))
            raise StoreUnavailable(
                f"{self._server} cannot be used ({reason}); check MONGODB_URL",
                transient=self._url.startswith("mongodb+srv"),
            ) from None

    def _words(self, error: OperationFailure) -> str:
        """What the server said, short: its words may quote a whole command."""
        details = error.details or {}
        said = self._hidden(str(details.get("errmsg", "")))
        return f"{details.get('codeName', 'error')} {error.code}: {said}"

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:200]


def _parts(url: str) -> tuple[str, tuple[str, ...]]:
    """The hosts that the URL names, and what of it must not be shown."""
    scheme, _, rest = url.partition("://")
    if scheme not in {"mongodb", "mongodb+srv"}:
        raise ConfigurationError("MONGODB_URL begins with neither mongodb:// nor mongodb+srv://")
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    if "@" in rest[len(authority) :]:
        # what stands before it would be taken for a host, and shown
        raise ConfigurationError(
            "MONGODB_URL has an @ behind its hosts; write / ? @ : in a user name or password as %.."
        )
    user, _, hosts = authority.rpartition("@")
    words = [word for part in (user, *user.partition(":")[::2]) for word in (part, unquote_plus(part)) if word]
    return hosts, tuple(sorted(set(words), key=len, reverse=True))


def _client(url: str) -> MongoClient:
    """The client of this process: one made before a fork has the other process's connections."""
    key = (url, os.getpid())
    client = _clients.get(key)
    if client is None:
        made = _made(url)
        client = _clients.setdefault(key, made)  # of two threads one wins; the other's has not connected yet
    return client


def _made(url: str) -> MongoClient:
    options = PROMISED | {name: value for name, value in DEFAULTS.items() if f"{name}=".lower() not in url.lower()}
    try:
        return MongoClient(url, **options)
    except (PyMongoError, ValueError, TypeError):
        fault = _fault(url)
    # raised here, so that it carries nothing of the driver's error
    raise ConfigurationError(f"MONGODB_URL is not the URL of a MongoDB server: {fault}")


def _fault(url: str) -> str:
    """What is wrong with a URL, in words that cannot hold its user name and password: they are left out."""
    scheme, _, rest = url.partition("://")
    try:
        MongoClient(f"{scheme}://{rest.rpartition('@')[2]}", connect=False).close()
    except (PyMongoError, ValueError, TypeError) as error:
        return str(error)
    return "special characters in the user name and the password must be written as %.."


@atexit.register
def _close_all() -> None:
    with timeout(GOODBYE_SECONDS):  # a server that is down would be waited for
        for (_, process), client in list(_clients.items()):
            if process == os.getpid():
                client.close()


def _body(collection: Collection, document: Document, rev: int) -> RawBSONDocument:
    """The document as it is sent: encoded once, and never the caller's own dict, which the driver would change."""
    body = encoded(collection, {**document, "rev": rev})
    if len(body) > LARGEST:
        raise StoreError(
            f"{document['_id']} of {collection.name} has {len(body):,} bytes, and MongoDB takes {LARGEST:,}; "
            "store it in parts"
        )
    return RawBSONDocument(body)


def _wanted(collection: Collection) -> dict[str, dict[str, Any]]:
    """The collection's indexes by name, as the server tells of them."""
    wanted: dict[str, dict[str, Any]] = {}
    for index in collection.indexes:
        keys = {"key": dict.fromkeys(index.fields, ASCENDING)}
        wanted[index.name] = keys | ({"unique": True} if index.unique else {})
    if collection.expires:
        wanted[f"{collection.name}_expires_idx"] = {"key": {collection.expires: ASCENDING}, "expireAfterSeconds": 0}
    return wanted


def _not_unique(collection: Collection, document: Document) -> StoreError:
    names = ", ".join(f"{index.name} over {', '.join(index.fields)}" for index in collection.indexes if index.unique)
    return StoreError(f"{document['_id']} of {collection.name} breaks a unique index ({names})")


def _described(spec: Mapping[str, Any]) -> str:
    """An index in words: all of it that changes what it does, so that equal words are equal indexes."""
    fields = ", ".join(f"{field} {_number(direction)}" for field, direction in spec["key"].items())
    options = [
        option if spec[option] is True else f"{option} {_number(spec[option])}"
        for option in ("unique", "expireAfterSeconds", "sparse", "partialFilterExpression", "collation", "hidden")
        if spec.get(option) is not None and spec[option] is not False
    ]
    return ", ".join([f"({fields})", *options])


def _number(value: Any) -> str:
    """Of a number that is whole: without a fraction, whatever type the server keeps it in."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _passing(error: OperationFailure) -> bool:
    """Whether the same call may succeed later."""
    labelled = error.has_error_label("RetryableWriteError") or error.has_error_label("TransientTransactionError")
    return labelled or error.code in PASSING or isinstance(error, ExecutionTimeout | WTimeoutError | CursorNotFound)
