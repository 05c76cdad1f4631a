"""What only the MongoDB body does: indexes, connections, outages, and keeping the URL's secrets."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from tasks.documents import COUNTERS, LEASES, Collection, Index
from tasks.mongo_documents import LARGEST, MongoDocuments
from tasks.retry import is_transient
from tests.mongo_server import MongoServer
from tests.tasks.store_worker import NAMED, THINGS
from tests.tasks.test_documents_contract import Worker, worker  # noqa: F401 - a fixture
from trading.errors import ConfigurationError, StoreError, StoreUnavailable

pytestmark = pytest.mark.integration

AT = datetime(2094, 5, 6, tzinfo=UTC)
USER, READER, PASSWORD = "gandalf", "pippin", "mellon-5e8f"
IMPATIENT = "serverSelectionTimeoutMS=300"

own_server = pytest.mark.skipif("TEST_MONGODB_URL" in os.environ, reason="kills or locks the server")


@pytest.fixture
def database(mongo_url: str, mongo_database: str) -> Iterator[Any]:
    """The driver's own view of the test's database."""
    with MongoClient[Any](mongo_url, tz_aware=True) as client:
        yield client[mongo_database]


@pytest.fixture
def opened(mongo_url: str, mongo_database: str) -> MongoDocuments:
    return MongoDocuments(mongo_url, (THINGS, NAMED), database=mongo_database)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    """A server that lets in only ``USER`` with ``PASSWORD``."""
    server = MongoServer(tmp_path_factory.mktemp("guarded"))
    server.start()
    with MongoClient[Any](server.url) as client:
        client.admin.command("createUser", USER, pwd=PASSWORD, roles=["root"])
        client.admin.command("createUser", READER, pwd=PASSWORD, roles=[{"role": "read", "db": "locked"}])
    server.stop()
    yield server.start("--auth")
    server.kill()


def url_of(server: MongoServer, user: str = USER, password: str = PASSWORD) -> str:
    return f"mongodb://{user}:{password}@127.0.0.1:{server.port}/guarded?authSource=admin&{IMPATIENT}"


def assert_discreet(error: BaseException, *secrets: str) -> None:
    """Nothing that is printed of an error, or hangs on it, holds a secret."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    said = "".join(str(one) + repr(one) for one in chain) + "".join(traceback.format_exception(error))
    for secret in secrets or (USER, PASSWORD):
        assert secret not in said


# --- the database and its indexes ----------------------------------------------------------------


def test_other_programs_find_plain_documents_and_indexes(opened: MongoDocuments, database: Any) -> None:
    opened.put(THINGS, {"_id": "a", "kind": "k", "at": AT})
    opened.increment("tokens", 3)
    assert list(database.things.find({"at": AT})) == [{"_id": "a", "kind": "k", "at": AT, "rev": 1}]
    assert list(database.counters.find()) == [{"_id": "tokens", "value": 3, "rev": 1}]
    made = {
        name: (list(index["key"]), index.get("unique"), index.get("expireAfterSeconds"))
        for collection in (database.things, database.named, database.leases)
        for name, index in collection.index_information().items()
        if name != "_id_"
    }
    assert made == {
        "things_kind_idx": ([("kind", 1), ("at", 1)], None, None),
        "things_expires_idx": ([("expires_at", 1)], None, 0),
        "named_name_idx": ([("name", 1)], True, None),
        "leases_expires_idx": ([("expires_at", 1)], None, 0),
    }


def test_documents_of_other_programs_are_read_and_replaced(opened: MongoDocuments, database: Any) -> None:
    foreign = {"_id": ObjectId(), "kind": "foreign", "at": AT}
    database.things.insert_many([foreign, {"_id": "a", "kind": "foreign too"}])
    assert opened.find(THINGS, {"kind": "foreign"}) == [foreign]
    assert not opened.insert(THINGS, {"_id": "a", "kind": "ours"})
    opened.put(THINGS, {"_id": "a", "kind": "ours"})
    assert opened.get(THINGS, "a") == {"_id": "a", "kind": "ours", "rev": 1}


@pytest.mark.parametrize(
    ("collection", "keys", "options", "should", "found"),
    [
        (THINGS, ["kind"], {"name": "things_kind_idx"}, r"\(kind 1, at 1\)", r"\(kind 1\)"),
        (THINGS, ["at", "kind"], {"name": "things_kind_idx"}, r"\(kind 1, at 1\)", r"\(at 1, kind 1\)"),
        (THINGS, ["kind", "at"], {"name": "things_kind_idx", "unique": True}, r"at 1\)", r"at 1\), unique"),
        (NAMED, ["name"], {"name": "named_name_idx"}, r"\(name 1\), unique", r"\(name 1\)"),
        (NAMED, ["name"], {"name": "named_name_idx", "unique": True, "sparse": True}, "unique", r"\), unique, sparse"),
        (
            THINGS,
            ["expires_at"],
            {"name": "things_expires_idx", "expireAfterSeconds": 60},
            "expireAfterSeconds 0",
            "expireAfterSeconds 60",
        ),
        (THINGS, ["expires_at"], {"name": "things_expires_idx"}, "expireAfterSeconds 0", r"\(expires_at 1\)"),
    ],
)
def test_an_index_that_is_not_as_declared_stops_the_opening(
    mongo_url: str,
    database: Any,
    collection: Collection,
    keys: list[str],
    options: dict[str, Any],
    should: str,
    found: str,
) -> None:
    made = database[collection.name].create_index([(key, 1) for key in keys], **options)
    where = f"the index {made} of {collection.name} in the database {database.name} of MongoDB at "
    with pytest.raises(ConfigurationError, match=rf"{where}.* should be .*{should} and is .*{found}; drop it"):
        MongoDocuments(mongo_url, [collection], database=database.name)
    database[collection.name].drop_index(made)
    MongoDocuments(mongo_url, [collection], database=database.name)


def test_an_index_that_cannot_be_made_stops_the_opening(mongo_url: str, database: Any) -> None:
    database.named.insert_many([{"_id": "a", "name": "same"}, {"_id": "b", "name": "same"}])
    with pytest.raises(
        ConfigurationError, match=r"named_name_idx .* \(name 1\), unique and is missing \(the data break"
    ):
        MongoDocuments(mongo_url, [NAMED], database=database.name)
    database.named.delete_one({"_id": "b"})
    database.named.create_index("name", name="older", unique=True)
    with pytest.raises(ConfigurationError, match=r"is missing \(IndexOptionsConflict .*older \(name 1\), unique"):
        MongoDocuments(mongo_url, [NAMED], database=database.name)


@pytest.mark.parametrize(
    ("path", "given", "name"), [("", None, "tradeflows"), ("/here", None, "here"), ("/a", "b", "b")]
)
def test_the_database_is_the_given_one_or_that_of_the_url(
    mongo_url: str, path: str, given: str | None, name: str
) -> None:
    # a collection that has no index and is not written to leaves nothing behind
    hosts = mongo_url.partition("://")[2].partition("/")[0]
    indexed = Collection("tradeflows_test_of_names", (Index("tradeflows_test_idx", ("x",)),))
    documents = MongoDocuments(f"mongodb://{hosts}{path}", [indexed], database=given)
    with MongoClient[Any](mongo_url) as client:
        assert "tradeflows_test_idx" in client[name][indexed.name].index_information()
        for made in (indexed, LEASES):
            client[name][made.name].drop()
    documents.close()


def test_a_document_larger_than_mongodb_takes_is_refused(opened: MongoDocuments) -> None:
    for write in (opened.put, opened.insert):
        with pytest.raises(
            StoreError, match=r"big of things has 16,777,2\d\d bytes, and MongoDB takes 16,777,216"
        ) as caught:
            write(THINGS, {"_id": "big", "body": b"0" * LARGEST})
        assert len(str(caught.value)) < 300
    opened.put(THINGS, {"_id": "big", "body": b"0" * (LARGEST - 1000)})
    with pytest.raises(StoreError, match="BadValue") as refused:
        opened.increment("full", 2**62)
        opened.increment("full", 2**62)
    assert not isinstance(refused.value, StoreUnavailable)


# --- connections ---------------------------------------------------------------------------------


def test_closing_one_leaves_the_others_open(mongo_url: str, mongo_database: str) -> None:
    one = MongoDocuments(mongo_url, [THINGS], database=mongo_database)
    with MongoDocuments(mongo_url, [THINGS], database=mongo_database) as other:
        other.put(THINGS, {"_id": "a"})
    one.close()
    assert one.get(THINGS, "a") == other.get(THINGS, "a") == {"_id": "a", "rev": 1}


def test_a_url_cannot_make_writes_less_certain(mongo_url: str, mongo_database: str) -> None:
    joint = "&" if "?" in mongo_url else "?"
    url = f"{mongo_url}{joint}w=0&readPreference=secondary&tz_aware=false&journal=false"
    documents = MongoDocuments(url, [THINGS], database=mongo_database)
    assert documents.insert(THINGS, {"_id": "a", "at": AT})
    assert not documents.insert(THINGS, {"_id": "a"})
    assert documents.get(THINGS, "a") == {"_id": "a", "at": AT, "rev": 1}


def test_a_fork_has_connections_of_its_own(
    mongo_url: str,
    mongo_database: str,
    worker: Callable[..., Worker],  # noqa: F811
) -> None:
    forking = worker("forks", f"mongodb:{mongo_database}|{mongo_url}")
    forking.ready()
    forking.go()
    assert forking.results() == [{"children": [0, 0, 0], "total": 400}]


@own_server
def test_a_killed_server_loses_nothing_acknowledged_and_the_same_documents_go_on(guarded: MongoServer) -> None:
    url = url_of(guarded)
    documents = MongoDocuments(url, [THINGS])
    acknowledged: list[str] = []
    failures: list[StoreUnavailable] = []
    enough = threading.Event()

    def write(me: int) -> None:
        try:
            while True:
                key = f"{me}-{len(acknowledged)}"
                if documents.insert(THINGS, {"_id": key, "kind": "k", "body": b"0" * 1000}):
                    acknowledged.append(key)
                if len(acknowledged) > 300:
                    enough.set()
        except StoreUnavailable as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    assert enough.wait(30)
    guarded.kill()
    for thread in threads:
        thread.join(30)
    # what was verified once asks nothing of the server
    again = MongoDocuments(url, [THINGS])
    for call in (
        lambda: again.get(THINGS, "0-0"),
        lambda: again.find(THINGS, {"kind": "k"}),
        lambda: again.put(THINGS, {"_id": "x"}),
        lambda: again.increment("x"),
        lambda: again.acquire("x", "one", AT - AT, AT),
        lambda: again.purge(AT),
        lambda: MongoDocuments(url, [NAMED]),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            call()
        failures.append(caught.value)
    assert len(failures) == 4 + 7
    for error in failures:
        assert is_transient(error)
        assert f"MongoDB at 127.0.0.1:{guarded.port} cannot be reached" in str(error)
        assert "MONGODB_URL" in str(error)
        assert_discreet(error)
    guarded.start("--auth")
    stored = {document["_id"] for document in documents.find(THINGS, {"kind": "k"})}
    assert set(acknowledged) <= stored
    assert len(stored) <= len(acknowledged) + 4
    documents.put(THINGS, {"_id": "after", "kind": "k"})
    assert again.get(THINGS, "after") == {"_id": "after", "kind": "k", "rev": 1}


# --- secrets -------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_transient_and_named(closed_port: int) -> None:
    url = f"mongodb://{USER}:{PASSWORD}@127.0.0.1:{closed_port}/db?{IMPATIENT}"
    with pytest.raises(
        StoreUnavailable, match=rf"MongoDB at 127\.0\.0\.1:{closed_port} .*refused.*MONGODB_URL"
    ) as caught:
        MongoDocuments(url, [THINGS])
    assert is_transient(caught.value)
    assert_discreet(caught.value)


@own_server
@pytest.mark.parametrize(("user", "password"), [(USER, "speak-friend-77"), ("saruman-x", PASSWORD)])
def test_a_refused_password_is_not_transient_and_not_shown(guarded: MongoServer, user: str, password: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"does not allow this .*authSource in MONGODB_URL") as caught:
        MongoDocuments(url_of(guarded, user, password), [THINGS])
    assert not is_transient(caught.value)
    assert_discreet(caught.value, user, password)


@own_server
def test_who_may_not_make_indexes_is_told_to_ask(guarded: MongoServer) -> None:
    with pytest.raises(ConfigurationError, match=r"is missing \(Unauthorized 13.*ask the administrator") as caught:
        MongoDocuments(url_of(guarded, READER), [NAMED], database="locked")
    assert_discreet(caught.value, READER, PASSWORD)
    MongoDocuments(url_of(guarded), [NAMED], database="locked").put(NAMED, {"_id": "a", "name": "n"})
    reading = MongoDocuments(url_of(guarded, READER), [NAMED], database="locked")
    assert reading.get(NAMED, "a") == {"_id": "a", "name": "n", "rev": 1}
    with pytest.raises(StoreUnavailable, match="does not allow this") as refused:
        reading.put(NAMED, {"_id": "b", "name": "m"})
    assert not is_transient(refused.value)
    assert_discreet(refused.value, READER, PASSWORD)


@pytest.mark.parametrize(
    "url",
    [
        "",
        f"{USER}:{PASSWORD}@host",
        f"http://{USER}:{PASSWORD}@host/db",
        f"mongodb://{USER}:{PASSWORD}",
        f"mongodb://{USER}:{PASSWORD}@/db",
        f"mongodb://{USER}:{PASSWORD}@host:99999999/db",
        f"mongodb://{USER}:{PASSWORD}@host:{PASSWORD}/db",
        f"mongodb://{USER}:{PASSWORD}%@host/db",
        f"mongodb://{USER}:12/{PASSWORD}@host",
        f"mongodb://{USER}:12/{PASSWORD}@host/db",
        f"mongodb://{USER}:12?{PASSWORD}@host/db",
        f"mongodb://{USER}:12?{PASSWORD}=1@host/db",
        f"mongodb://{USER}:{PASSWORD}:more@host/db",
        f"mongodb://{USER}:{PASSWORD}@more@host/db",
        f"mongodb://{USER}:{PASSWORD}#@[::1/db",
        f"mongodb://{USER}:{PASSWORD}@host/d b",
        f"mongodb://{USER}:{PASSWORD}@host/db?oops",
        f"mongodb://{USER}:{PASSWORD}@one,two/db?directConnection=true",
        f"mongodb+srv://{USER}:{PASSWORD}@host:1/db",
    ],
)
def test_a_malformed_url_is_said_to_be_one_and_not_shown(
    url: str, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigurationError, match="MONGODB_URL") as caught:
        MongoDocuments(url, [THINGS])
    assert not is_transient(caught.value)
    assert_discreet(caught.value)
    for said in (*(str(warning.message) for warning in recwarn), caplog.text):
        assert USER not in said
        assert PASSWORD not in said


def test_a_bad_database_name_is_a_matter_of_configuration(mongo_url: str) -> None:
    with pytest.raises(ConfigurationError, match="not the name of a database"):
        MongoDocuments(mongo_url, [COUNTERS], database="a b")
