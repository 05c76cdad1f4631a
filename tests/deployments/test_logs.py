"""Log lines as JSON: one object a line whoever writes it, with its context and without secrets; and back as text."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deployments.json_process import JsonStream
from deployments.log_reading import people
from tasks import environment, log, log_lines
from tasks.log_lines import JsonLines, is_line, readable, secrets_of
from trading.window import Timeframe, Window

CHECKOUT = Path(__file__).resolve().parents[2]
AT = datetime(2026, 11, 21, 12, 0, 0, 5, tzinfo=UTC).timestamp()
WINDOW = Window("BTCUSDT", Timeframe.H1, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))


def made(message: str, *words: object, level: int = logging.INFO, name: str = "a.b", **extra: Any) -> logging.LogRecord:
    record = logging.LogRecord(name, level, __file__, 1, message, words, None)
    record.created = AT
    vars(record).update(extra)
    return record


def told(record: logging.LogRecord) -> dict[str, Any]:
    text = JsonLines().format(record)
    assert text == text.strip() and len(text.splitlines()) == 1
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the project's logger says."""
    heard: list[logging.LogRecord] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    ear, own = Ear(), logging.getLogger(log.NAME)
    level = own.level
    own.addHandler(ear)
    own.setLevel(logging.DEBUG)
    yield heard
    own.removeHandler(ear)
    own.setLevel(level)
    structlog.reset_defaults()


# --- one record ----------------------------------------------------------------------------------


def test_a_record_has_time_level_logger_and_message() -> None:
    assert told(made("took %d s", 3, level=logging.WARNING)) == {
        "time": "2026-11-21T12:00:00.000005Z", "level": "warning", "logger": "a.b", "message": "took 3 s",
    }  # fmt: skip


@given(st.text())
def test_a_line_is_a_line_whatever_is_said(message: str) -> None:
    text = log_lines.line(message, level="info", logger="x", at=AT, fields={"said": message})
    assert len(text.splitlines()) <= 1
    assert json.loads(text)["message"] == json.loads(text)["said"] == message


def test_what_json_does_not_know_becomes_text() -> None:
    fields = {
        "event": "odd",
        "path": Path("/x"),
        "nan": float("nan"),
        "inner": {"when": datetime(2026, 1, 1, tzinfo=UTC)},
    }
    assert told(made("", fields={**fields, "set": {1}})) | {"time": ""} == {
        "time": "", "level": "info", "logger": "a.b", "message": "odd", "path": "/x", "nan": "nan",
        "inner": {"when": "2026-01-01 00:00:00+00:00"}, "set": [1],
    }  # fmt: skip


def test_a_field_cannot_take_the_place_of_what_every_line_has() -> None:
    found = told(made("", fields={"event": "said", "message": "mine", "logger": "mine", "time": 0}))
    assert (found["message"], found["logger"]) == ("said", "a.b")
    assert (found["message_"], found["logger_"], found["time_"]) == ("mine", "mine", 0)


def test_an_exception_is_in_its_line() -> None:
    try:
        raise ValueError("no such\nthing")
    except ValueError:
        record = made("failed", level=logging.ERROR)
        record.exc_info = sys.exc_info()
    found = told(record)
    assert found["exception"].startswith("Traceback") and "no such\nthing" in found["exception"]


def test_lines_of_ours_have_their_fields_window_and_run(records: list[logging.LogRecord]) -> None:
    with log.about(WINDOW, flow_run_id="run-7"):
        log.logger().info("stored", added=3, quarantined={"null": 1})
        inside = told(records[-1])
        # others who speak inside are about the same
        stranger = told(made("fetched"))
    assert inside | {"time": ""} == {
        "time": "", "level": "info", "logger": "tradeflows", "message": "stored", "flow_run_id": "run-7",
        "trace_id": "run-7", "symbol": "BTCUSDT", "timeframe": "1h", "window": "2026-01-01T00:00Z/2026-01-02T00:00Z",
        "added": 3, "quarantined": {"null": 1},
    }  # fmt: skip
    assert (stranger["symbol"], stranger["flow_run_id"]) == ("BTCUSDT", "run-7")
    assert "symbol" not in told(made("outside"))


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_prefect_s_pages_get_text_that_says_the_same(log_format: Any, records: list[logging.LogRecord]) -> None:
    log.configure(log_format)
    log.logger().warning("late", symbol="BTCUSDT", bars=4)
    [record] = records
    assert told(record)["bars"] == 4
    message = record.getMessage()
    assert ("event=late" in message) if log_format == "text" else (json.loads(message)["event"] == "late")


def test_a_process_s_flow_run_is_the_trace_of_its_subflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(log_lines.RUN_VARIABLE, "parent")
    found = told(made("x", flow_run_id="child", flow_name="train", flow_run_name="<unknown>"))
    assert (found["trace_id"], found["flow_run_id"], found["flow_name"]) == ("parent", "child", "train")
    assert "flow_run_name" not in found


# --- secrets -------------------------------------------------------------------------------------


def test_values_of_secret_variables_are_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, word in {
        "OPENAI_API_KEY": 'sk-"quoted"-1234', "OPENAI_BACKUP_API_KEYS": "backup-one-111,backup-two-222",
        "PREFECT_API_AUTH_STRING": "tradeflows:correct-horse", "MONGODB_URL": "mongodb://u:hunter2222@host/db",
        "TRADEFLOWS_SIGNING_KEY": "signing-signing", "MLFLOW_TRACKING_PASSWORD": "correct-horse",
        "TRADEFLOWS_NOTIFY_URLS": "slack://a/bbbbbbbb/c mailto://x:y@z.example", "SHORT_TOKEN": "abc",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, word)
    secrets = (
        "quoted",
        "backup-one-111",
        "backup-two-222",
        "correct-horse",
        "hunter2222",
        "signing-signing",
        "bbbbbbbb",
    )
    said = f"got {os.environ['OPENAI_API_KEY']} and backup-two-222 of mongodb://u:hunter2222@host/db; abc stays"
    deep = [{"auth": "correct-horse", "to": "slack://a/bbbbbbbb/c"}]
    record = made(said, fields={"event": said, "deep": deep})
    record.exc_info = (ValueError, ValueError("signing-signing backup-one-111"), None)
    text = JsonLines().format(record)
    assert not [one for one in secrets if one in text]
    assert "abc stays" in text and text.count("***") >= 6


def test_every_secret_setting_is_masked() -> None:
    from tasks.settings import secret_variables

    named = [name for name in secret_variables() if not name.endswith("_FILE")]
    assert len(named) > 5
    for name in named:
        assert secrets_of({name: "value-of-it"}) == ("value-of-it",), f"{name} is not taken for a secret"


# --- and back ------------------------------------------------------------------------------------


def test_a_line_is_readable_again() -> None:
    record = made(
        "stored", name="tradeflows", flow_run_id="01a1fed0-0194-7381-9778-73abb4b1463a", flow_run_name="ingest-1h"
    )
    record.fields = {"event": "stored", "added": 3, "why": "two words"}
    assert readable("worker   " + JsonLines().format(record)) == (
        'worker   2026-11-21T12:00:00Z INFO    ingest-1h 73abb4b1463a: stored added=3 why="two words"'
    )
    assert (
        readable(log_lines.line("up", level="info", logger="stack", at=AT)) == "2026-11-21T12:00:00Z INFO    stack: up"
    )


@pytest.mark.parametrize("text", ["", "plain", '{"time": ', '{"time": "x"}', '{"other": 1}', "[1]", '{"time": 1} more'])
def test_what_is_not_ours_stays_as_it_is(text: str) -> None:
    assert readable(text) == text


def test_logs_are_shown_as_text_also_of_several_parts(tmp_path: Path) -> None:
    from deployments import show_stack

    line = log_lines.line("hello", level="error", logger="x", at=AT, fields={"exception": "Traceback\n  deep"})
    for name in ("one", "two"):
        (tmp_path / f"{name}.log").write_text(f"plain\n{line}\n")
    out = io.StringIO()
    show_stack.tail(people(out), sorted(tmp_path.glob("*.log")), 5, follow=False)
    shown = "2026-11-21T12:00:00Z ERROR   x: hello\nTraceback\n  deep\n"
    assert out.getvalue() == f"one      plain\none      {shown}two      plain\ntwo      {shown}"


# --- a process whose every line is an object -----------------------------------------------------


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(one) for one in text.splitlines()]


def test_text_becomes_objects_and_objects_stay() -> None:
    under = io.StringIO()
    stream = JsonStream(under, "info", "prog", ())
    object_ = '{"time": "t", "level": "info"}'
    for part in ("half ", "a line\n", f"{object_}\n\n  \n", "10%\r50%\r100%\n", "no end"):
        assert stream.write(part) == len(part)
    assert under.getvalue().splitlines()[1] == object_
    stream.finish()
    stream.finish()
    found = lines_of(under.getvalue())
    assert [one.get("message") for one in found] == ["half a line", None, "100%", "no end"]
    assert {one.get("logger") for one in found} == {"prog", None}


def test_threads_do_not_mix_their_lines() -> None:
    under = io.StringIO()
    stream = JsonStream(under, "info", "prog", ())

    def talk(name: str) -> None:
        for at in range(200):
            stream.write(f"{name} {at}\n")

    threads = [threading.Thread(target=talk, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    said = sorted(one["message"] for one in lines_of(under.getvalue()))
    assert said == sorted(f"{name} {at}" for name in "abc" for at in range(200))


def test_a_line_without_end_does_not_grow_for_ever() -> None:
    under = io.StringIO()
    stream = JsonStream(under, "info", "prog", ())
    for _ in range(3):
        stream.write("x" * 50_000)
    assert len(under.getvalue()) > 90_000


@pytest.mark.parametrize(
    ("text", "expected"), [('{"a": 1}', True), ("{a}", False), ("[1]", False), ('{"a": 1', False), ("", False)]
)
def test_what_is_an_object(text: str, expected: bool) -> None:
    assert is_line(text) is expected


@pytest.mark.integration
def test_prints_warnings_logs_and_tracebacks_of_a_process_are_objects(tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(
        "import logging, sys, warnings\n"
        "print('hello', *sys.argv[1:])\n"
        "print('to the others', file=sys.stderr)\n"
        "warnings.warn('careful')\n"
        "logging.warning('no configuration')\n"
        "print('my secret is value-of-it')\n"
        "print('no end', end='')\n"
        "def fail():\n    raise RuntimeError('it broke')\n"
        "fail()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "deployments.json_process", "talker", "--flag", "word"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "MY_SECRET": "value-of-it"},
    )  # fmt: skip
    assert ended.returncode == 1
    out, err = lines_of(ended.stdout), lines_of(ended.stderr)
    assert [one["message"] for one in out] == [
        "hello --flag word",
        "my secret is ***",
        "no end",
    ]
    said = [one["message"] for one in err]
    assert "to the others" in said and any("careful" in one for one in said)
    assert "WARNING:root:no configuration" in said
    assert err[-1]["message"] == "RuntimeError: it broke" and err[-1]["level"] == "critical"
    assert "in fail" in err[-1]["exception"]


@pytest.mark.integration
def test_a_process_ends_with_the_code_that_it_would_have_had(tmp_path: Path) -> None:
    (tmp_path / "ender.py").write_text("import sys\nsys.exit(3)\n")
    command = [sys.executable, "-m", "deployments.json_process", "ender"]
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert subprocess.run(command, cwd=CHECKOUT, check=False, timeout=60, env=variables).returncode == 3


# --- what configures others ----------------------------------------------------------------------


def test_the_setting_names_the_file_that_prefect_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_LOGGING_SETTINGS_PATH", raising=False)
    monkeypatch.setenv("TRADEFLOWS_LOG_FORMAT", "json")
    named = Path(environment.defaults(tmp_path)["PREFECT_LOGGING_SETTINGS_PATH"])
    assert named.is_file()
    monkeypatch.setenv("TRADEFLOWS_LOG_FORMAT", "text")
    assert "PREFECT_LOGGING_SETTINGS_PATH" not in environment.defaults(tmp_path)


def test_our_logging_of_prefect_has_everything_that_prefect_s_own_has() -> None:
    """A new version's loggers would be silent otherwise."""
    import prefect

    theirs = yaml.safe_load((Path(prefect.__file__).parent / "logging" / "logging.yml").read_text())
    ours = yaml.safe_load((CHECKOUT / "tasks" / "prefect_logging.yml").read_text())
    assert ours["handlers"].keys() == theirs["handlers"].keys()
    assert ours["loggers"].keys() - {"tradeflows"} == theirs["loggers"].keys()
    for name, logger in theirs["loggers"].items():
        assert ours["loggers"][name] == logger, name
    assert ours["root"] == theirs["root"]
    for name in ("api", "worker_api"):
        assert ours["handlers"][name] == theirs["handlers"][name]
    for name in ("console", "debug"):
        assert ours["handlers"][name]["formatter"] == "json"


@pytest.mark.integration
def test_uvicorn_s_own_configuration_makes_json_once_it_is_changed() -> None:
    code = (
        "import logging, logging.config, uvicorn.config\n"
        "from deployments.json_process import _uvicorn_in_json\n"
        "_uvicorn_in_json()\n"
        "logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)\n"
        "logging.getLogger('uvicorn.error').error('down')\n"
        "logging.getLogger('uvicorn.access').info('%s - \"%s %s HTTP/%s\" %d', '::1', 'GET', '/', '1.1', 200)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60
    )
    assert [one["message"] for one in lines_of(ended.stderr)] == ["down"]
    assert [one["message"] for one in lines_of(ended.stdout)] == ['::1 - "GET / HTTP/1.1" 200']


@pytest.mark.integration
@pytest.mark.parametrize("file", ["tasks/prefect_logging.yml", "deployments/uvicorn_logging.yml"])
def test_the_configurations_make_json(file: str) -> None:
    code = (
        "import logging, logging.config, pathlib, string, sys, warnings, yaml\n"
        "text = pathlib.Path(sys.argv[1]).read_text()\n"
        "names = ('PREFECT_LOGGING_LEVEL', 'PREFECT_SERVER_LOGGING_LEVEL', 'PREFECT_INTERNAL_LOGGING_LEVEL')\n"
        "logging.config.dictConfig(yaml.safe_load(string.Template(text).substitute(dict.fromkeys(names, 'INFO'))))\n"
        "for name in ('uvicorn.error', 'prefect.flow_runs.x', 'somebody.else'):\n"
        "    logging.getLogger(name).warning('from %s', name)\n"
        "warnings.warn('careful')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, file], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=120
    )
    found = lines_of(ended.stderr)
    assert {one["logger"] for one in found} >= {"uvicorn.error", "somebody.else", "py.warnings"}
    assert {one["level"] for one in found} == {"warning"}
