"""docs/triggering.md does what it says: its lines are run against a real server with a password."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from deployments import declared
from deployments.client import connected
from deployments.prefect_api import Api
from deployments.serve_answers import ASKED, Asked, answer
from tests.deployments.conftest import CHECKOUT, LOGIN, Deployed
from tests.registered_models import NOW, candles, opened
from trading.candles import open_times_ms, values_of

PAGE = (CHECKOUT / "docs" / "triggering.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SHELL = [block for kind, block in BLOCKS if kind == "bash"]
JSON = [json.loads(block) for kind, block in BLOCKS if kind == "json"]
[PYTHON] = [block for kind, block in BLOCKS if kind == "python"]
# what every line needs, then what to do
PREAMBLE, *WORK = SHELL
STARTS = [line for block in SHELL for line in block.splitlines() if line.startswith("ask -X POST") and "$(id " in line]


def flow_of(line: str) -> str:
    found = re.search(r"\$\(id (\w+)\)", line)
    assert found, line
    return found[1]


def test_every_deployment_has_its_line() -> None:
    assert [flow_of(line) for line in STARTS] == list(dict.fromkeys(map(flow_of, STARTS)))
    assert {flow_of(line) for line in STARTS} == {one.name for one in declared.read()}


def test_the_engine_s_request_is_one_that_is_understood() -> None:
    asked, _ = JSON
    understood: Asked = ASKED.decode(json.dumps(asked))
    assert len(understood.candles) == 2 and understood.symbol == asked["symbol"]
    with pytest.raises(msgspec.ValidationError):
        ASKED.decode(json.dumps({**asked, "candle": []}))


# --- a real server ------------------------------------------------------------------------------


@pytest.fixture
def shell(deployed: Deployed) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs lines of the page in bash, after its preamble, with the test server's address."""

    def run(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
        script = PREAMBLE.replace("API=http://127.0.0.1:4200/api", f"API={deployed.api}")
        assert script != PREAMBLE
        password = {"TRADEFLOWS_PASSWORD": LOGIN.partition(":")[2]}
        return subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{script}\n{text}"],
            env={**os.environ, **password, **variables}, capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip

    return run


@pytest.fixture
def api(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", LOGIN)
    with connected(deployed.api, timeout=60) as found:
        yield found


@pytest.mark.integration
def test_every_line_creates_a_run_with_its_parameters(
    shell: Callable[..., subprocess.CompletedProcess[str]], api: Api
) -> None:
    done = shell("\n".join(f"{line}; echo" for line in STARTS if "$KEY" not in line))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len([line for line in STARTS if "$KEY" not in line])
    for line, found in zip(STARTS, answers, strict=False):
        assert "id" in found, f"{line}: {found}"
        [body] = re.findall(r"-d '(.*)'$", line)
        assert json.loads(body).get("parameters", {}).items() <= found["parameters"].items()
        assert api.ask("GET", f"/flow_runs/{found['id']}")["state_type"] == "SCHEDULED"
    refused = shell(STARTS[0], TRADEFLOWS_PASSWORD="wrong-horse-42")
    assert "Unauthorized" in refused.stderr and '"id"' not in refused.stdout
    assert LOGIN not in done.stdout + done.stderr


@pytest.mark.integration
def test_the_other_lines_wait_read_and_run_again(
    shell: Callable[..., subprocess.CompletedProcess[str]], api: Api, deployed: Deployed
) -> None:
    [schema] = [block for block in WORK if "parameter_openapi_schema" in block]
    described = shell(schema)
    assert "Neutral" in described.stdout and "Above 0, below 1." in described.stdout, described.stderr
    key, wait, again = (block for block in WORK if "RUN" in block)
    # the page asks for a symbol of real markets, now; here are those of the sandbox, then
    asked = sandboxed(key).replace(
        '[\\"BTCSIM\\"]', '[\\"BTCSIM\\"], \\"end\\": \\"2019-01-01T00:00:00Z\\", \\"days\\": 30'
    )
    assert asked != sandboxed(key)
    begun = shell(f'{asked}\necho "$RUN"')
    run_id = begun.stdout.strip()
    assert len(run_id) == 36, begun.stderr
    assert shell(f'{asked}\necho "$RUN"').stdout.strip() == run_id
    with deployed.execute(run_id):
        done = shell(f"RUN={run_id}\n{wait}")
    state, table = done.stdout.splitlines()
    assert state in ("Completed", "Degraded"), done.stdout + done.stderr
    [row] = json.loads(table)
    assert row["symbol"] == "BTCSIM" and row["signal"] in ("Long", "Short", "Neutral")

    # the lines in Python have the same key: the same run, which is over
    then = '{"symbols": ["BTCSIM"], "end": "2019-01-01T00:00:00Z", "days": 30}'
    text = sandboxed(PYTHON).replace("http://127.0.0.1:4200/api", deployed.api).replace('{"symbols": ["BTCSIM"]}', then)
    assert then in text
    program = subprocess.run(
        [sys.executable, "-c", text], cwd=CHECKOUT, env=deployed.environment, capture_output=True, text=True,
        check=False, timeout=240,
    )  # fmt: skip
    assert program.returncode == 0, program.stderr
    wanted = [state, " ".join(map(str, (row["symbol"], row["signal"], row["confidence"], row["timestamp"])))]
    assert program.stdout.splitlines() == wanted

    told = shell(f"RUN={run_id}\n{again}")
    assert json.loads(told.stdout)["status"] == "ACCEPT", told.stdout
    assert api.ask("GET", f"/flow_runs/{run_id}")["state_name"] == "AwaitingRetry"


def sandboxed(text: str) -> str:
    return text.replace("BTCUSDT", "BTCSIM")


@pytest.mark.integration
def test_the_answer_of_the_model_server_has_the_fields_of_the_page(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tasks import models, registry

    at = opened(tmp_path_factory)
    name = at.new_name()
    version = registry.version_at(at.client, name, at.add(name, "logistic"))
    champion = models.load(at.client, at.settings, version, at.key)
    rows: list[Any] = [
        [stamp, *values]
        for stamp, values in zip(open_times_ms(candles()).tolist(), values_of(candles()).tolist(), strict=True)
    ]
    found = answer(champion, ASKED.decode(json.dumps({"candles": rows})), NOW)
    _, documented = JSON
    assert found.keys() == documented.keys()
    for field, value in documented.items():
        assert found[field] is None or value is None or isinstance(found[field], type(value)), field
