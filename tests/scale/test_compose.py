"""deployments/compose.yaml and the Kubernetes values, as far as they can be tried without containers: every image is
pinned, every port is on loopback, every variable means something, every command exists, no password stands in them."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import AliasChoices
from pydantic_settings import BaseSettings

from deployments.scale_parts import ON_REDIS
from tasks.settings import Settings, known_variables

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDER = CHECKOUT / "deployments"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("tradeflows:")}
VALUES: dict[str, Any] = dict(
    zip(("server", "worker"), yaml.safe_load_all((FOLDER / "kubernetes-values.example.yaml").read_text()), strict=True)
)
ENDS = {"tables", "deploy"}
# of libpq, Redis's client, images that are not ours, and a convention
FOREIGN = {
    "DO_NOT_TRACK", "PGUSER", "PGPASSWORD", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "REDISCLI_AUTH",
    "MONGO_INITDB_ROOT_USERNAME", "MONGO_INITDB_ROOT_PASSWORD",
}  # fmt: skip


def prefect_variables(model: type[BaseSettings]) -> Iterator[str]:
    """The environment variables of a settings class and those inside it."""
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseSettings)]
        for kind in inner:
            yield from prefect_variables(kind)
        if not inner:
            alias = field.validation_alias
            choices = alias.choices if isinstance(alias, AliasChoices) else [model.model_config["env_prefix"] + name]
            yield from (choice.upper() for choice in choices if isinstance(choice, str))


def variables_of(services: dict[str, dict[str, Any]]) -> set[str]:
    return {name for service in services.values() for name in service.get("environment", {})}


def values_variables() -> set[str]:
    told = [*VALUES["server"]["global"]["prefect"]["env"], *VALUES["worker"]["worker"]["extraEnvVars"]]
    return {one["name"] for one in told}


@pytest.fixture(scope="module")
def known() -> set[str]:
    from mlflow import environment_variables
    from prefect.settings import Settings as PrefectSettings
    from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings
    from prefect_redis.client import RedisMessagingSettings

    prefect = (PrefectSettings, RedisMessagingSettings, RedisWorkerCleanupQueueSettings)
    of_prefect = {name for model in prefect for name in prefect_variables(model)}
    assert {"PREFECT_API_URL", "PREFECT_REDIS_MESSAGING_HOST"} <= of_prefect
    of_mlflow = {one.name for one in vars(environment_variables).values() if hasattr(one, "name")}
    aliases = {
        str(choice)
        for field in Settings.model_fields.values()
        if isinstance(field.validation_alias, AliasChoices)
        for choice in field.validation_alias.choices
    }
    return of_prefect | of_mlflow | set(known_variables()) | aliases | FOREIGN


@pytest.mark.integration
def test_every_variable_means_something(known: set[str]) -> None:
    assert variables_of(SERVICES) - known == set()
    assert values_variables() - known == set()


def test_what_several_servers_share_is_in_redis() -> None:
    """As on the stack that the tests start without containers."""
    server = SERVICES["prefect"]["environment"]
    told = {one["name"]: one["value"] for one in VALUES["server"]["global"]["prefect"]["env"] if "value" in one}
    assert ON_REDIS.items() <= server.items()
    # the chart sets these itself
    chart = {"PREFECT_MESSAGING_BROKER", "PREFECT_MESSAGING_CACHE", "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING"}
    assert {name: value for name, value in ON_REDIS.items() if name not in chart}.items() <= told.items()
    assert SERVICES["services"]["environment"] == server
    assert SERVICES["prefect"]["deploy"]["replicas"] >= 2
    assert "--no-services" in SERVICES["prefect"]["command"]


def test_images_are_pinned_and_pages_are_on_loopback() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].partition(":")[2]
        assert tag and "latest" not in tag, name
        assert service["restart"] == ("no" if name in ENDS else "unless-stopped"), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"prefect", "mlflow"}


def test_no_password_has_a_default_or_stands_in_the_file() -> None:
    told = [*re.findall(r"\$\{(\w+)([^}]*)\}", TEXT)]
    assert {rest for name, rest in told if "PASSWORD" in name or "KEY" in name} == {":?"}
    assert {name for name, rest in told if rest == ":?"} == {
        "MLFLOW_FLASK_SERVER_SECRET_KEY", "MONGODB_PASSWORD", "POSTGRES_PASSWORD", "REDIS_PASSWORD",
        "TRADEFLOWS_PASSWORD", "TRADEFLOWS_SIGNING_KEY",
    }  # fmt: skip
    for name, value in [item for service in SERVICES.values() for item in service.get("environment", {}).items()]:
        if re.search(r"PASSWORD|SECRET|AUTH_STRING|_KEY$|AUTH$|DOCKET_URL|MONGODB_URL", name):
            assert "${" in value, name
    for name, service in OURS.items():
        # who only serves gets neither the signing key nor the way to the store
        works = name in ("deploy", "worker", "dask-worker")
        assert ("TRADEFLOWS_SIGNING_KEY" in service.get("environment", {})) == works


def test_files_with_passwords_are_in_no_commit_and_no_image() -> None:
    # in both files the last line that fits a name decides
    assert (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()[-1] == "**/*.env"
    for name in (".env", "work.env"):
        subprocess.run(["git", "check-ignore", f"deployments/{name}"], cwd=CHECKOUT, capture_output=True, check=True)


def test_what_else_the_work_needs_is_in_a_file_of_its_own() -> None:
    for name, service in SERVICES.items():
        works = name in ("deploy", "worker", "dask-worker")
        assert service.get("env_file") == ([{"path": "work.env", "required": False}] if works else None), name


def test_who_waits_for_whom_can_be_waited_for() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            assert condition != "service_healthy" or "healthcheck" in SERVICES[other], (name, other)
            assert (condition == "service_completed_successfully") == (other in ENDS), (name, other)
        for one in service.get("configs", []):
            assert one["source"] in COMPOSE["configs"]
        for one in service.get("volumes", []):
            assert one.partition(":")[0] in COMPOSE["volumes"]


def words_of(service: str) -> list[str]:
    """The command of a service, also where a shell starts it."""
    command: list[str] = OURS[service]["command"]
    return shlex.split(command[2].removeprefix("exec ")) if command[:2] == ["sh", "-c"] else command


@pytest.mark.integration
@pytest.mark.parametrize("service", OURS)
def test_every_command_and_its_options_exist(service: str) -> None:
    words = words_of(service)
    start = 3 if words[1] == "-m" else 1
    rest = words[start:]
    head = rest[: next((at for at, word in enumerate(rest) if word.startswith("-") or ":" in word), len(rest))]
    program = [str(Path(sys.executable).with_name(words[0])), *words[1:start]]
    if words[2:3] == ["deployments.auth_mlflow"]:
        # it needs its password to say anything, and then hands everything on
        assert importlib.util.find_spec(words[2]) is not None
        program = [str(Path(sys.executable).with_name("mlflow"))]
    told = subprocess.run(
        [*program, *head, "--help"], capture_output=True, text=True, check=False, cwd=CHECKOUT, env={"COLUMNS": "200"}
    )
    assert told.returncode == 0, told.stderr[-500:]
    for option in [word for word in rest if word.startswith("--")]:
        assert option in told.stdout, option


@pytest.mark.integration
def test_the_image_has_all_that_is_imported(tmp_path: Path) -> None:
    """What Dockerfile.dockerignore lets through is enough to read prefect.yaml and to import every flow."""
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    for name in [line[1:] for line in lines if line.startswith("!")]:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=lambda _, names: [
                name for name in names if fnmatch(name, "__pycache__")
            ])  # fmt: skip
        else:
            shutil.copy(CHECKOUT / name, tmp_path / name)
    script = (
        "import deployments.declared as d; found = d.read(); [d.flow_of(one.entrypoint) for one in found];"
        "import deployments.command, deployments.auth_mlflow, flows.cycle;"
        "print(d.CHECKOUT, flows.cycle.__file__, len(found))"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr[-1000:]
    where, flow, count = told.stdout.split()
    assert Path(where) == tmp_path and Path(flow).is_relative_to(tmp_path)
    assert int(count) > 10


def test_the_lock_has_what_the_image_asks_for() -> None:
    docker = (FOLDER / "Dockerfile").read_text()
    assert "requirements.lock" in docker and "--require-hashes" in docker
    lock = (CHECKOUT / "requirements.lock").read_text()
    for name in ("prefect-redis", "psycopg2-binary", "prefect-dask"):
        assert re.search(rf"^{name}==", lock, re.MULTILINE)
    assert re.search(r"^USER \w+$", docker, re.MULTILINE)


def test_the_values_name_secrets_and_hold_none() -> None:
    server, worker = VALUES["server"], VALUES["worker"]["worker"]
    assert server["server"]["basicAuth"]["existingSecret"] and "authString" not in server["server"]["basicAuth"]
    assert server["postgresql"]["enabled"] is False and server["secret"]["create"] is False and server["secret"]["name"]
    assert worker["selfHostedServerApiConfig"]["basicAuth"]["existingSecret"]
    for one in [*server["global"]["prefect"]["env"], *worker["extraEnvVars"]]:
        if re.search(r"PASSWORD|KEY|DOCKET_URL|MONGODB_URL", one["name"]):
            assert "secretKeyRef" in one["valueFrom"], one["name"]
    for tag in (server["global"]["prefect"]["image"]["prefectTag"], worker["image"]["prefectTag"]):
        assert "latest" not in tag
