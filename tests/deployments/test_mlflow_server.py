"""MLflow's server as one process: it answers, it ends when it is asked to, and what it keeps is reached without it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import typer
from mlflow.exceptions import MlflowException
from pydantic import SecretStr

from deployments.running import told
from deployments.stack import CHECKOUT, free_port
from tasks import models, promotions, registry
from tasks.settings import Settings
from tasks.store import open_store
from tests.registered_models import KEY, NOW, Registry, flipped
from trading.errors import DataError, ModelRejected

pytestmark = pytest.mark.integration


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The server as the stack starts it, on the database in ``folder``; ended at the end."""
    port = free_port(0)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "deployments.mlflow_server", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "-w", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=CHECKOUT, env=variables, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = httpx.post(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 1}, timeout=30)
                break
            except httpx.TransportError:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
        assert [one["name"] for one in answer.raise_for_status().json()["experiments"]] == ["Default"]
        yield url, server
    finally:
        server.kill()
        server.wait()


def test_the_command_becomes_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, server):
        process = psutil.Process(server.pid)
        assert "uvicorn" in " ".join(process.cmdline())
        assert process.children(recursive=True) == []
        # artifacts go through it
        path = f"{url}/api/2.0/mlflow-artifacts/artifacts/0/a.txt"
        assert httpx.put(path, content=b"kept", timeout=30).status_code == 200
        assert (tmp_path / "artifacts" / "0" / "a.txt").read_bytes() == b"kept"
        server.terminate()
        assert server.wait(30) in (0, -15), (tmp_path / "log").read_text()


def test_what_was_registered_through_it_is_verified_promoted_and_added_to_without_it(tmp_path: Path) -> None:
    """The commands beside a stack, or after it, or on a home that was restored, open its database themselves."""
    home, name = tmp_path / "home", "MODEL-1h"
    (home / "mlflow").mkdir(parents=True)
    here = Settings(home=home, signing_key=SecretStr(KEY)).model_copy(update={"mlflow_tracking_uri": None})
    with serving(home / "mlflow") as (url, _):
        there = here.model_copy(update={"mlflow_tracking_uri": url})
        first = Registry(there, registry.connect(there)).add(name, "logistic")
    alone = Registry(here, registry.connect(here))
    assert str(registry.version_at(alone.client, name, first).source).startswith("models:/")
    experiment = alone.client.get_experiment_by_name(name)
    assert experiment is not None
    assert experiment.artifact_location.startswith("mlflow-artifacts:/")
    with open_store(home) as store:
        promotions.promote(alone.client, store, name, first, reason="a test", who="me", now=NOW, key=alone.key)
        assert models.champion(alone.client, here, name, store=store, now=NOW).version == first
        second = alone.add(name, "logistic", note="made without the server")
        promotions.promote(alone.client, store, name, second, reason="a test", who="me", now=NOW, key=alone.key)
        assert models.champion(alone.client, here, name, store=store, now=NOW).version == second
        # a file that somebody changed is refused as ever
        file = min((home / "mlflow" / "artifacts").rglob("estimator.json"))
        file.write_bytes(flipped(file.read_bytes(), 40))
        refused = []
        for version in (first, second):
            try:
                models.load(alone.client, here, registry.version_at(alone.client, name, version), alone.key)
            except ModelRejected as error:
                refused.append(str(error))
        assert len(refused) == 1
        assert "estimator.json" in refused[0]
    with pytest.raises(DataError, match="leads out of"):
        registry._artifacts_of("mlflow-artifacts:/../../../etc", registry.tracking_uri(here))


def test_an_error_of_mlflow_is_a_sentence_without_the_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, told(traceback=False):
        raise MlflowException("http://me:hidden@127.0.0.1:5000 does not answer")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "MlflowException: http://127.0.0.1:5000 does not answer\n"
    with pytest.raises(ZeroDivisionError), told(traceback=False):
        raise ZeroDivisionError
