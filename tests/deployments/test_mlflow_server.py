"""MLflow's server as one process: it answers, and ends when it is asked to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from deployments.stack import CHECKOUT, free_port

pytestmark = pytest.mark.integration


def test_the_command_becomes_the_server(tmp_path: Path) -> None:
    port = free_port(0)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "deployments.mlflow_server", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "-w", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=CHECKOUT, env=variables, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = httpx.post(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 1}, timeout=30)
                break
            except httpx.TransportError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.1)
        assert [one["name"] for one in answer.raise_for_status().json()["experiments"]] == ["Default"]
        process = psutil.Process(server.pid)
        assert "uvicorn" in " ".join(process.cmdline())
        assert process.children(recursive=True) == []
        # artifacts go through it
        path = f"{url}/api/2.0/mlflow-artifacts/artifacts/0/a.txt"
        assert httpx.put(path, content=b"kept", timeout=30).status_code == 200
        assert (tmp_path / "artifacts" / "0" / "a.txt").read_bytes() == b"kept"
        server.terminate()
        assert server.wait(30) in (0, -15), (tmp_path / "log").read_text()
    finally:
        server.kill()
        server.wait()
