"""Authentication by one setting: both servers ask for it, everything of ours knows it, another one takes its place."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydantic import SecretStr

from deployments import auth, auth_checks, stack_state
from deployments.prefect_api import connected
from deployments.stack_parts import Wanted, free_port, parts
from deployments.stack_state import StackState
from tasks.settings import Settings, secret_variables
from tests.deployments.test_stack import CHECKOUT, Patient, create, ended, wait_for
from trading.errors import ConfigurationError

OLD, NEW = "Kw4:first-of%two-7", "Hv9-second/of@two-3"
SIGNING_KEY = "a-key-that-signs-models-and-nothing-else"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in auth.CREDENTIALS | secret_variables():
        monkeypatch.delenv(name, raising=False)


def of(home: Path, **changes: Any) -> Settings:
    password = changes.pop("password", None)
    return Settings(home=home, password=SecretStr(password) if password else None, **changes)


@pytest.mark.usefixtures("bare")
def test_servers_that_let_everybody_in_are_refused_where_they_may_not(tmp_path: Path) -> None:
    auth.require_password(of(tmp_path))
    for changes in ({"environment": "production"}, {"bind": "0.0.0.0"}):
        with pytest.raises(ConfigurationError, match="TRADEFLOWS_PASSWORD must be set"):
            parts(of(tmp_path, **changes), Wanted(), lambda _: None)
        auth.require_password(of(tmp_path, password=OLD, **changes))


@pytest.mark.usefixtures("bare")
def test_two_passwords_for_one_server_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", f"tradeflows:{OLD}")
    auth.require_password(of(tmp_path, password=OLD))
    with pytest.raises(ConfigurationError, match="PREFECT_API_AUTH_STRING is set") as refused:
        auth.require_password(of(tmp_path, password=NEW))
    assert OLD not in str(refused.value) and NEW not in str(refused.value)


@pytest.mark.usefixtures("bare")
def test_each_part_is_told_what_it_needs_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = of(tmp_path, password=OLD)
    for name in secret_variables():
        monkeypatch.setenv(name, "a secret of others")
    made = {part.name: part for part in parts(settings, Wanted(True, False, 0, 0), lambda _: None)}
    for name in ("prefect", "mlflow", "sandbox"):
        assert not secret_variables() & made[name].variables.keys(), name
    known = {name: {key for key in made[name].variables if key in auth.CREDENTIALS} for name in made}
    clients = {"PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    known.pop("metrics", None)  # asks both as a client
    assert known == {
        "sandbox": set(),
        "prefect": {"PREFECT_SERVER_API_AUTH_STRING"},
        "mlflow": {"MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"},
        "deploy": clients,
        "worker": clients,
    }
    assert secret_variables() <= made["worker"].variables.keys()
    for part in made.values():
        assert not any(OLD in word for word in part.command)
    told = ConfigParser()
    told.read(tmp_path / "mlflow" / "auth.ini")
    assert told["mlflow"]["database_uri"] == f"sqlite:///{tmp_path}/mlflow/auth.db"
    assert OLD not in (tmp_path / "mlflow" / "auth.ini").read_text()


@pytest.mark.usefixtures("bare")
def test_without_a_password_nothing_asks_for_one(tmp_path: Path) -> None:
    made = {part.name: part for part in parts(of(tmp_path), Wanted(False, False, 0, 0), lambda _: None)}
    assert not any(auth.CREDENTIALS & part.variables.keys() for part in made.values())
    assert "--app-name" not in made["mlflow"].command
    assert made["mlflow"].command[made["mlflow"].command.index("--host") + 1] == "127.0.0.1"
    assert made["prefect"].variables["PREFECT_SERVER_API_HOST"] == "127.0.0.1"


def test_what_stands_at_a_door_is_told(
    stub: Callable[..., Any], http_reply: Callable[..., bytes], closed_port: int
) -> None:
    for status, alone, known in ((200, "open", "open"), (401, "closed", "refused"), (500, "silent", "silent")):
        server = stub([http_reply("{}", status)])
        assert auth.door("POST", f"{server.url}/api") == alone
        assert auth.door("POST", f"{server.url}/api", ("a", "b")) == known
    assert auth.door("POST", f"http://127.0.0.1:{closed_port}/") == "silent"


@pytest.mark.usefixtures("bare")
def test_the_doctor_tells_an_open_server_from_a_closed_one(
    stub: Callable[..., Any], http_reply: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def levels(settings: Settings) -> list[str]:
        return [finding.level for finding in auth_checks.authentication(settings, None)]

    assert levels(of(tmp_path)) == ["ok"]
    monkeypatch.setenv("PREFECT_API_URL", f"{stub([http_reply('{}')]).url}/api")
    assert levels(of(tmp_path)) == ["ok"]
    assert levels(of(tmp_path, password=OLD)) == ["error"]
    assert levels(of(tmp_path, environment="production")) == ["error"]
    with pytest.raises(ConfigurationError, match="lets everybody in"):
        auth.require_closed(of(tmp_path, environment="production"), os.environ["PREFECT_API_URL"])
    monkeypatch.setenv("PREFECT_API_URL", f"{stub([http_reply('{}', 401)]).url}/api")
    assert levels(of(tmp_path)) == ["error"]
    monkeypatch.setenv("PREFECT_API_URL", f"{stub([http_reply('{}', 401), http_reply('{}')]).url}/api")
    assert levels(of(tmp_path, password=OLD)) == ["ok"]


def test_a_file_that_others_may_read_is_told(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(OLD)
    secret.chmod(0o644)
    [found] = auth_checks.secret_files({"TRADEFLOWS_PASSWORD_FILE": str(secret)})
    assert (found.level, found.advice) == ("warning", f"chmod 600 {secret}")
    secret.chmod(0o600)
    assert list(auth_checks.secret_files({"TRADEFLOWS_PASSWORD_FILE": str(secret)})) == []


# ---- the stack for real


def command(*words: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    foreign = ("PREFECT_", "TRADEFLOWS_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return subprocess.run(
        [sys.executable, "-m", "deployments.command", *words, "--home", str(home)],
        cwd=CHECKOUT,
        env={
            **environment,
            "NO_PROXY": "127.0.0.1",
            "TRADEFLOWS_PASSWORD_FILE": str(home.with_name("password")),
            "TRADEFLOWS_SIGNING_KEY": SIGNING_KEY,
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def up(home: Path) -> StackState:
    started = command("up", "--detach", "--sandbox", "--warm", "--prefect-port", "0", "--mlflow-port", "0", home=home)
    logs = "\n".join(path.read_text()[-2000:] for path in (home / "logs").glob("*.log"))
    assert started.returncode == 0, started.stderr + logs
    state = stack_state.read(home)
    assert state is not None and state.well
    return state


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("auth") / "home"
    file = folder.with_name("password")
    file.write_text(f"{OLD}\n")
    file.chmod(0o600)
    yield folder
    command("down", home=folder)


@pytest.fixture(scope="module")
def stack(home: Path) -> StackState:
    return up(home)


@pytest.fixture(scope="module")
def api(stack: StackState) -> Iterator[httpx.Client]:
    login = ("tradeflows", OLD)
    with httpx.Client(base_url=stack.prefect_api, auth=login, timeout=30, transport=Patient()) as client:
        yield client


@pytest.fixture(scope="module")
def runs(api: httpx.Client) -> dict[str, str]:
    """Under way while the tests that do not wait for them go on."""
    asked = {"ingest": {"symbols": ["BTCSIM"], "days": 5}, "maintain": {}}
    return {name: create(api, name, {"parameters": parameters}) for name, parameters in asked.items()}


PREFECT = [
    ("POST", "/api/flows/filter"), ("POST", "/api/flow_runs/filter"), ("POST", "/api/logs/filter"),
    ("POST", "/api/block_documents/filter"), ("POST", "/api/artifacts/filter"), ("POST", "/api/deployments/filter"),
    ("GET", "/api/admin/settings"), ("GET", "/api/version"), ("GET", "/api/docs"), ("GET", "/api/openapi.json"),
]  # fmt: skip
MLFLOW = [
    ("GET", "/"), ("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0"),
    ("GET", "/ajax-api/2.0/mlflow/registered-models/search"), ("GET", "/api/2.0/mlflow-artifacts/artifacts"),
    ("GET", "/api/2.0/mlflow/users/list"), ("GET", "/version"), ("GET", "/signup"),
]  # fmt: skip
SOCKETS = [
    "/events/in", "/events/out", "/logs/out", "/task_runs/subscriptions/scheduled",
    "/work_pools/tradeflows/workers/connect",
]  # fmt: skip


@pytest.mark.integration
@pytest.mark.usefixtures("runs")
def test_without_the_password_neither_api_nor_page_tells_anything(stack: StackState) -> None:
    asked = [("prefect", *one) for one in PREFECT] + [("mlflow", *one) for one in MLFLOW]
    for part, method, path in asked:
        url = f"{stack.parts[part].url}{path}"
        body: dict[str, str] | None = {} if method == "POST" else None
        for login in (None, ("tradeflows", NEW), ("admin", "password")):
            assert httpx.request(method, url, json=body, auth=login, timeout=30).status_code == 401, (url, login)
        with httpx.Client(auth=("tradeflows", OLD), transport=Patient(), timeout=30) as client:
            assert client.request(method, url, json=body).status_code == 200, url
    # Prefect's own pages are files without data, and ask for the password themselves
    assert httpx.get(f"{stack.parts['prefect'].url}/ui-settings").json()["auth"] == "BASIC"


@pytest.mark.integration
def test_sockets_are_closed_to_who_does_not_say_the_password(stack: StackState) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    def answer(path: str, token: str) -> str:
        url = stack.prefect_api.replace("http:", "ws:") + path
        with connect(url, subprotocols=["prefect"]) as socket:  # type: ignore[list-item]
            socket.send(json.dumps({"type": "auth", "token": token}))
            try:
                return str(json.loads(socket.recv(30))["type"])
            except ConnectionClosed as closed:
                return f"closed {closed.rcvd.code if closed.rcvd else ''}"

    for path in SOCKETS:
        assert answer(path, f"tradeflows:{OLD}") == "auth_success", path
        assert answer(path, "tradeflows:wrong") == "closed 1008", path


@pytest.mark.integration
def test_a_page_of_another_site_may_not_ask(stack: StackState) -> None:
    url = f"{stack.prefect_api}/flows/filter"
    own = stack.parts["prefect"].url or ""
    told = {
        origin: httpx.options(url, headers={"Origin": origin, "Access-Control-Request-Method": "POST"}).headers
        for origin in (own, "http://elsewhere.test")
    }
    assert told[own]["access-control-allow-origin"] == own
    assert "access-control-allow-origin" not in told["http://elsewhere.test"]


@pytest.mark.integration
def test_no_command_line_holds_a_secret_and_no_server_those_of_others(stack: StackState, home: Path) -> None:
    family = [*stack_state.family(stack), psutil.Process(stack.pid)]
    assert len(family) > 5
    for process in family:
        words = " ".join(process.cmdline())
        assert OLD not in words and SIGNING_KEY not in words
    for name in ("prefect", "mlflow", "sandbox"):
        of_part = psutil.Process(stack.parts[name].pid)
        for process in (of_part, *of_part.children(recursive=True)):
            assert SIGNING_KEY not in process.environ().values()
    for path in (home / "stack.json", home / "mlflow" / "auth.ini", *(home / "logs").glob("*.log")):
        assert OLD not in path.read_text()
    assert (home / "mlflow" / "auth.db").stat().st_mode & 0o077 == 0
    assert home.stat().st_mode & 0o077 == 0


@pytest.mark.integration
def test_flows_run_and_commands_work_with_it(
    stack: StackState, home: Path, api: httpx.Client, runs: dict[str, str]
) -> None:
    told = command("status", "--stack", home=home)
    assert told.returncode == 0 and "ingest" in told.stdout, told.stderr
    assert command("deploy", "--dry-run", home=home).stdout.startswith("Nothing to do")
    seen = command("doctor", home=home).stdout
    for name in ("Prefect", "MLflow"):
        assert f"authentication: {name} asks for a password, and takes ours" in seen, seen
    listed = command("models", "list", home=home, MLFLOW_TRACKING_URI=stack.parts["mlflow"].url or "")
    assert listed.returncode == 0, listed.stderr
    home.with_name("password").write_text(NEW)
    try:
        refused = command("deploy", "--dry-run", home=home)
        assert refused.returncode == 1 and "wants another password" in refused.stderr
        assert "401" in command("models", "list", home=home, MLFLOW_TRACKING_URI=stack.parts["mlflow"].url or "").stderr
    finally:
        home.with_name("password").write_text(OLD)
    for name, run in runs.items():
        state = wait_for(lambda run=run: ended(api, run), 180)
        assert state["state_type"] == "COMPLETED", (name, state["state"]["message"])


@contextmanager
def proxied(stack: StackState, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """nginx as the example has it, but for ports and names: Prefect's address, MLflow's, the certificate to trust."""
    key, certificate = folder / "tradeflows.key", folder / "tradeflows.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made = [*making, "-addext", names, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    ports = [free_port(0), free_port(0)]
    text = (CHECKOUT / "deployments" / "nginx.conf.example").read_text()
    for usual, part, name, port in (
        (4200, "prefect", "prefect.example.org", ports[0]), (5000, "mlflow", "mlflow.example.org", ports[1]),
    ):  # fmt: skip
        assert f"http://127.0.0.1:{usual};" in text and f"server_name {name};" in text
        text = text.replace(f"http://127.0.0.1:{usual};", f"{stack.parts[part].url};")
        text = text.replace(f"listen 443 ssl;\n    server_name {name};", f"listen 127.0.0.1:{port} ssl;")
    text = text.replace("/etc/nginx/tls", str(folder))
    assert "443" not in text and "example.org" not in text
    kept = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {kept}\n{text} }}\n"
    )
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]) as server:
        try:
            prefect, mlflow = (f"https://localhost:{port}" for port in ports)
            trust = ssl.create_default_context(cafile=str(certificate))

            def up() -> bool:
                assert server.poll() is None, (folder / "error.log").read_text()
                try:
                    return httpx.get(f"{prefect}/api/ready", verify=trust).status_code == 200
                except httpx.TransportError:
                    return False

            wait_for(up, 30)
            yield prefect, mlflow, certificate
        finally:
            server.terminate()


@pytest.mark.integration
@pytest.mark.skipif(not (shutil.which("nginx") and shutil.which("openssl")), reason="needs nginx and openssl")
def test_behind_nginx_with_tls_the_same_is_asked_and_everything_gets_through(
    stack: StackState, home: Path, tmp_path: Path
) -> None:
    from websockets.asyncio.client import connect

    with proxied(stack, tmp_path) as (prefect, mlflow, certificate):
        trust = ssl.create_default_context(cafile=str(certificate))
        for method, url in (auth.prefect_question(f"{prefect}/api"), auth.mlflow_question(mlflow)):
            assert httpx.request(method, url, json={}, verify=trust).status_code == 401
            login = ("tradeflows", OLD)
            assert httpx.request(method, url, json={}, auth=login, verify=trust, timeout=30).status_code == 200
        told = httpx.get(prefect, verify=trust).headers["content-security-policy"]
        assert "default-src 'self'" in told
        # the servers see the name that was asked for
        other = {"Host": "elsewhere.test"}
        assert httpx.get(mlflow, headers=other, auth=login, verify=trust).status_code == 403

        # not in threads: of a TLS socket one thread may not read while another writes, before Python 3.13
        async def answer(path: str) -> str:
            url = prefect.replace("https:", "wss:") + "/api" + path
            async with connect(url, ssl=trust, subprotocols=["prefect"]) as socket:  # type: ignore[list-item]
                await socket.send(json.dumps({"type": "auth", "token": ":".join(login)}))
                return str(json.loads(await asyncio.wait_for(socket.recv(), 30))["type"])

        for path in SOCKETS:
            assert asyncio.run(answer(path)) == "auth_success", path
        # a machine elsewhere: both addresses, the password, and whom to trust
        there = {
            "PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow,
            "SSL_CERT_FILE": str(certificate), "REQUESTS_CA_BUNDLE": str(certificate),
            "TRADEFLOWS_PASSWORD_FILE": str(home.with_name("password")),
        }  # fmt: skip
        assert command("deploy", "--sandbox", "--dry-run", home=home, **there).stdout.startswith("Nothing to do")
        listed = command("models", "list", home=home, **there)
        assert listed.returncode == 0, listed.stderr
        sandbox = {"TRADEFLOWS_EXCHANGE_URL": stack.parts["sandbox"].url or ""}
        ran = command("ingest", "ETHSIM", "--days", "2", home=tmp_path / "elsewhere", **there, **sandbox)
        assert ran.returncode == 0, ran.stderr
        assert "certificate" in command("deploy", "--dry-run", home=home, PREFECT_API_URL=f"{prefect}/api").stderr


@pytest.mark.integration
def test_started_with_another_password_the_old_one_opens_nothing(stack: StackState, home: Path) -> None:
    assert command("down", home=home).stdout.splitlines()[-1] == "Stopped."
    assert stack_state.family(stack) == []
    home.with_name("password").write_text(NEW)
    again = up(home)
    mlflow = auth.mlflow_question(again.parts["mlflow"].url or "")
    prefect = auth.prefect_question(again.prefect_api)
    for question in (mlflow, prefect):
        assert auth.door(*question, ("tradeflows", OLD)) == "refused"
        assert auth.door(*question, ("tradeflows", NEW)) == "open"
    assert command("down", home=home).stdout.splitlines()[-1] == "Stopped."
    assert stack_state.family(again) == []


@pytest.mark.usefixtures("bare")
def test_our_own_client_says_who_it_is(
    stub: Callable[..., Any], http_reply: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stub([http_reply("{}", 401)])
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", f"tradeflows:{OLD}")
    with (
        connected(f"{server.url}/api") as asked,
        pytest.raises(ConfigurationError, match="another password") as refused,
    ):
        asked.ask("GET", "/x")
    assert OLD not in str(refused.value)
