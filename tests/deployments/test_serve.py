"""The model server for real: what it answers is the verified champion's, what it refuses is said, and it changes with
the registry."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.serve_answers import ASKED, INVOKED, Asked, answer, predictions
from deployments.serve_champion import ChampionWatch
from deployments.serve_command import READY
from tasks import model_files, models, promotions, registry
from tasks.store import Store, configured_store
from tests.registered_models import KEY, NOW, SET, Registry, candles, flipped, opened
from trading.candles import COLUMNS, open_times_ms, values_of
from trading.errors import CandleContractError, DataError, InvalidRequest, ModelNotFound, ModelRejected

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).resolve().parents[2]
PASSWORD = "correct-horse-42"
KNOWN = ("tradeflows", PASSWORD)


@pytest.fixture(scope="session")
def models_at(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def store(models_at: Registry) -> Iterator[Store]:
    with configured_store(models_at.settings) as found:
        yield found


def promote(models_at: Registry, name: str, version: str) -> None:
    with configured_store(models_at.settings) as store:
        promotions.promote(
            models_at.client, store, name, version, reason="a test", who="test", now=NOW, key=models_at.key
        )  # fmt: skip


def wait_for(ready: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.05)
    return found


@contextmanager
def serving(models_at: Registry, name: str, log: Path, *words: str, **variables: str) -> Iterator[str]:
    """``tradeflows serve-model`` as a process of its own; gives its address."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRADEFLOWS_", "PREFECT_"))}
    home = str(models_at.settings.home)
    with (
        log.open("w") as said,
        subprocess.Popen(
            [
                sys.executable, "-m", "deployments.command", "serve-model", name, "--port", "0", "--home", home, *words,
            ],
            cwd=CHECKOUT,
            env={**kept, "TRADEFLOWS_SIGNING_KEY": KEY, "PYTHONUNBUFFERED": "1", **variables},
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as process,
    ):  # fmt: skip
        try:

            def told() -> str | None:
                assert process.poll() is None, log.read_text()
                lines = [line for line in log.read_text().splitlines() if line.startswith(READY)]
                return lines[0].rpartition(" on ")[2] if lines else None

            url = wait_for(told)
            assert f"{READY}{name} version " in log.read_text()
            yield url
        finally:
            process.terminate()
            # uvicorn ends well, and then by the signal that it was told by
            assert process.wait(20) in (0, -signal.SIGTERM), log.read_text()


@pytest.fixture(scope="module")
def served(models_at: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, httpx.Client]]:
    """A champion and a client of its server, which asks for the password."""
    name = models_at.new_name()
    promote(models_at, name, models_at.add(name, "logistic"))
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    with (
        serving(models_at, name, log, "--watch", "0.2", TRADEFLOWS_PASSWORD=PASSWORD) as url,
        httpx.Client(base_url=url, auth=KNOWN, timeout=30) as client,
    ):
        wait_for(lambda: client.get("/ping").status_code == 200)
        yield name, client
    assert PASSWORD not in log.read_text()
    assert KEY not in log.read_text()


def objects(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """As the engine's chart has them."""
    stamps, values = open_times_ms(frame).tolist(), values_of(frame).tolist()
    return [
        {"timestamp": stamp, **dict(zip(COLUMNS, row, strict=True))} for stamp, row in zip(stamps, values, strict=True)
    ]


def rows(frame: pd.DataFrame) -> list[list[float]]:
    return [[one["timestamp"], *(one[name] for name in COLUMNS)] for one in objects(frame)]


def loaded(models_at: Registry, name: str, version: str) -> models.Champion:
    return models.load(
        models_at.client, models_at.settings, registry.version_at(models_at.client, name, version), models_at.key
    )


def test_posted_candles_get_the_champion_s_own_signal(models_at: Registry, served: tuple[str, httpx.Client]) -> None:
    name, client = served
    version = client.get("/model").json()["version"]
    expected = loaded(models_at, name, version).model.predict(candles())
    needed = candles().tail(SET.rows_needed)
    for body in (
        {"candles": objects(needed)},
        {"candles": rows(needed), "symbol": "AAA", "timeframe": "1h"},
        {"candles": objects(candles())},  # more than are needed change nothing
    ):
        found = client.post("/signal", json=body)
        assert found.status_code == 200, found.text
        said = found.json()
        assert (said["signal"], said["confidence"]) == (expected.signal.value, pytest.approx(expected.confidence))
        assert said["p_long"] + said["p_neutral"] + said["p_short"] == pytest.approx(1)
        assert said["reasons"] == list(expected.reasons)
        assert said["timestamp"] == (expected.open_time + timedelta(hours=1)).isoformat()
        assert said["price"] == candles()["close"].iloc[-1]
        assert (said["model"], said["version"], said["trained_on"]) == (name, version, "simulated")
        assert said["degraded"] is None


def test_what_is_needed_is_told(models_at: Registry, served: tuple[str, httpx.Client]) -> None:
    name, client = served
    told = client.get("/model").json()
    assert (told["model"], told["timeframe"], told["candles_needed"]) == (name, "1h", SET.rows_needed)
    version = registry.version_at(models_at.client, name, told["version"])
    assert told["manifest_sha256"] == version.tags["manifest_sha256"]
    assert client.get("/health").json()["status"] == "ready"


NEEDED = objects(candles().tail(SET.rows_needed))


def changed(at: int, **values: Any) -> list[dict[str, Any]]:
    return [{**one, **values} if number == at % len(NEEDED) else one for number, one in enumerate(NEEDED)]


@pytest.mark.parametrize(
    ("body", "status", "code", "told"),
    [
        (b"{", 400, "InvalidRequest", "the body is not what is asked for"),
        (b'{"candles": [], "symbol": "\xff"}', 400, "InvalidRequest", "the body is not what is asked for"),
        ({}, 400, "InvalidRequest", "missing required field `candles`"),
        ({"candles": NEEDED, "candels": 1}, 400, "InvalidRequest", "unknown field `candels`"),
        ({"candles": changed(3, close="high")}, 400, "InvalidRequest", "$.candles[3].close"),
        ({"candles": [[1, 2, 3]]}, 400, "InvalidRequest", "length 6"),
        ({"candles": []}, 422, "InsufficientHistory", f"needs {SET.rows_needed} 1h candles and there are 0"),
        ({"candles": NEEDED[1:]}, 422, "InsufficientHistory", f"there are {SET.rows_needed - 1}"),
        ({"candles": changed(5, low=1e6)}, 422, "CandleContractError", "impossible"),
        ({"candles": changed(5, close=-1)}, 422, "CandleContractError", "impossible"),
        ({"candles": NEEDED[::-1]}, 422, "CandleContractError", "unique and increasing"),
        ({"candles": [*NEEDED, NEEDED[-1]]}, 422, "CandleContractError", "unique and increasing"),
        ({"candles": [NEEDED[0] | {"timestamp": 1577750400000}, *NEEDED[1:]]}, 422, "CandleGap", "bars are missing"),
        ({"candles": [one | {"timestamp": one["timestamp"] * 2} for one in NEEDED]}, 422, "CandleContractError", "1h"),
        ({"candles": NEEDED, "calendar": "XMOON"}, 400, "InvalidRequest", "'XMOON' is not a calendar"),
        ({"candles": NEEDED, "timeframe": "4h"}, 400, "InvalidRequest", "is of 1h candles, and not of 4h ones"),
        (
            {"candles": [one | {"timestamp": one["timestamp"] + 3_600_000_000_000} for one in NEEDED]},
            422, "CandleContractError", "leave out the one that is still forming",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said_and_nothing_else(
    served: tuple[str, httpx.Client], body: Any, status: int, code: str, told: str
) -> None:
    _, client = served
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = client.post("/signal", content=content, headers={"Content-Type": "application/json"})
    assert (found.status_code, found.json()["error_code"]) == (status, code), found.text
    assert told in found.json()["message"]
    assert set(found.json()) == {"error_code", "message"}
    assert "Traceback" not in found.text and ".py" not in found.text


def test_nobody_is_let_in_without_the_password(served: tuple[str, httpx.Client]) -> None:
    _, client = served
    for auth in (None, ("tradeflows", "wrong-horse-42"), ("somebody", PASSWORD)):
        with httpx.Client(base_url=client.base_url, auth=auth) as stranger:
            for method, path in (("POST", "/signal"), ("POST", "/invocations"), ("GET", "/model"), ("GET", "/health")):
                found = stranger.request(method, path, json={"candles": NEEDED} if method == "POST" else None)
                assert found.status_code == 401, path
                assert found.headers["www-authenticate"].startswith("Basic")
    assert httpx.get(f"{client.base_url}/ping").status_code == 200


def test_what_is_no_request_of_ours_is_refused(served: tuple[str, httpx.Client]) -> None:
    _, client = served
    text = json.dumps({"candles": NEEDED})
    assert client.post("/signal", content=text, headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.get("/signal").status_code == 405
    assert client.get("/nothing").status_code == 404
    # a page that got itself a name for this address
    assert client.get("/model", headers={"Host": "evil.example"}).status_code == 400
    large = client.post("/signal", content=b" " * 8_000_001, headers={"Content-Type": "application/json"})
    assert large.status_code == 413 and "8,000,000 bytes" in large.json()["message"]


def test_mlflow_s_clients_get_what_its_own_server_would_say(
    models_at: Registry, served: tuple[str, httpx.Client]
) -> None:
    import mlflow.pyfunc
    from mlflow.pyfunc import scoring_server

    name, client = served
    frame = candles().tail(SET.rows_needed)
    table = frame.reset_index().assign(open_time=open_times_ms(frame))
    version = registry.version_at(models_at.client, name, client.get("/model").json()["version"])
    with model_files.verified(models_at.client, version, models_at.key) as folder:
        theirs = mlflow.pyfunc.load_model(str(folder.parents[1]))
    for body in (
        {"dataframe_split": json.loads(table.to_json(orient="split", index=False))},
        {"dataframe_records": json.loads(table.to_json(orient="records"))},
    ):
        ours = client.post("/invocations", json=body)
        schema = theirs.metadata.get_input_schema()
        wanted = scoring_server.invocations(json.dumps(body), "application/json", theirs, schema)
        assert ours.status_code == wanted.status == 200, ours.text
        assert ours.json() == json.loads(wanted.response)
    deep = b'{"dataframe_records":[{"a":' + b"[" * 100_000
    assert client.post("/invocations", content=deep, headers={"Content-Type": "application/json"}).status_code == 400
    refused = client.post("/invocations", json={"dataframe_split": {"columns": ["close"], "data": [[1.0]]}})
    assert refused.status_code == 422 and "lack the columns" in refused.json()["message"]
    for wrong, told in (
        ({}, "not as both"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}, "no table"),
        ({"instances": []}, "unknown field"),
    ):
        refused = client.post("/invocations", json=wrong)
        assert refused.status_code == 400 and told in refused.json()["message"], refused.text


def test_a_promotion_changes_what_is_served_and_a_rollback_too(
    models_at: Registry, served: tuple[str, httpx.Client], store: Store
) -> None:
    name, client = served
    before = client.get("/model").json()["version"]
    after = models_at.add(name, "lightgbm", dataset_digest="of other candles")
    promote(models_at, name, after)
    wait_for(lambda: client.get("/model").json()["version"] == after)
    said = client.post("/signal", json={"candles": NEEDED}).json()
    assert (said["version"], said["estimator"]) == (after, "lightgbm")
    promotions.rollback(models_at.client, store, name, reason="a test", who="test", now=NOW, key=models_at.key)
    wait_for(lambda: client.get("/model").json()["version"] == before)


# --- what may be served, without a process -----------------------------------------------------------


def watching(models_at: Registry, store: Store, name: str) -> ChampionWatch:
    return ChampionWatch(models_at.client, models_at.settings, store, name, clock=lambda: NOW)


def damage(models_at: Registry, name: str, version: str) -> None:
    path = models_at.folder(name, version) / "data" / "model" / "estimator.json"
    path.write_bytes(flipped(path.read_bytes(), 10))


def test_a_champion_that_was_changed_is_not_served_but_the_one_before(models_at: Registry, store: Store) -> None:
    name = models_at.new_name()
    first, second = models_at.add(name, "logistic"), models_at.add(name, "lightgbm", dataset_digest="other")
    promote(models_at, name, first)
    watch = watching(models_at, store, name)
    assert watch.current.champion is not None and watch.current.champion.version == first
    assert not watch.refresh()
    promote(models_at, name, second)
    damage(models_at, name, second)
    assert watch.refresh()
    now = watch.current.champion
    assert now is not None and now.version == first and now.degraded is not None and "was refused" in now.degraded
    said = answer(now, asked(), NOW)
    assert said["degraded"] == now.degraded
    # and again without another alert: the alias names what it named
    assert not watch.refresh()
    damage(models_at, name, first)
    promoted = models_at.add(name, "logistic", dataset_digest="third")
    registry.set_alias(models_at.client, name, registry.CHAMPION, promoted)
    with pytest.raises(ModelRejected):
        damage(models_at, name, promoted)
        models.champion(models_at.client, models_at.settings, name)
    watch.refresh()
    assert watch.current.champion is None and "can be used" in str(watch.current.trouble)


def test_what_verifies_again_is_served_again(
    models_at: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = models_at.new_name()
    first, second = models_at.add(name, "logistic"), models_at.add(name, "lightgbm", dataset_digest="other")
    promote(models_at, name, first)
    watch = watching(models_at, store, name)
    promote(models_at, name, second)
    alerts: list[str] = []
    monkeypatch.setattr(models, "alert", lambda _, version, __: alerts.append(version))

    def served() -> tuple[str, bool] | None:
        now = watch.current.champion
        return (now.version, now.degraded is not None) if now is not None else None

    away = {version: models_at.folder(name, version).parent for version in (first, second)}
    for folder in away.values():
        folder.rename(folder.with_name(f"{folder.name}-away"))
    assert watch.refresh()
    assert served() is None
    assert alerts == [second, first]
    # looked at again, and not told again
    assert not watch.refresh()
    assert "files" in str(watch.current.trouble)
    for version, expected in ((first, (first, True)), (second, (second, False))):
        folder = away[version]
        folder.with_name(f"{folder.name}-away").rename(folder)
        assert watch.refresh()
        assert served() == expected
        assert not watch.refresh()
        assert served() == expected
    assert watch.current.trouble is None
    assert alerts == [second, first, second]


def asked() -> Asked:
    return ASKED.decode(json.dumps({"candles": NEEDED}))


def test_a_withdrawn_champion_is_not_served(models_at: Registry, store: Store) -> None:
    name = models_at.new_name()
    with pytest.raises(ModelNotFound, match="has no champion"):
        watching(models_at, store, name)
    version = models_at.add(name, "logistic")
    registry.set_alias(models_at.client, name, registry.CHAMPION, version)
    watch = watching(models_at, store, name)
    registry.set_alias(models_at.client, name, registry.CHAMPION, None)
    assert watch.refresh()
    assert watch.current.champion is None and "has no champion" in str(watch.current.trouble)
    registry.set_alias(models_at.client, name, registry.CHAMPION, version)
    assert watch.refresh()
    assert watch.current.champion is not None and watch.current.trouble is None


def test_while_the_registry_does_not_answer_the_verified_one_stays(
    models_at: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    from mlflow import MlflowClient

    name = models_at.new_name()
    promote(models_at, name, models_at.add(name, "logistic"))
    watch = watching(models_at, store, name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    silent = MlflowClient(f"http://127.0.0.1:{closed_port}", registry_uri=f"http://127.0.0.1:{closed_port}")
    monkeypatch.setattr(watch, "_client", silent)
    before = watch.current.champion
    assert not watch.refresh()
    assert watch.current.champion is before is not None
    assert "the registry does not answer" in str(watch.current.trouble)
    monkeypatch.setattr(watch, "_client", models_at.client)
    assert not watch.refresh()
    assert watch.current.trouble is None


def test_candles_of_another_symbol_and_a_bar_that_is_still_forming_are_refused(
    models_at: Registry, store: Store
) -> None:
    name = models_at.new_name()
    promote(models_at, name, models_at.add(name, "logistic"))
    champion = watching(models_at, store, name).current.champion
    assert champion is not None
    about = {**champion.model.manifest["metadata"], "symbols": ["BTCUSDT"]}
    model = replace(champion.model, manifest={**champion.model.manifest, "metadata": about})
    champion = replace(champion, model=model)
    body = asked()
    body.symbol = "ETHUSDT"
    with pytest.raises(InvalidRequest, match="was trained on BTCUSDT, and not on ETHUSDT"):
        answer(champion, body, NOW)
    body.symbol = "BTCUSDT"
    over = datetime.fromtimestamp(NEEDED[-1]["timestamp"] / 1000 + 3600, UTC)
    assert answer(champion, body, over)["symbol"] == "BTCUSDT"
    # the clock of the caller may be a little ahead
    assert answer(champion, body, over - timedelta(seconds=4))["signal"]
    with pytest.raises(CandleContractError, match="still forming"):
        answer(champion, body, over - timedelta(seconds=6))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
    | st.just([])
)


@pytest.fixture(scope="module")
def any_champion(models_at: Registry) -> models.Champion:
    name = models_at.new_name()
    return loaded(models_at, name, models_at.add(name, "logistic"))


@given(
    where=st.lists(st.tuples(st.integers(0, len(NEEDED) - 1), st.sampled_from(["timestamp", *COLUMNS]), SCALARS)),
    more=st.dictionaries(st.sampled_from(["symbol", "timeframe", "calendar"]), SCALARS),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_posted_the_error_is_one_that_is_said(
    any_champion: models.Champion, where: list[tuple[int, str, Any]], more: dict[str, Any]
) -> None:
    spoilt = [dict(one) for one in NEEDED]
    for at, name, value in where:
        spoilt[at][name] = value
    stamped = [{"open_time" if key == "timestamp" else key: value for key, value in one.items()} for one in spoilt]
    for decoder, body, work in (
        (ASKED, {"candles": spoilt, **more}, lambda body: answer(any_champion, body, NOW)),
        (INVOKED, {"dataframe_records": stamped}, lambda body: predictions(any_champion, body)),
    ):
        try:
            said = work(decoder.decode(json.dumps(body)))
        except (msgspec.DecodeError, InvalidRequest, DataError):
            continue
        assert json.loads(json.dumps(said, allow_nan=False))


def test_the_command_says_what_is_wrong(models_at: Registry) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRADEFLOWS_", "PREFECT_"))}
    home = str(models_at.settings.home)

    def said(*words: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "deployments.command", "serve-model", *words, "--home", home],
            cwd=CHECKOUT, env={**kept, "TRADEFLOWS_SIGNING_KEY": KEY, **variables}, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout
        return done.stderr

    assert "model NOBODY-1h has no champion" in said("NOBODY-1h", "--port", "0")
    assert "TRADEFLOWS_PASSWORD" in said(
        "NOBODY-1h", TRADEFLOWS_ENVIRONMENT="production", MONGODB_URL="mongodb://127.0.0.1:1/x"
    )
