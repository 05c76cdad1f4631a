"""Start a deployed flow over Prefect's REST API, wait for its end, read what it told.

    with connected("http://127.0.0.1:4200/api") as api:
        run = trigger(api, "analyse", {"symbols": ["BTCUSDT"]}, idempotency_key="btc-2026-11-21T10:00")
        wait(api, run.id, timeout=120)
        print(signals(api, run.id))

User and password come from PREFECT_API_AUTH_STRING. Everything may be repeated: a request that the server was too busy
for is, with the same key, and gives the same run.
"""

from __future__ import annotations

import difflib
import json
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import tenacity

from deployments.prefect_api import Api, Refused, Unreachable, connected
from trading.errors import InvalidRequest, RunFailed, RunUnfinished

__all__ = ["Run", "connected", "read", "rerun", "signals", "tables", "trigger", "wait"]

COMPLETED: Final = "COMPLETED"
ENDED: Final = frozenset({COMPLETED, "FAILED", "CRASHED", "CANCELLED"})
SIGNALS: Final = "signals-"
ATTEMPTS: Final = 3
# of the request itself, so that asking again gives the same
MEANT: Final = frozenset({400, 409, 422})
# in values such as a variable of the server, which a run has in place of them
WORKED_OUT: Final = '"__prefect_kind"'
_FIELD: Final = re.compile(r"for field '(\w+)")
_UNKNOWN: Final = re.compile(r"'([^']*)'(?:, '[^']*')* (?:was|were) unexpected")


@dataclass(frozen=True)
class Run:
    """A flow run.

    Attributes:
        state: SCHEDULED, PENDING, RUNNING, COMPLETED, FAILED, CRASHED, CANCELLED and a few more.
        named: the same as people are told it, such as Late, Degraded or Partly.
        message: why it is in this state, where there is something to say.
        parameters: all of them, those of the deployment among them.
    """

    id: str
    name: str
    state: str
    named: str
    message: str
    parameters: Mapping[str, Any]

    @property
    def ended(self) -> bool:
        """Whether it is over, well or not."""
        return self.state in ENDED


def trigger(
    api: Api, flow: str, parameters: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
) -> Run:
    """Ask for a run of a deployed flow; it starts once a worker takes it.

    Args:
        flow: ``analyse``, or ``analyse/name`` where the deployment has another name than its flow.
        parameters: JSON values; those left out are as the deployment says.
        idempotency_key: asked for again with it, it is the same run, also one that has failed. None: a new run.

    Raises:
        InvalidRequest: no such deployment, a parameter that it does not take or that does not fit, or a key that was
            used for another request: one with other values, or others left out, or before the deployment's own
            values were changed. Says which, and what would do.
        ConfigurationError: as ``Api.ask``.
    """
    asked = dict(parameters or {})
    name = flow if "/" in flow else f"{flow}/{flow}"
    deployment = api.ask("GET", f"/deployments/name/{name}")
    if deployment is None:
        raise InvalidRequest(f"there is no deployment {name}; there are {', '.join(_names(api)) or 'none'}")
    # a key in any case, so that a request whose answer got lost is not made twice
    body = {"parameters": asked, "idempotency_key": idempotency_key or str(uuid.uuid4())}
    try:
        answer = _made(api, f"/deployments/{deployment['id']}/create_flow_run", body)
    except Refused as error:
        if error.status not in MEANT:
            raise
        raise InvalidRequest(f"{name}: {_explained(error.detail, deployment['parameter_openapi_schema'])}") from None
    found = _run(answer)
    other = _differing(found.parameters, {**deployment["parameters"], **asked}) if idempotency_key is not None else []
    if other:
        raise InvalidRequest(
            f"the idempotency key {idempotency_key} was used before, for run {found.id} with other values of "
            f"{', '.join(other)} (of those not asked for, the deployment's own count); take another key"
        )
    return found


def read(api: Api, run_id: str) -> Run:
    """How a run stands.

    Raises:
        InvalidRequest: there is none of that id.
    """
    answer = api.ask("GET", f"/flow_runs/{run_id}")
    if answer is None:
        raise InvalidRequest(f"there is no run {run_id!r}; runs are forgotten some time after their end")
    return _run(answer)


def wait(api: Api, run_id: str, *, timeout: float = 600.0, pause: float = 0.5) -> Run:
    """The run once it has completed; look at ``named`` for whether it is Degraded or Partly.

    Args:
        timeout: seconds to wait at most.
        pause: seconds between two questions.

    Raises:
        RunFailed: it failed, crashed or was cancelled; says why.
        RunUnfinished: the time is up; the run goes on.
        InvalidRequest: there is no such run.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline
        try:
            found = read(api, run_id)
        except Unreachable:
            # a server that starts anew, or has too much to do, does not end the run
            if late:
                raise
        else:
            if found.ended:
                break
            if late:
                hint = "; no worker has taken it: is one running?" if found.state == "SCHEDULED" else ""
                raise RunUnfinished(f"run {run_id} is {found.named} after {timeout:g} s and goes on{hint}")
        time.sleep(pause)
    if found.state != COMPLETED:
        raise RunFailed(f"run {run_id} ({found.name}) is {found.named}: {found.message or 'no reason'}", found.state)
    return found


def tables(api: Api, run_id: str) -> dict[str, list[dict[str, Any]]]:
    """The tables that a run published, by key: rows of JSON values."""
    wanted = {"flow_run_id": {"any_": [run_id]}, "type": {"any_": ["table"]}}
    found: dict[str, list[dict[str, Any]]] = {}
    # the newest first: a run that was run again has published before
    for one in api.all("/artifacts/filter", artifacts=wanted, sort="CREATED_DESC"):
        found.setdefault(one["key"], json.loads(one["data"]))
    return found


def signals(api: Api, run_id: str) -> list[dict[str, Any]]:
    """What an ``analyse`` run said: a row for each symbol that was analysed.

    Each has symbol, timestamp (close of the bar, ISO 8601), signal (Long, Short or Neutral), confidence (0 to 1),
    price, basis (who spoke), model_version, degraded (why the model is not the champion) and data_mode.
    """
    return [row for key, rows in tables(api, run_id).items() if key.startswith(SIGNALS) for row in rows]


def rerun(api: Api, run_id: str) -> Run:
    """Let a run that has ended run once more: the same id, parameters and window.

    Raises:
        InvalidRequest: there is no such run, or it has not ended.
    """
    found = read(api, run_id)
    if not found.ended:
        raise InvalidRequest(
            f"run {run_id} is {found.named}; it can be run again once it has ended, or cancelled first"
        )
    state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "run again on request"}
    api.ask("POST", f"/flow_runs/{run_id}/set_state", {"state": state, "force": True})
    return read(api, run_id)


def _differing(found: Mapping[str, Any], meant: Mapping[str, Any]) -> list[str]:
    """The parameters in which a run is not what was meant; those that the server works out itself are left out."""
    return sorted(
        name
        for name in found.keys() | meant.keys()
        if found.get(name) != meant.get(name) and WORKED_OUT not in json.dumps(meant.get(name))
    )


def _made(api: Api, path: str, body: Mapping[str, Any]) -> Any:
    """The answer to a request that carries a key: where it got lost, it is asked for again, and is the same run."""
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, Unreachable) and error.lost),
        reraise=True,
    )
    return retrying(api.ask, "POST", path, body)


def _run(answer: Mapping[str, Any]) -> Run:
    state = answer.get("state") or {}
    return Run(
        id=str(answer["id"]),
        name=str(answer["name"]),
        state=str(state.get("type") or ""),
        named=str(state.get("name") or ""),
        message=str(state.get("message") or ""),
        parameters=answer["parameters"],
    )


def _names(api: Api) -> list[str]:
    flows = {one["id"]: one["name"] for one in api.all("/flows/filter")}
    return sorted(f"{flows[one['flow_id']]}/{one['name']}" for one in api.all("/deployments/filter"))


def _explained(detail: str, schema: Mapping[str, Any]) -> str:
    """Why the server refused parameters, with what the form says of the one that it names."""
    told = detail.removeprefix("Error creating flow run: ")
    fields = schema.get("properties", {})
    named, unknown = _FIELD.search(told), _UNKNOWN.search(told)
    if named is None and unknown is not None:
        near = difflib.get_close_matches(unknown[1], fields, n=1)
        return f"{told}; {f'did you mean {near[0]}? ' if near else ''}it takes {', '.join(fields) or 'no parameters'}"
    if named is not None and named[1] in fields:
        return f"{told}; {named[1]}: {fields[named[1]].get('description', '')}"
    return told
