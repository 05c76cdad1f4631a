"""Starting flows over REST: errors that say what to do, no work twice, and a signal at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from deployments import client, prefect_api
from deployments.client import rerun, signals, tables, trigger, wait
from deployments.prefect_api import Api, Unreachable, connected
from deployments.run_command import parsed
from tests.deployments.conftest import CHECKOUT, LOGIN, Deployed
from trading.errors import ConfigurationError, InvalidRequest, RunFailed, RunUnfinished

RUN = "11111111-1111-4111-8111-111111111111"
SCHEMA = {"properties": {"symbols": {"description": "Which."}, "days": {"description": "From 1 to 9."}}}
DEPLOYMENT = {"id": "d", "parameter_openapi_schema": SCHEMA, "parameters": {}}
Answer = httpx.Response | Exception


def run(state: str = "SCHEDULED", name: str | None = None, message: str = "", **more: Any) -> dict[str, Any]:
    said = {"type": state, "name": name or state.capitalize(), "message": message}
    return {"id": RUN, "name": "odd-name", "state": said, "parameters": {"symbols": ["A"]}, **more}


def answered(*answers: Answer) -> tuple[Api, list[tuple[str, str, Any]]]:
    """An API whose server gives these answers in turn, and what it was asked."""
    left, asked = list(answers), []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path, json.loads(request.content) if request.content else None))
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Api(httpx.Client(transport=httpx.MockTransport(handle), base_url="http://server/api")), asked


def said(body: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits."""
    monkeypatch.setattr(prefect_api.time, "sleep", lambda _: None)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "trouble", [said({}, 503), said({}, 429), httpx.ReadTimeout("late"), httpx.RemoteProtocolError("cut")]
)
def test_a_request_that_may_have_been_lost_is_repeated_with_its_key(trouble: Answer) -> None:
    api, asked = answered(said(DEPLOYMENT), trouble, said(run(), 201))
    assert trigger(api, "ingest", {"symbols": ["A"]}).id == RUN
    (_, _, first), (_, _, second) = asked[1:]
    assert first == second
    assert len(first["idempotency_key"]) == 36


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    api, asked = answered(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable, match="cannot be reached"):
        trigger(api, "ingest")
    assert len(asked) == 1
    api, asked = answered(said(DEPLOYMENT), httpx.ReadTimeout("late"))
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        trigger(api, "ingest")
    assert len(asked) == 4


@pytest.mark.usefixtures("at_once")
def test_a_server_that_stays_busy_is_no_fault_of_the_request() -> None:
    api, _ = answered(said(DEPLOYMENT), said({"detail": "busy"}, 503))
    with pytest.raises(ConfigurationError, match="503"):
        trigger(api, "ingest")


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ("Error creating flow run: Validation failed for field 'days'. Failure reason: 0 is less than the minimum of 1",
         "^ingest/ingest: Validation failed for field 'days'.*minimum of 1; days: From 1 to 9.$"),
        ("Validation failed. Failure reason: Additional properties are not allowed ('symbol' was unexpected)",
         "'symbol' was unexpected.*; did you mean symbols[?] it takes symbols, days$"),
        ("Validation failed. Failure reason: Additional properties are not allowed ('x', 'y' were unexpected)",
         r"were unexpected\); it takes symbols, days$"),
        ("Validation failed. Failure reason: 'symbols' is a required property", "required property$"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_would_do(detail: str, told: str) -> None:
    api, _ = answered(said(DEPLOYMENT), said({"detail": detail}, 409))
    with pytest.raises(InvalidRequest, match=told):
        trigger(api, "ingest", {"symbols": ["A"]})


def test_a_key_that_meant_other_work_is_refused() -> None:
    api, _ = answered(said(DEPLOYMENT), said(run()))
    assert trigger(api, "ingest", {"symbols": ["A"]}, idempotency_key="k").id == RUN
    api, _ = answered(said(DEPLOYMENT), said(run()))
    with pytest.raises(InvalidRequest, match=f"key k was used before, for run {RUN} with other values of symbols"):
        trigger(api, "ingest", {"symbols": ["B"]}, idempotency_key="k")


@pytest.mark.parametrize(
    ("defaults", "found", "asked", "told"),
    [
        # the run has more than was asked for: the request before named them
        ({}, {"symbols": ["A"], "days": 9}, {"symbols": ["A"]}, "other values of days "),
        ({"days": 3}, {"symbols": ["A"], "days": 9}, {"symbols": ["A"]}, "other values of days "),
        ({"days": 3}, {"symbols": ["A"], "days": 9}, {}, "other values of days, symbols .*the deployment's own count"),
        ({"days": 3}, {"symbols": ["A"], "days": 3}, {"symbols": ["A"]}, None),
        ({"days": 3}, {"symbols": ["A"], "days": 9}, {"symbols": ["A"], "days": 9}, None),
        # a variable of the server, which it has put in place
        ({"days": {"__prefect_kind": "workspace_variable", "variable_name": "d"}}, {"days": 9}, {}, None),
    ],
)
def test_a_key_is_of_all_parameters_those_left_out_among_them(
    defaults: dict[str, Any], found: dict[str, Any], asked: dict[str, Any], told: str | None
) -> None:
    for key in ("k", None):
        api, _ = answered(said({**DEPLOYMENT, "parameters": defaults}), said({**run(), "parameters": found}))
        if told is None or key is None:
            assert trigger(api, "ingest", asked, idempotency_key=key).parameters == found
        else:
            with pytest.raises(InvalidRequest, match=told):
                trigger(api, "ingest", asked, idempotency_key=key)


def test_a_password_that_is_wrong_is_said() -> None:
    api, _ = answered(said({"exception_message": "Unauthorized"}, 401))
    with pytest.raises(ConfigurationError, match="password"):
        trigger(api, "ingest")


@pytest.mark.parametrize(
    ("state", "name", "message", "told"),
    [
        ("FAILED", "Failed", "no candles", r"run .* \(odd-name\) is Failed: no candles"),
        ("CRASHED", "Crashed", "", "is Crashed: no reason"),
        ("CANCELLED", "Cancelled", "Deployment concurrency limit reached.", "is Cancelled: Deployment concurrency"),
    ],
)
def test_a_run_that_did_not_complete_is_an_error(state: str, name: str, message: str, told: str) -> None:
    api, _ = answered(said(run("RUNNING")), said(run(state, name, message)))
    with pytest.raises(RunFailed, match=told) as failed:
        wait(api, RUN, pause=0)
    assert failed.value.state == state


def test_waiting_goes_on_while_the_server_is_away_and_ends_with_the_time() -> None:
    away = httpx.ConnectError("it starts anew")
    api, _ = answered(said(run("RUNNING")), away, away, said(run("COMPLETED", "Degraded", "no model")))
    found = wait(api, RUN, pause=0)
    assert (found.named, found.message, found.ended) == ("Degraded", "no model", True)
    api, _ = answered(said(run("SCHEDULED", "Late")))
    with pytest.raises(RunUnfinished, match="is Late after 0 s and goes on; no worker has taken it"):
        wait(api, RUN, timeout=0, pause=0)
    api, _ = answered(away)
    with pytest.raises(Unreachable):
        wait(api, RUN, timeout=0, pause=0)


def test_only_what_has_ended_runs_again() -> None:
    api, asked = answered(said(run("RUNNING")))
    with pytest.raises(InvalidRequest, match="can be run again once it has ended"):
        rerun(api, RUN)
    assert len(asked) == 1
    api, asked = answered(said(run("FAILED")), said({}, 201), said(run("SCHEDULED", "AwaitingRetry")))
    assert rerun(api, RUN).named == "AwaitingRetry"
    assert asked[1][1].endswith("/set_state") and asked[1][2]["force"] is True


def test_of_a_run_that_ran_twice_the_newest_tables_count() -> None:
    rows = [{"key": "signals-1h", "data": '[{"signal": "Long"}]'}, {"key": "signals-1h", "data": '[{"signal": "x"}]'}]
    api, asked = answered(said([*rows, {"key": "candles-1h", "data": "[]"}]))
    assert tables(api, RUN) == {"signals-1h": [{"signal": "Long"}], "candles-1h": []}
    assert asked[0][2]["sort"] == "CREATED_DESC"
    assert signals(api, RUN) == [{"signal": "Long"}]


def test_parameters_of_the_command_line_are_json_or_else_text() -> None:
    found = parsed(
        ['symbols=["A", "B"]', "days=30", "timeframe=1h", "refresh=null", "end=2026-01-01T00:00:00Z", "x=a=b"]
    )
    assert found == {
        "symbols": ["A", "B"],
        "days": 30,
        "timeframe": "1h",
        "refresh": None,
        "end": "2026-01-01T00:00:00Z",
        "x": "a=b",
    }
    for wrong in (["days"], ["=3"], ["days=1", "days=2"]):
        with pytest.raises(InvalidRequest, match="--set"):
            parsed(wrong)


# --- a real server ------------------------------------------------------------------------------


@pytest.fixture
def api(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", LOGIN)
    with connected(deployed.api, timeout=60) as found:
        yield found


@pytest.mark.integration
def test_the_real_server_asks_for_the_password(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    for told in (None, "tradeflows:wrong-horse-42"):
        monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
        monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
        if told:
            monkeypatch.setenv("PREFECT_API_AUTH_STRING", told)
        with connected(deployed.api) as stranger, pytest.raises(ConfigurationError, match="password"):
            trigger(stranger, "costs")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("flow", "parameters", "told"),
    [
        ("analyse", {"symbols": ["A"], "day": 3}, "'day' was unexpected.*did you mean days"),
        ("analyse", {"symbols": ["A"], "days": 0}, "'days'.*minimum of 1; days: How many days.*From 1 to 20,000"),
        ("backtest", {"symbols": ["A"], "sizing": {"risk": 1}}, "'sizing.risk'.*maximum of 1"),
        ("cycle", {"groups": [{"symbols": ["A"], "folds": 3}]}, "'folds' was unexpected"),
        ("train", {"symbols": ["A"], "parameters": {"xgboost": {}}}, "'xgboost' is not one of"),
        ("costs", {"day": "today"}, "'day'.*does not match"),
        ("analise", {}, "there is no deployment analise/analise; there are analyse/analyse"),
    ],
)
def test_the_real_server_refuses_and_makes_no_run(api: Api, flow: str, parameters: dict[str, Any], told: str) -> None:
    before = api.ask("POST", "/flow_runs/count", {})
    with pytest.raises(InvalidRequest, match=told):
        trigger(api, flow, parameters)
    assert api.ask("POST", "/flow_runs/count", {}) == before


@pytest.mark.integration
def test_the_real_server_knows_a_key_and_a_run(api: Api) -> None:
    first = trigger(api, "costs", {"day": "2026-11-20"}, idempotency_key="costs-20")
    assert trigger(api, "costs", {"day": "2026-11-20"}, idempotency_key="costs-20").id == first.id
    assert trigger(api, "costs", {"day": "2026-11-20"}).id != first.id
    with pytest.raises(InvalidRequest, match="used before"):
        trigger(api, "costs", {"day": "2026-11-21"}, idempotency_key="costs-20")
    with pytest.raises(InvalidRequest, match=r"used before, .* other values of day "):
        trigger(api, "costs", idempotency_key="costs-20")
    with pytest.raises(InvalidRequest, match="can be run again once it has ended"):
        rerun(api, first.id)
    for nobody in ("7", RUN):
        with pytest.raises(InvalidRequest, match=f"there is no run '{nobody}'"):
            client.read(api, nobody)
    with pytest.raises(RunUnfinished, match="no worker has taken it"):
        wait(api, first.id, timeout=0)


@pytest.fixture
def working(deployed: Deployed) -> Iterator[Callable[[str], None]]:
    """Runs a run in the background, as a worker would."""
    started: list[subprocess.Popen[bytes]] = []
    yield lambda run_id: started.append(deployed.execute(run_id))
    for process in started:
        process.wait(60)


PARAMETERS = {"symbols": ["BTCSIM", "ETHSIM"], "days": 30, "end": "2019-01-01T00:00:00Z"}


@pytest.mark.integration
def test_a_symbol_in_and_a_signal_out_and_once_more(
    api: Api, deployed: Deployed, working: Callable[[str], None]
) -> None:
    begun = trigger(api, "signals", PARAMETERS, idempotency_key="bar")
    working(begun.id)
    done = wait(api, begun.id, timeout=180)
    assert "no champion" in done.message  # the rules alone
    found = signals(api, begun.id)
    assert [row["symbol"] for row in found] == ["BTCSIM", "ETHSIM"]
    for row in found:
        assert row["signal"] in ("Long", "Short", "Neutral") and 0 <= row["confidence"] <= 1
        assert (row["timestamp"], row["data_mode"]) == ("2019-01-01T00:00:00+00:00", "simulated")
    assert trigger(api, "signals", PARAMETERS, idempotency_key="bar").state == "COMPLETED"
    assert rerun(api, begun.id).named == "AwaitingRetry"
    command = ["run", "signals", *(f"--set={name}={json.dumps(value)}" for name, value in PARAMETERS.items())]
    # asked for again on the command line it is the same run, which is waited for while it runs again
    threading.Timer(0, working, [begun.id]).start()
    told = subprocess.run(
        [sys.executable, "-m", "deployments.command", *command, "--key", "bar", "--wait", "--timeout", "180"],
        cwd=CHECKOUT, env={**os.environ, **deployed.environment}, capture_output=True, text=True, check=False,
        timeout=200,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert begun.id in told.stdout and f"{done.named}: " in told.stdout and "BTCSIM" in told.stdout
    assert api.ask("GET", f"/flow_runs/{begun.id}")["run_count"] == 2
    assert signals(api, begun.id) == found


@pytest.mark.integration
def test_a_run_that_fails_is_an_error_that_says_why(api: Api, working: Callable[[str], None]) -> None:
    begun = trigger(api, "signals", {**PARAMETERS, "symbols": ["NOBODY"]})
    working(begun.id)
    with pytest.raises(RunFailed, match="NOBODY"):
        wait(api, begun.id, timeout=180)
    assert signals(api, begun.id) == []
