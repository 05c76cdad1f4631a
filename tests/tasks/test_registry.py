"""What is registered can be served by MLflow alone, with pickles switched off."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import pytest
import tenacity

from tasks import model_files, registry
from tests.registered_models import KEY, SET, Registry, candles, opened
from trading.errors import ModelNotFound

pytestmark = pytest.mark.integration
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def models_at(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """Starts ``mlflow models serve`` on a folder, without keys, tracking server or pickles; gives its address."""
    started: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "served.log").open("wb")

    def start(folder: Path) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRADEFLOWS_")}
        environment |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        # MLflow calls uvicorn by its name
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment |= {"PYTHONPATH": str(CHECKOUT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/none.db"}
        words = ["models", "serve", "-m", str(folder), "-h", "127.0.0.1", "-p", str(port), "-w", "1"]
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words, "--env-manager", "local"],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
        url = f"http://127.0.0.1:{port}"

        @tenacity.retry(
            stop=tenacity.stop_after_delay(90),
            wait=tenacity.wait_fixed(0.1),
            retry=tenacity.retry_if_exception_type(httpx.TransportError),
            reraise=True,
        )
        def ready() -> None:
            assert started[-1].poll() is None, (tmp_path / "served.log").read_text()
            httpx.get(f"{url}/ping").raise_for_status()

        ready()
        return url

    yield start
    for process in started:
        if process.poll() is None:
            # MLflow starts its server as a process of its own
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for member in family:
                member.terminate()
            psutil.wait_procs(family, timeout=10)
    log.close()


def test_mlflow_serves_raw_candles_and_says_what_is_wrong_with_them(
    models_at: Registry, serve: Callable[[Path], str]
) -> None:
    name = models_at.new_name()
    version = registry.version_at(models_at.client, name, models_at.add(name, "lightgbm"))
    with model_files.verified(models_at.client, version, models_at.key) as folder:
        url = serve(folder.parents[1])
        example = json.loads((folder.parents[1] / "serving_input_example.json").read_text())
    frame = candles().tail(SET.rows_needed).reset_index()
    stamps = pd.DatetimeIndex(frame["open_time"]).as_unit("ms").asi8
    raw = frame.assign(open_time=stamps)

    def post(table: pd.DataFrame) -> httpx.Response:
        body: dict[str, Any] = {"dataframe_split": json.loads(table.to_json(orient="split", index=False))}
        return httpx.post(f"{url}/invocations", json=body, timeout=30)

    answer = post(raw)
    assert answer.status_code == 200, answer.text
    [row] = answer.json()["predictions"]
    from ml.artifact import load

    expected = load(folder).predict(candles())
    assert row["signal"] == expected.signal.value
    assert row["p_long"] == pytest.approx(expected.p_long, abs=1e-9)
    assert row["open_time"] == expected.open_time.isoformat()
    assert row["reasons"].startswith("P(long)")
    assert httpx.post(f"{url}/invocations", json=example, timeout=30).json()["predictions"] == [row]
    for wrong, said in (
        (raw.iloc[1:], f"needs {SET.rows_needed} 1h candles and there are {SET.rows_needed - 1}"),
        (raw.drop(columns="volume"), "volume"),
        (raw.iloc[::-1], "unique and increasing"),
        (raw.assign(close=raw["close"].where(raw.index != 5)), "impossible"),
    ):
        refused = post(wrong)
        assert refused.status_code == 400
        assert said in refused.text


def test_a_registered_version_says_how_to_ask_it_and_with_what(models_at: Registry) -> None:
    name = models_at.new_name()
    version = registry.version_at(models_at.client, name, models_at.add(name, "logistic"))
    with model_files.model_folder(models_at.client, version) as folder:
        files = {path.name for path in folder.iterdir()}
        required = (folder / "requirements.txt").read_text()
        said = (folder / "MLmodel").read_text()
        assert not [path for path in folder.rglob("*") if path.suffix in {".py", ".pkl", ".pickle", ".joblib"}]
    assert {"MLmodel", "requirements.txt", "input_example.json", "serving_input_example.json"} <= files
    for package in ("mlflow", "numpy", "pandas", "lightgbm", "TA-Lib"):
        assert f"{package}==" in required
    for column in ("open_time", "open", "high", "low", "close", "volume", "signal", "p_long", "reasons"):
        assert f'"name": "{column}"' in said.replace("\n    ", " ")
    assert "code: null" in said
    assert KEY not in json.dumps(dict(version.tags)) + said


def test_versions_come_with_their_aliases_the_newest_first(models_at: Registry) -> None:
    client, name = models_at.client, models_at.new_name()
    for _ in range(3):
        models_at.add(name, "logistic")
    assert registry.set_alias(client, name, "champion", "2")
    assert not registry.set_alias(client, name, "champion", "2")
    found = registry.versions(client, name)
    assert [(str(one.version), one.aliases) for one in found] == [("3", []), ("2", ["champion"]), ("1", [])]
    assert registry.set_alias(client, name, "champion", None)
    assert not registry.set_alias(client, name, "champion", None)
    with pytest.raises(ModelNotFound, match="there is no model"):
        registry.versions(client, "NOBODY-1h")
