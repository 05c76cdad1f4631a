"""No secret gets where others look: one full run with a secret in every setting that holds one, then everything that it
left behind is searched for each of them, whole, in part, and as URLs, headers and dumps would spell it."""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import sqlite3
import string
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from deployments import stack_state
from deployments.sandbox.llm import SandboxLlm, application, serving
from tasks.secret_files import secret_fields
from tasks.settings import Settings
from tests.deployments.test_stack import CHECKOUT, Patient, create, deployment, ended, wait_for

# so many characters of a secret in a row are too many
PART = 12
# an alphabet that is spelt otherwise in URLs and JSON
SIGNS = string.ascii_letters + string.digits + "+=$!"


def made_up(seed: int, length: int = 40) -> str:
    return "".join(random.Random(seed).choices(SIGNS, k=length))


# what must not be found, by what the setting is; addresses are no secret but for passwords and tokens in them
PASSWORD, SIGNING_KEY, MONGODB, WEBHOOK, TOKEN, *KEYS = (made_up(seed) for seed in range(8))
SECRETS = {
    "password": [PASSWORD],
    "signing_key": [SIGNING_KEY],
    "mongodb_url": [MONGODB],
    "openai_api_key": [KEYS[0]],
    "openai_backup_api_keys": KEYS[1:],
    "notify_urls": [WEBHOOK, TOKEN],
}


def spellings(secret: str) -> dict[bytes, str]:
    """The secret as it may be spelt, each with the name of the spelling; of most signs JSON is no other."""
    found = {secret.encode(): "plain"}
    found.setdefault(quote(secret, safe="").encode(), "in a URL")
    found.setdefault(secret.encode().hex().encode(), "in hexadecimal digits")
    for shift in range(3):
        # in base64 of something longer it looks otherwise by where it begins; its ends depend on what is beside it
        whole = base64.b64encode(b"\0" * shift + secret.encode()).decode()
        inner = whole[0 if shift == 0 else 4 : len(whole) - 4].encode()
        for spelling in (inner, inner.replace(b"+", b"-").replace(b"/", b"_")):
            found.setdefault(spelling, "in base64")
    return found


def leaks(text: bytes, secret: str) -> set[str]:
    """The spellings of which ``PART`` characters in a row, or more, are in the text."""
    found = set()
    half = PART // 2
    for spelling, name in spellings(secret).items():
        # whatever holds PART characters in a row holds one of these pieces whole
        for start in range(0, len(spelling) - half + 1, half):
            piece, at = spelling[start : start + half], -1
            while (at := text.find(piece, at + 1)) >= 0:
                first, last = start, start + half
                while first and at - (start - first) > 0 and text[at - (start - first) - 1] == spelling[first - 1]:
                    first -= 1
                while (
                    last < len(spelling)
                    and text[at + last - start : at + last - start + 1] == spelling[last : last + 1]
                ):
                    last += 1
                if last - first >= min(PART, len(spelling)):
                    found.add(name)
                    break
    return found


def contents(path: Path) -> Iterator[bytes]:
    """What is in a file: every value of a database (long ones do not lie in one piece in its file), else its bytes."""
    raw = path.read_bytes()
    if raw.startswith(b"SQLite format 3\0"):
        with closing(sqlite3.connect(path)) as database:
            database.text_factory = bytes
            tables = [
                row[0].decode() for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            for table in tables:
                for row in database.execute(f'SELECT * FROM "{table}"'):
                    yield b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in row)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield archive.read(name)
    else:
        yield gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), b"\n".join(contents(path))


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("before {0} after", "plain"),
        ("{0:.14}", "plain"),
        ("?token={1}&", "in a URL"),
        ("Authorization: Basic {2}", "in base64"),
        ("{3}", "in hexadecimal digits"),
    ],
)
def test_the_search_finds_each_spelling_and_parts(text: str, spelling: str) -> None:
    basic = base64.b64encode(f"tradeflows:{PASSWORD}".encode()).decode()
    told = text.format(PASSWORD, quote(PASSWORD, safe=""), basic, PASSWORD.encode().hex()).encode()
    assert spelling in leaks(told, PASSWORD)
    assert leaks(told, TOKEN) == set()
    assert leaks(f"{PASSWORD[5:16]} {PASSWORD[:11]}".encode(), PASSWORD) == set()


def test_the_search_looks_into_databases_and_archives(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as database:
        database.execute("CREATE TABLE t (a TEXT)")
        # over the edge of a page
        database.execute("INSERT INTO t VALUES (?)", ("." * 4070 + TOKEN,))
        database.commit()
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside", TOKEN * 3)
    (tmp_path / "x.gz").write_bytes(gzip.compress(TOKEN.encode()))
    assert {name: leaks(text, TOKEN) for name, text in everything(tmp_path)} == {
        "x.db": {"plain"}, "x.zip": {"plain"}, "x.gz": {"plain"},
    }  # fmt: skip


def test_every_setting_that_is_a_secret_has_one_here() -> None:
    assert set(SECRETS) == set(secret_fields(Settings))


# ---- the run


@dataclass
class Full:
    """A stack with a secret in every setting, and what its commands said."""

    home: Path
    variables: Mapping[str, str]
    llm: SandboxLlm
    webhook: Any
    said: list[str] = field(default_factory=list)
    commands: set[str] = field(default_factory=set)

    def run(self, *words: str, **changes: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "deployments.command", *words, "--home", str(self.home)],
            cwd=CHECKOUT,
            env={**self.variables, **changes},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        told = ended.stdout + ended.stderr
        self.said.append(told)
        return told

    @contextmanager
    def watched(self, supervisor: int) -> Iterator[None]:
        """Note the command line of every process that the stack ever starts, if it lives for a moment."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.2):
                for process in psutil.Process(supervisor).children(recursive=True):
                    try:
                        self.commands.add("\0".join(process.cmdline()))
                    except psutil.Error:
                        continue

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@pytest.fixture
def full(
    tmp_path_factory: pytest.TempPathFactory,
    stub: Callable[..., Any],
    http_reply: Callable[..., bytes],
    closed_port: int,
) -> Iterator[Full]:
    webhook = stub([http_reply("no", 500)])
    foreign = ("PREFECT_", "TRADEFLOWS_", "MLFLOW_", "OPENAI_", "MONGODB_")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # where the flow runs would leave what they forgot; short, for the address of a socket has 107 characters at most
    tmp_path = tmp_path_factory.mktemp("full")
    (tmp_path / "temporary").mkdir()
    with serving(application()) as llm:
        llm.set_faults(keys={KEYS[0]: ["=401"], KEYS[1]: ["429:1"]})
        variables = {
            **ours,
            "NO_PROXY": "127.0.0.1",
            "TMPDIR": str(tmp_path / "temporary"),
            "TRADEFLOWS_PASSWORD": PASSWORD,
            "TRADEFLOWS_SIGNING_KEY": SIGNING_KEY,
            "TRADEFLOWS_LLM": "on",
            "TRADEFLOWS_LLM_KEY_PAUSE": "0",
            "OPENAI_BASE_URL": llm.url,
            "OPENAI_API_KEY": KEYS[0],
            "OPENAI_BACKUP_API_KEYS": ",".join(KEYS[1:]),
            "TRADEFLOWS_NOTIFY_URLS": "json://me:{}@127.0.0.1:{}/{}".format(
                quote(WEBHOOK, safe=""), webhook.url.rpartition(":")[2], quote(TOKEN, safe="")
            ),
            # more is told, and so more could be told
            "PREFECT_LOGGING_LEVEL": "DEBUG",
        }
        made = Full(tmp_path / "home", variables, llm, webhook)
        yield made
        made.run("down")


MONGO = "mongodb://me:{}@127.0.0.1:{}/x?serverSelectionTimeoutMS=500"
SMALL = {"folds": 2, "refresh": None, "tune_trials": 0, "estimators": ["logistic"]}


@pytest.mark.integration
def test_nothing_that_a_full_run_leaves_behind_holds_a_secret(full: Full, closed_port: int) -> None:
    told = full.run("up", "--detach", "--sandbox", "--warm", "--prefect-port", "0", "--mlflow-port", "0")
    state = stack_state.read(full.home)
    assert state is not None and state.well, told
    login = ("tradeflows", PASSWORD)
    with (
        full.watched(state.pid),
        httpx.Client(base_url=state.prefect_api, auth=login, timeout=30, transport=Patient()) as api,
    ):
        # a database that wants a password and is not there, in a run of which the server keeps the logs
        mongodb = MONGO.format(quote(MONGODB, safe=""), closed_port)
        elsewhere = {"MONGODB_URL": mongodb, "PREFECT_API_URL": state.prefect_api}
        with ThreadPoolExecutor() as beside:
            storeless = beside.submit(full.run, "ingest", "BTCSIM", "--days", "2", **elsewhere)
            flows(full, api)
        assert "cannot be reached" in storeless.result()
    for words in (("status",), ("doctor",), ("models", "list"), ("notify", "test")):
        full.run(*words, MLFLOW_TRACKING_URI=state.parts["mlflow"].url or "")
    assert "500" in full.said[-1]
    full.run("down")
    assert stack_state.family(state) == []

    haystack = dict(everything(full.home.parent))
    haystack["what commands said"] = "\n".join(full.said).encode()
    haystack["command lines"] = "\n".join(full.commands).encode()
    haystack["what the LLM was asked"] = json.dumps(full.llm.state.bodies if full.llm.state else None).encode()
    # everything is there that is searched, and in a form in which the search finds things
    assert len(full.commands) > 5
    for name, known in {
        "home/prefect/prefect.db": b"NOSUCHSIM", "home/mlflow/mlflow.db": b"BTCSIM-1h", "home/store.db": b"BTCSIM",
        "home/logs/worker.log": b"ingest", "home/mlflow/auth.db": b"scrypt",
    }.items():  # fmt: skip
        assert known in haystack[name], name
    found = {
        (name, setting, spelling)
        for setting, secrets in SECRETS.items()
        for secret in secrets
        for name, text in haystack.items()
        for spelling in leaks(text, secret)
    }
    assert found == set()


def let_in(run: dict[str, Any]) -> dict[str, Any] | None:
    return None if run["state_type"] == "CANCELLED" else run


def flows(full: Full, api: httpx.Client) -> None:
    """One run of every kind that handles a secret, with each going wrong in its way."""

    def done(run: str) -> dict[str, Any]:
        found: dict[str, Any] = wait_for(lambda: ended(api, run), 300)
        return found

    for name in ("ingest", "train", "analyse"):
        # a run of the schedule would be in the way
        api.post(f"/deployments/{deployment(api, name)['id']}/pause_deployment").raise_for_status()
    lost = create(api, "ingest", {"parameters": {"symbols": ["NOSUCHSIM"], "days": 5}})
    assert done(lost)["state_type"] == "FAILED"
    # somebody is to be told of it, and cannot be
    telling = {"flow_runs": {"name": {"any_": ["notify-failed"]}}}
    notified = wait_for(lambda: api.post("/flow_runs/filter", json=telling).json(), 120)[0]["id"]
    assert done(create(api, "ingest", {"parameters": {"symbols": ["BTCSIM"], "days": 90}}))["state_type"] == "COMPLETED"
    same = {"symbols": ["BTCSIM"], "days": 90}
    trained = done(create(api, "train", {"parameters": {**same, **SMALL}}))
    assert trained["state_type"] == "COMPLETED", trained["state"]["message"]
    # what was ingested is analysed at once, and a run beside that one is turned away
    analysed = wait_for(lambda: let_in(done(create(api, "analyse", {"parameters": {**same, "refresh": None}}))), 300)
    assert analysed["state_type"] == "COMPLETED", analysed["state"]["message"]
    answers = {key: counts["replies"] for key, counts in full.llm.requests().items()}
    assert "401" in answers[KEYS[0]] and "429" in answers[KEYS[1]]
    assert any("200" in replies for replies in answers.values())
    assert done(notified)["state_type"] == "FAILED"
    assert len(full.webhook.paths) > 1
