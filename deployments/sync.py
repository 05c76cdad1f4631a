"""``tradeflows deploy``: the Prefect server holds what prefect.yaml declares, no less and no more.

What is there is read, compared, and only what differs is written: a second run changes nothing. What carries our
tag and is declared no longer goes. Somebody's pause in Prefect's pages stays, unless prefect.yaml says ``active``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from deployments import declared
from deployments.declared import POOL, TAG, Deployment
from deployments.prefect_api import Api
from tasks.limits import BLOCK, PREFIX, limit_name, weights_per_minute
from tasks.settings import Settings

MANAGED: Final = (
    "description", "entrypoint", "version", "tags", "parameters", "parameter_openapi_schema",
    "enforce_parameter_schema", "work_pool_name", "work_queue_name", "job_variables", "concurrency_options",
    "pull_steps",
)  # fmt: skip
NOBODY: Final = "00000000-0000-0000-0000-000000000000"
AUTOMATION: Final = ("description", "tags", "trigger", "actions", "actions_on_trigger", "actions_on_resolve")
SIGNS: Final = {"create": "+", "update": "~", "delete": "-"}


@dataclass(frozen=True)
class Change:
    """One thing to do on the server.

    Attributes:
        details: what differs, a line each; empty for what is made or goes as a whole.
        apply: does it.
    """

    action: Literal["create", "update", "delete"]
    kind: str
    name: str
    details: tuple[str, ...] = ()
    apply: Callable[[], Any] = field(default=lambda: None, compare=False, repr=False)

    def __str__(self) -> str:
        lines = [f"{SIGNS[self.action]} {self.kind} {self.name}", *(f"    {line}" for line in self.details)]
        return "\n".join(lines)


def sync(api: Api, settings: Settings, wanted: Sequence[Deployment], *, dry_run: bool = False) -> list[Change]:
    """Make the server hold ``wanted``; the changes, which ``dry_run`` only finds.

    Raises:
        ConfigurationError: a declaration makes no sense, or the server refuses one; what came before it is done.
    """
    found: list[Change] = []
    # each step is compared when those before it are done: an automation names the deployment that it starts
    for step in (
        partial(_pools, api, wanted),
        partial(_limits, api, settings),
        partial(_deployments, api, wanted),
        partial(_automations, api, wanted),
    ):
        for change in step():
            found.append(change)
            if not dry_run:
                change.apply()
    return found


def _pools(api: Api, wanted: Sequence[Deployment]) -> Iterator[Change]:
    """Pools that are missing; one that is there may be of another kind, for containers, and is left alone."""
    for name in sorted({POOL, *(one.work_pool.name for one in wanted)}):
        there = api.ask("GET", f"/work_pools/{name}")
        template = _job_template()
        if there is None:
            body = {"name": name, "type": "process", "base_job_template": template}
            yield Change("create", "work pool", name, apply=partial(api.ask, "POST", "/work_pools/", body))
        elif there["type"] == "process" and there["base_job_template"] != template:
            details = tuple(differences(there["base_job_template"], template))
            change = partial(api.ask, "PATCH", f"/work_pools/{name}", {"base_job_template": template})
            yield Change("update", "work pool", name, details, change)


def _job_template() -> dict[str, Any]:
    """Prefect's template for processes, with the command told.

    Without one a worker first starts a process that finds out which command to start.
    """
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    properties["command"]["default"] = f"{sys.executable} -m prefect.engine"
    properties["working_dir"]["default"] = str(declared.CHECKOUT)
    return template


def limits(settings: Settings) -> dict[str, tuple[int, float]]:
    """The rate limits that workers share, by name: slots, and how many of them come free in a second."""
    made = {
        limit_name(kind): (max(weight // 2, BLOCK), weight / 2 / 60)
        for kind, weight in weights_per_minute(settings).items()
    }
    calls = settings.llm_requests_per_minute * max(len(settings.llm_keys), 1)
    return made | {limit_name("llm"): (calls, calls / 60)}


def _limits(api: Api, settings: Settings) -> Iterator[Change]:
    there = {one["name"]: one for one in api.all("/v2/concurrency_limits/filter")}
    for name, (slots, decay) in limits(settings).items():
        wanted = {"limit": slots, "slot_decay_per_second": decay, "active": True}
        one = there.get(name)
        if one is None:
            body = {"name": name, **wanted}
            yield Change("create", "limit", name, apply=partial(api.ask, "POST", "/v2/concurrency_limits/", body))
            continue
        details = tuple(differences({key: one[key] for key in wanted}, wanted))
        if details:
            change = partial(api.ask, "PATCH", f"/v2/concurrency_limits/{one['id']}", wanted)
            yield Change("update", "limit", name, details, change)
    for name in sorted(name for name in there.keys() - limits(settings).keys() if name.startswith(PREFIX)):
        change = partial(api.ask, "DELETE", f"/v2/concurrency_limits/{there[name]['id']}")
        yield Change("delete", "limit", name, apply=change)


def _deployments(api: Api, wanted: Sequence[Deployment]) -> Iterator[Change]:
    there = _ours(api)
    for one in wanted:
        name, new, old = declared.full_name(one), declared.as_sent(one), there.get(declared.full_name(one))
        _keep_pauses(new["schedules"], old["schedules"] if old else {})
        details = tuple(differences({key: old.get(key) for key in new}, new)) if old else ()
        if old is None or details:
            change = partial(_put_deployment, api, one, new)
            yield Change("update" if old else "create", "deployment", name, details, change)
    for name in sorted(there.keys() - {declared.full_name(one) for one in wanted}):
        change = partial(_delete_deployment, api, there[name]["id"])
        yield Change("delete", "deployment", name, apply=change)


def _ours(api: Api) -> dict[str, dict[str, Any]]:
    """The server's deployments with our tag, in the form of ``declared.as_sent``, and their ids."""
    flows = {one["id"]: one["name"] for one in api.all("/flows/filter")}
    found = {}
    for one in api.all("/deployments/filter", deployments={"tags": {"all_": [TAG]}}):
        limit = one.get("global_concurrency_limit")
        found[f"{flows[one['flow_id']]}/{one['name']}"] = {
            **{key: one.get(key) for key in MANAGED},
            "id": one["id"],
            "tags": sorted(one["tags"]),
            "concurrency_limit": limit["limit"] if limit else None,
            "schedules": {
                # one that was made by hand has no slug, and is not ours to keep
                schedule["slug"] or f"without slug {schedule['id']}": {
                    "cron": schedule["schedule"].get("cron"),
                    "timezone": schedule["schedule"].get("timezone"),
                    "active": schedule["active"],
                    "parameters": schedule.get("parameters") or {},
                }
                for schedule in one["schedules"]
            },
        }
    return found


def _keep_pauses(new: dict[str, Any], old: Mapping[str, Any]) -> None:
    for slug, schedule in new.items():
        if schedule["active"] is None:
            schedule["active"] = old[slug]["active"] if slug in old else True


def _put_deployment(api: Api, one: Deployment, wanted: Mapping[str, Any]) -> None:
    flow = api.ask("POST", "/flows/", {"name": declared.flow_of(one.entrypoint).name})
    schedules = [
        {
            "slug": slug,
            "active": schedule["active"],
            "parameters": schedule["parameters"],
            "schedule": {"cron": schedule["cron"], "timezone": schedule["timezone"]},
        }
        for slug, schedule in wanted["schedules"].items()
    ]
    body = {**wanted, "name": one.name, "flow_id": flow["id"], "schedules": schedules}
    # an existing one takes these values, and exactly these schedules
    api.ask("POST", "/deployments/", body)


def _delete_deployment(api: Api, identifier: str) -> None:
    api.ask("DELETE", f"/automations/owned-by/prefect.deployment.{identifier}")
    api.ask("DELETE", f"/deployments/{identifier}")


def _automations(api: Api, wanted: Sequence[Deployment]) -> Iterator[Change]:
    """The automations of deployments' triggers, by name: the server does not tell whose they are."""
    ids = {name: one["id"] for name, one in _ours(api).items()}
    there = {one["name"]: one for one in api.all("/automations/filter")}
    kept = set()
    for one in wanted:
        # in a dry run it may not be there yet; an id that nobody has stands for it
        for automation in declared.automations(one, ids.get(declared.full_name(one), NOBODY)):
            name = automation["name"]
            kept.add(name)
            old = there.get(name)
            if old is None:
                yield Change("create", "automation", name, apply=partial(api.ask, "POST", "/automations/", automation))
                continue
            details = tuple(differences(_told(old), _told(automation)))
            if details:
                body = {key: value for key, value in automation.items() if key != "owner_resource"}
                # switched off in Prefect's pages: that stays
                body["enabled"] = old["enabled"]
                yield Change(
                    "update", "automation", name, details, partial(api.ask, "PUT", f"/automations/{old['id']}", body)
                )
    for name in sorted(name for name, one in there.items() if TAG in one["tags"] and name not in kept):
        change = partial(api.ask, "DELETE", f"/automations/{there[name]['id']}")
        yield Change("delete", "automation", name, apply=change)


def _told(automation: Mapping[str, Any]) -> Any:
    """What of an automation is declared: without the ids that the server gives and the order of sets."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if key != "id"}
        if isinstance(value, list):
            inner = [plain(one) for one in value]
            return sorted(inner) if all(isinstance(one, str) for one in inner) else inner
        return value

    return plain({key: automation.get(key) for key in AUTOMATION})


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """A line for each value that differs: ``parameters.days: 730 -> 365``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            where = f"{path}.{key}" if path else str(key)
            if key not in new:
                yield f"{where}: {_short(old[key])} goes"
            elif key not in old:
                yield f"{where}: {_short(new[key])} comes"
            else:
                yield from differences(old[key], new[key], where)
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
