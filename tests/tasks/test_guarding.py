"""Sources with their guards: opened once, when they are needed, and left alone together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks import guarding
from tasks.binance import BinanceSource
from tasks.circuit import Breaker, Circuit, Rule, State, every, find
from tasks.files import FileSource
from tasks.guarding import Both, circuit_name, guard_of, opened_sources
from tasks.settings import Settings, load_settings
from tasks.sources import Source
from tasks.store import Store, open_store
from trading.errors import CircuitOpen, ConfigurationError, SourceError, SourceRefused, SourceUnavailable
from trading.window import Timeframe, Window

pytestmark = pytest.mark.usefixtures("waits")

START = datetime(2018, 3, 5, 7, tzinfo=UTC)
FIVE_HOURS = Window("BTCSIM", Timeframe.H1, START, START + timedelta(hours=5))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "home") as opened:
        yield opened


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("ENGINE_URL", "EXCHANGE_URL", "MIRROR_URL", "CANDLE_FOLDER", "CIRCUIT_FAILURES", "CIRCUIT_SECONDS")
    for name in ("ENGINE_URL", *(f"TRADEFLOWS_{name}" for name in names)):
        monkeypatch.delenv(name, raising=False)


def settings_of(monkeypatch: pytest.MonkeyPatch, **variables: object) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"TRADEFLOWS_{name}", str(value))
    return load_settings()


# --- two guards ----------------------------------------------------------------------------------


class Named:
    """A guard that writes down what it is asked and told."""

    def __init__(self, name: str, said: list[object], refuses: bool = False) -> None:
        self._name, self._said, self._refuses = name, said, refuses

    def admit(self, weight: int) -> None:
        self._said.append((self._name, weight))
        if self._refuses:
            raise CircuitOpen("left alone", START)

    def heard(self, error: SourceError | None) -> None:
        self._said.append((self._name, error))


def test_both_guards_are_asked_and_told_in_their_order() -> None:
    said: list[object] = []
    both = Both(Named("first", said), Named("second", said))
    both.admit(20)
    both.heard(None)
    error = SourceUnavailable("down")
    both.heard(error)
    assert said == [
        ("first", 20),
        ("second", 20),
        ("first", None),
        ("second", None),
        ("first", error),
        ("second", error),
    ]


def test_where_the_first_refuses_the_second_is_not_asked() -> None:
    said: list[object] = []
    with pytest.raises(CircuitOpen):
        Both(Named("first", said, refuses=True), Named("second", said)).admit(2)
    assert said == [("first", 2)]


# --- which guard ---------------------------------------------------------------------------------


def test_files_have_no_guard(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = settings_of(monkeypatch, CANDLE_FOLDER=tmp_path)
    assert guard_of(settings, store, "files", metered=False) is None
    assert guard_of(settings, store, "files", metered=True) is None  # nor does it ask any server


@pytest.mark.parametrize("kind", ["exchange", "mirror", "engine"])
def test_what_is_asked_over_http_has_a_breaker_with_the_settings_rule(
    store: Store, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = settings_of(
        monkeypatch, **{f"{kind.upper()}_URL": "http://a.test:8000", "CIRCUIT_FAILURES": 2, "CIRCUIT_SECONDS": 90}
    )
    guard = guard_of(settings, store, kind, metered=False)
    assert isinstance(guard, Breaker)
    before = datetime.now(UTC)
    for _ in range(2):
        guard.admit(1)
        guard.heard(SourceUnavailable("down"))
    circuit = find(store.documents, f"{kind} a.test:8000")
    assert (circuit.state, circuit.failures) == (State.OPEN, 2)
    assert circuit.until is not None
    assert timedelta(seconds=89) < circuit.until - before < timedelta(seconds=120)


def test_the_rule_s_defaults_are_the_settings_defaults() -> None:
    settings = load_settings()
    assert Rule(settings.circuit_failures, timedelta(seconds=settings.circuit_seconds)) == Rule()


def test_with_a_meter_the_limit_is_made_and_stands_before_the_breaker(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(guarding.limits, "ensure", lambda settings, kind: made.append(kind))
    guard = guard_of(settings_of(monkeypatch, MIRROR_URL="http://b.test"), store, "mirror", metered=True)
    assert made == ["mirror"]
    assert isinstance(guard, Both)
    assert [type(one).__name__ for one in (guard._first, guard._second)] == ["Meter", "Breaker"]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://api.a.test", "exchange api.a.test"),
        ("HTTPS://API.A.test/v1/", "exchange api.a.test"),
        ("http://127.0.0.1:8000", "exchange 127.0.0.1:8000"),
        ("http://a.test:80", "exchange a.test"),
        ("http://[::1]:8000", "exchange ::1:8000"),
    ],
)
def test_a_circuit_is_called_after_who_is_asked(monkeypatch: pytest.MonkeyPatch, address: str, name: str) -> None:
    assert circuit_name(settings_of(monkeypatch, EXCHANGE_URL=address), "exchange") == name


def test_what_fails_of_the_settings_leaves_the_engine_s_candles_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding.limits, "ensure", lambda settings, kind: None)
    settings = settings_of(monkeypatch, ENGINE_URL="http://a.test:8000", CIRCUIT_FAILURES=2)
    guard = guard_of(settings, store, "engine", metered=True, about="settings")
    assert isinstance(guard, Both)
    meter, breaker = guard._first, guard._second
    for _ in range(2):
        breaker.heard(SourceUnavailable("500"))
    assert find(store.documents, "engine settings a.test:8000").state is State.OPEN
    assert find(store.documents, "engine a.test:8000").state is State.CLOSED
    # but what is asked for is counted together
    candles = guard_of(settings, store, "engine", metered=True)
    assert isinstance(candles, Both)
    assert isinstance(meter, guarding.limits.Meter)
    assert isinstance(candles._first, guarding.limits.Meter)
    assert meter._name == candles._first._name
    candles._second.admit(1)


@pytest.mark.parametrize("address", ["http://a.test:port", "a.test", "https://me:hunter2@a.test"])
def test_an_address_that_will_not_do_is_said_to_be_so(
    store: Store, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    settings = settings_of(monkeypatch, MIRROR_URL=address)
    with (
        opened_sources(settings, store, ["mirror"], metered=False) as (mirror,),
        pytest.raises(ConfigurationError, match="TRADEFLOWS_MIRROR_URL") as caught,
    ):
        mirror()
    assert "hunter2" not in str(caught.value)


# --- opening -------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sources that were opened, in turn; each knows whether it was ``closed``."""
    sources: list[Any] = []
    making = guarding.source_of

    def source_of(settings: Settings, kind: str, guard: Any) -> Source:
        source: Any = making(settings, kind, guard)
        closing = source.close
        source.closed = 0

        def close() -> None:
            source.closed += 1
            closing()

        source.close = close
        sources.append(source)
        return source  # type: ignore[no-any-return]

    monkeypatch.setattr(guarding, "source_of", source_of)
    return sources


def test_sources_are_opened_when_first_asked_for_and_closed_at_the_end(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: list[Any]
) -> None:
    settings = settings_of(monkeypatch, EXCHANGE_URL="http://a.test", CANDLE_FOLDER=tmp_path)
    with opened_sources(settings, store, ["exchange", "files", "exchange"], metered=False) as openers:
        assert len(openers) == 3
        assert opened == []
        files = openers[1]()
        assert isinstance(files, FileSource)
        assert opened == [files]
        exchange = openers[0]()
        assert isinstance(exchange, BinanceSource)
        assert openers[2]() is exchange is openers[0]()  # one kind is one source
        assert openers[1]() is files
        assert opened == [files, exchange]
        assert [source.closed for source in opened] == [0, 0]
    assert [source.closed for source in opened] == [1, 1]


def test_sources_are_closed_after_an_error_too(
    store: Store, monkeypatch: pytest.MonkeyPatch, opened: list[Any]
) -> None:
    settings = settings_of(monkeypatch, EXCHANGE_URL="http://a.test")
    with (
        pytest.raises(ZeroDivisionError),
        opened_sources(settings, store, ["exchange"], metered=False) as (exchange,),
    ):
        exchange()
        raise ZeroDivisionError
    assert [source.closed for source in opened] == [1]


def test_a_source_that_is_not_configured_says_so_when_it_is_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch, opened: list[Any]
) -> None:
    settings = settings_of(monkeypatch, EXCHANGE_URL="http://a.test")
    kinds = ["exchange", "mirror", "engine", "files", "ftp"]
    with opened_sources(settings, store, kinds, metered=False) as (exchange, *others):
        exchange()
        for other, said in zip(
            others,
            ("needs TRADEFLOWS_MIRROR_URL", "needs ENGINE_URL", "needs TRADEFLOWS_CANDLE_FOLDER", "not a source"),
            strict=True,
        ):
            with pytest.raises(ConfigurationError, match=said):
                other()
    assert [source.closed for source in opened] == [1]


def test_many_threads_open_one_source(store: Store, monkeypatch: pytest.MonkeyPatch, opened: list[Any]) -> None:
    settings = settings_of(monkeypatch, EXCHANGE_URL="http://a.test")
    barrier, got = threading.Barrier(8), []

    def run(opener: Any) -> None:
        barrier.wait(10)
        got.append(opener())

    with opened_sources(settings, store, ["exchange"], metered=False) as (opener,):
        threads = [threading.Thread(target=run, args=(opener,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(got) == 8
        assert {id(source) for source in got} == {id(opened[0])}
    assert len(opened) == 1


# --- the whole of it -----------------------------------------------------------------------------


def test_a_source_that_fails_is_left_alone_by_the_next_worker(
    store: Store, sandbox: Any, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    settings = settings_of(monkeypatch, EXCHANGE_URL=sandbox.url, CIRCUIT_FAILURES=3)
    sandbox.set_faults(failing=1.0)
    with opened_sources(settings, store, ["exchange"], metered=False) as (exchange,):
        with pytest.raises(CircuitOpen):
            exchange().fetch(FIVE_HOURS)
        assert sandbox.state.replies == {"time": {"200": 1}, "klines": {"503": 3}}
        assert len(waits) == 3
    sandbox.set_faults()
    with opened_sources(settings, store, ["exchange"], metered=False) as (exchange,):
        for ask in (exchange().server_time, lambda: exchange().fetch(FIVE_HOURS)):
            with pytest.raises(CircuitOpen, match=r"after 3 failures in a row, the last: .*answered 503"):
                ask()
    assert sandbox.state.requests == 3
    assert [circuit.source for circuit in every(store.documents)] == [f"exchange {sandbox.url.removeprefix('http://')}"]


def test_a_mirror_at_another_address_is_not_left_alone_with_the_exchange(
    store: Store, sandbox: Any, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(
        monkeypatch, EXCHANGE_URL=f"http://127.0.0.1:{closed_port}", MIRROR_URL=sandbox.url, CIRCUIT_FAILURES=5
    )
    with opened_sources(settings, store, ["exchange", "mirror"], metered=False) as (exchange, mirror):
        with pytest.raises(SourceUnavailable, match="TRADEFLOWS_EXCHANGE_URL"):
            exchange().fetch(FIVE_HOURS)
        with pytest.raises(CircuitOpen):
            exchange().fetch(FIVE_HOURS)
        assert len(mirror().fetch(FIVE_HOURS)) == 5


def test_faults_that_pass_leave_the_circuit_closed(store: Store, sandbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(monkeypatch, EXCHANGE_URL=sandbox.url, CIRCUIT_FAILURES=5)
    sandbox.set_faults(failing=1.0, only=4)
    with opened_sources(settings, store, ["exchange"], metered=False) as (exchange,):
        assert len(exchange().fetch(FIVE_HOURS)) == 5
        for _ in range(6):  # a refusal is an answer
            with pytest.raises(SourceRefused):
                exchange().listed("NOSUCH", Timeframe.H1)
    (circuit,) = every(store.documents)
    assert circuit == Circuit(circuit.source, rev=circuit.rev)
    assert circuit.rev == 5
