"""What prefect.yaml declares, as values: deployments with their schedules, limits and triggers.

Only the keys below are known, and an unknown one is refused by name: Prefect itself takes a misspelt key for
something it need not care about.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.forms import form_of
from trading.errors import ConfigurationError

CHECKOUT: Final = Path(__file__).resolve().parents[1]
FILE: Final = CHECKOUT / "prefect.yaml"
POOL: Final = "tradeflows"
# what carries this tag is ours: sync changes and prunes it
TAG: Final = "tradeflows"
SANDBOX_SYMBOLS: Final = ("BTCSIM", "ETHSIM")


class Strict(BaseModel):
    """A value that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Schedule(Strict):
    """When a deployment runs. ``active`` None: whatever somebody set in Prefect's pages stays."""

    slug: str
    cron: str
    timezone: str = "UTC"
    active: bool | None = None
    parameters: dict[str, Any] = {}


class WorkPool(Strict):
    """Where it runs."""

    name: str
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = {}


class Limit(Strict):
    """How many of its runs may go at a time, and what becomes of one too many."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"
    grace_period_seconds: int | None = None


class Deployment(Strict):
    """One block under ``deployments``."""

    name: str
    description: str
    entrypoint: str
    work_pool: WorkPool
    tags: list[str] = []
    parameters: dict[str, Any] = {}
    schedules: list[Schedule] = []
    concurrency_limit: Limit | None = None
    # as Prefect documents them; its own classes check them
    triggers: list[dict[str, Any]] = []
    # automations that do not start this deployment, and stand beside it because they belong together
    automations: list[dict[str, Any]] = []


def read(path: Path = FILE, *, symbols: Sequence[str] | None = None) -> list[Deployment]:
    """The deployments of a prefect.yaml; with ``symbols``, those stand wherever parameters name some.

    Raises:
        ConfigurationError: an unknown key, a value that does not fit, a name twice, or a deployment without the tag.
    """
    content = yaml.safe_load(path.read_text())
    found = []
    for number, block in enumerate(content.get("deployments", [])):
        try:
            one = Deployment.model_validate(_with_symbols(block, symbols))
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors())
            name = block.get("name", f"number {number + 1}") if isinstance(block, dict) else f"number {number + 1}"
            raise ConfigurationError(f"{path.name}, deployment {name}: {told}") from None
        if TAG not in one.tags:
            raise ConfigurationError(f"{path.name}, deployment {one.name}: it lacks the tag {TAG}, by which it is ours")
        found.append(one)
    # triggers have a name space of their own, and are found by it
    names = [one.name for one in found]
    named = [str(each.get("name")) for one in found for each in (*one.triggers, *one.automations)]
    twice = sorted({name for some in (names, named) for name in some if some.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{path.name} declares {', '.join(twice)} twice")
    return found


def flow_of(entrypoint: str) -> Any:
    """The flow that ``flows/x.py:x`` or ``flows.x.x`` names, imported.

    Raises:
        ConfigurationError: there is no such module, or no flow of that name in it.
    """
    from prefect import Flow

    module, _, name = entrypoint.rpartition(":" if ":" in entrypoint else ".")
    try:
        found = getattr(importlib.import_module(module.removesuffix(".py").replace("/", ".")), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"entry point {entrypoint}: {error}") from error
    if not isinstance(found, Flow):
        raise ConfigurationError(f"entry point {entrypoint} is a {type(found).__name__}, no flow")
    return found


def full_name(one: Deployment) -> str:
    """``flow/deployment``, as Prefect's commands and pages call it."""
    return f"{flow_of(one.entrypoint).name}/{one.name}"


def as_sent(one: Deployment) -> dict[str, Any]:
    """What the server is to hold of a deployment, as JSON has it; schedules by their slug.

    Raises:
        ConfigurationError: a parameter is none of the flow's, or its value does not fit; names both.
    """
    flow = flow_of(one.entrypoint)
    _require_fitting(one, flow)
    limit = one.concurrency_limit
    options = limit.model_dump(exclude={"limit"}) if limit else None
    wanted = {
        "description": one.description,
        "entrypoint": one.entrypoint,
        "version": flow.version,
        "tags": sorted(one.tags),
        "parameters": one.parameters,
        "parameter_openapi_schema": form_of(flow),
        "enforce_parameter_schema": True,
        "work_pool_name": one.work_pool.name,
        "work_queue_name": one.work_pool.work_queue_name or "default",
        "job_variables": one.work_pool.job_variables,
        "concurrency_limit": limit.limit if limit else None,
        "concurrency_options": options,
        "pull_steps": pulled(),
        "schedules": {schedule.slug: schedule.model_dump(exclude={"slug"}) for schedule in one.schedules},
    }
    return dict(json.loads(json.dumps(wanted)))


def pulled() -> list[dict[str, Any]]:
    """How a run comes to its code: it is in this checkout."""
    return [{"prefect.deployments.steps.set_working_directory": {"directory": str(CHECKOUT)}}]


def automations(one: Deployment, deployment_id: str) -> list[dict[str, Any]]:
    """The automations that a deployment's triggers stand for, and its others, as the server takes them.

    Raises:
        ConfigurationError: Prefect does not take one of them; says why.
    """
    from prefect.events import DeploymentTriggerTypes
    from prefect.events.schemas.automations import AutomationCore
    from pydantic import TypeAdapter

    made = []
    for trigger in one.triggers:
        try:
            parsed: Any = TypeAdapter(DeploymentTriggerTypes).validate_python(trigger)
        except ValidationError as error:
            raise ConfigurationError(f"deployment {one.name}, trigger {trigger.get('name')}: {error}") from None
        if not parsed.name:
            raise ConfigurationError(f"deployment {one.name}: a trigger needs a name, by which it is found again")
        parsed.set_deployment_id(deployment_id)
        made.append({**parsed.as_automation().model_dump(mode="json"), "tags": [TAG]})
    for other in one.automations:
        try:
            core = AutomationCore.model_validate(other)
        except ValidationError as error:
            raise ConfigurationError(f"deployment {one.name}, automation {other.get('name')}: {error}") from None
        made.append({**core.model_dump(mode="json"), "tags": [TAG]})
    return made


def _require_fitting(one: Deployment, flow: Any) -> None:
    unknown = sorted(set(one.parameters) - set(flow.parameters.properties))
    if unknown:
        raise ConfigurationError(
            f"deployment {one.name}: {', '.join(unknown)} is no parameter of {one.entrypoint}, "
            f"which takes {', '.join(flow.parameters.properties)}"
        )
    from prefect.exceptions import ParameterTypeError
    from prefect.utilities.schema_tools import ValidationError as DoesNotFit
    from prefect.utilities.schema_tools import validate

    schema = flow.parameters.model_dump_for_openapi()
    try:
        # who starts it by hand or by an event may fill the rest in
        validate(one.parameters, schema, raise_on_error=True, ignore_required=True)
        for schedule in one.schedules:
            flow.validate_parameters(copy.deepcopy({**one.parameters, **schedule.parameters}))
    except (DoesNotFit, ParameterTypeError, ValueError, TypeError) as error:
        raise ConfigurationError(f"deployment {one.name}: {error}") from error


def _with_symbols(block: Any, symbols: Sequence[str] | None) -> Any:
    """The block with every non-empty ``symbols`` list of its parameters replaced."""
    if symbols is None or not isinstance(block, dict):
        return block

    def replaced(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                key: list(symbols) if key == "symbols" and isinstance(inner, list) and inner else replaced(inner)
                for key, inner in value.items()
            }
        return [replaced(inner) for inner in value] if isinstance(value, list) else value

    return {**block, "parameters": replaced(block.get("parameters", {}))}
