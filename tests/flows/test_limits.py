"""Request weight, drawn from a real Prefect server's global limits by several meters."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from deployments.sandbox import Sandbox
from tasks import limits
from tasks.guarding import Both, guard_of, opened_sources
from tasks.limits import BLOCK, Meter, ensure, limit_name, weights_per_minute
from tasks.retry import is_transient
from tasks.settings import load_settings
from tasks.store import open_store
from trading.errors import ConfigurationError, SourceUnavailable
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration

START = datetime(2018, 3, 5, 7, tzinfo=UTC)


@pytest.fixture
def kind() -> str:
    """A kind of source that no other test draws from."""
    return f"test-{uuid.uuid4().hex[:8]}"


def make(kind: str, limit: int, per_second: float) -> None:
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(limit_name(kind), limit=limit, slot_decay_per_second=per_second)


def read(kind: str) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(limit_name(kind))


def seconds(action: Callable[[], object]) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def limits_named(name: str) -> int:
    with get_client(sync_client=True) as client:
        return sum(one.name == name for one in client.read_global_concurrency_limits(limit=200, offset=0))


# --- the limit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exchange", "mirror", "engine"])
@pytest.mark.parametrize(
    ("per_minute", "limit", "decay"), [(6000, 3000, 50.0), (100, 50, 5 / 6), (1201, 600, 1201 / 120)]
)
def test_a_limit_is_half_of_a_minute_and_decays_by_the_other_half(
    kind: str, per_minute: int, limit: int, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = "ENGINE_REQUESTS_PER_MINUTE" if kind == "engine" else "EXCHANGE_WEIGHT_PER_MINUTE"
    monkeypatch.setenv(f"TRADEFLOWS_{setting}", str(per_minute))
    for _ in range(2):  # what is there already is made so again
        ensure(load_settings(), kind)
    found = read(kind)
    assert (found.limit, found.slot_decay_per_second, found.active) == (limit, pytest.approx(decay), True)
    # what can be drawn at once, and what comes back meanwhile
    assert found.limit + 60 * found.slot_decay_per_second <= per_minute
    assert limits_named(f"tradeflows-{kind}") == 1


def test_a_changed_setting_changes_the_limit_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for per_minute in (600, 1200):
        monkeypatch.setenv("TRADEFLOWS_ENGINE_REQUESTS_PER_MINUTE", str(per_minute))
        ensure(load_settings(), "engine")
        assert (read("engine").limit, read("engine").slot_decay_per_second) == (per_minute // 2, per_minute / 120)
    assert limits_named("tradeflows-engine") == 1


def test_every_kind_over_http_has_a_limit_and_a_block_fits_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_WEIGHT_PER_MINUTE", "100")  # the least that can be set
    monkeypatch.setenv("TRADEFLOWS_ENGINE_REQUESTS_PER_MINUTE", "100")
    settings = load_settings()
    assert set(weights_per_minute(settings)) == {"exchange", "mirror", "engine"}
    for kind in weights_per_minute(settings):
        ensure(settings, kind)
        assert read(kind).limit >= BLOCK


# --- the meter -----------------------------------------------------------------------------------


def test_one_draw_lasts_for_many_requests(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(kind, 1000, 1000.0)
    draws: list[int] = []
    drawing = Meter._draw

    def draw(meter: Meter, weight: int) -> int:
        draws.append(weight)
        return drawing(meter, weight)

    monkeypatch.setattr(Meter, "_draw", draw)
    meter = Meter(kind)
    for weight in (2,) * (BLOCK // 2):
        meter.admit(weight)
    assert draws == [BLOCK]
    meter.admit(1)
    assert draws == [BLOCK, BLOCK]
    meter.admit(BLOCK - 2)  # one is left
    assert draws == [BLOCK, BLOCK]
    meter.admit(BLOCK + 60)
    assert draws == [BLOCK, BLOCK, BLOCK + 60]
    meter.heard(None)
    meter.heard(SourceUnavailable("down"))
    meter.admit(1)  # what is left of the block before the last
    assert draws == [BLOCK, BLOCK, BLOCK + 60]


def test_the_second_draw_waits_until_the_first_has_decayed(kind: str) -> None:
    make(kind, BLOCK, 30.0)
    meter = Meter(kind)
    meter.admit(BLOCK)
    took = seconds(lambda: meter.admit(BLOCK))
    assert took > 0.9 * BLOCK / 30.0
    assert took < 30


def test_two_meters_share_one_limit(kind: str) -> None:
    """As workers do: what one has drawn the other has to wait for."""
    make(kind, 2 * BLOCK, 40.0)
    one, other = Meter(kind), Meter(kind)
    begun = time.monotonic()
    for meter in (one, other, one, other):
        meter.admit(BLOCK)
    # four blocks, two of which were there at once
    assert time.monotonic() - begun > 0.9 * 2 * BLOCK / 40.0


def test_kinds_do_not_wait_for_one_another(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 20.0)
    make(kind, BLOCK, 0.01)
    make(f"{kind}-b", BLOCK, 0.01)
    Meter(kind).admit(BLOCK)
    assert seconds(lambda: Meter(f"{kind}-b").admit(BLOCK)) < 20  # the other's is used up for an hour


@pytest.mark.parametrize("decay", [None, 0.0])
def test_a_limit_that_is_missing_or_never_decays_is_said_to_be_so(kind: str, decay: float | None) -> None:
    if decay is not None:
        make(kind, BLOCK, decay)
    with pytest.raises(
        ConfigurationError, match=rf"tradeflows-{kind} cannot be drawn from .*prefect gcl create"
    ) as caught:
        Meter(kind).admit(1)
    assert not is_transient(caught.value)


def test_a_limit_that_gives_nothing_is_said_to_be_so(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(kind, BLOCK, 0.001)
    monkeypatch.setattr(limits, "PATIENCE", 1.0)
    meter = Meter(kind)
    meter.admit(BLOCK)
    with pytest.raises(ConfigurationError, match=rf"tradeflows-{kind} gave nothing for 1 s; .*prefect gcl inspect"):
        meter.admit(1)


# --- before a source -----------------------------------------------------------------------------


def test_a_source_draws_from_the_limit_of_its_kind(
    home: Path, exchange: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws: list[tuple[str, int]] = []
    drawing = Meter._draw

    def draw(meter: Meter, weight: int) -> int:
        draws.append((meter._name, weight))
        return drawing(meter, weight)

    monkeypatch.setattr(Meter, "_draw", draw)
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_WEIGHT_PER_MINUTE", "60000")
    settings = load_settings()
    window = Window("BTCSIM", Timeframe.H1, START, START + timedelta(hours=2500))
    with open_store(home) as store, opened_sources(settings, store, ["exchange"], metered=True) as (source,):
        assert isinstance(guard_of(settings, store, "exchange", metered=True), Both)
        assert (read("exchange").limit, read("exchange").slot_decay_per_second) == (30000, 500.0)
        source().describe("BTCSIM")
        assert len(source().fetch(window)) == 2500
        assert draws == [("tradeflows-exchange", BLOCK)]  # 20, 1, and three pages of 2
        source().describe("ETHSIM")
        assert draws == [("tradeflows-exchange", BLOCK)] * 2
