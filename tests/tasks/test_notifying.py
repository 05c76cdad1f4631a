"""Notifications against a real receiver: delivered once, repeated where they failed, held back, and never a token."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.notification_targets import masked, targets
from tasks.notification_texts import TEXT, Message, Severity, of_disabled, of_run, plain
from tasks.notifying import is_quiet, notify, notify_task, tell_held
from tasks.settings import Settings, load_settings
from tasks.store import NOTIFICATIONS, Store, open_store
from trading.errors import ConfigurationError, NotificationFailed

NOW = datetime(2024, 5, 6, 12, 0, tzinfo=UTC)
NIGHT = NOW.replace(hour=23)
# what must never be seen: a password, a token in the path, one in a header
PASSWORD, TOKEN, HEADER = "hunter2secret", "T0kenABCDEFGH1234567890", "h34derToken99"
CHECKOUT = Path(__file__).parents[2]


@dataclass
class Receiver:
    """A webhook: answers each message with the next of ``replies`` (a status), the last one from then on."""

    port: int
    replies: list[int] = field(default_factory=lambda: [200])
    heard: list[dict[str, Any]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    held: bool = False

    def address(self, threshold: str = "") -> str:
        return f"{threshold}json://user:{PASSWORD}@127.0.0.1:{self.port}/{TOKEN}?+X-Token={HEADER}"

    @property
    def titles(self) -> list[str]:
        return [one["title"] for one in self.heard]


@pytest.fixture
def receiver() -> Iterator[Callable[[], Receiver]]:
    servers = []
    made: list[Receiver] = []

    def start() -> Receiver:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if mine.held:
                    mine.hold.wait(20)
                mine.heard.append(json.loads(body))
                self.send_response(mine.replies[min(len(mine.heard), len(mine.replies)) - 1])
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        mine = Receiver(server.server_address[1])
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        made.append(mine)
        return mine

    yield start
    for one in made:
        one.hold.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Settings]:
    def build(*addresses: str, **values: str) -> Settings:
        monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path))
        monkeypatch.setenv("TRADEFLOWS_NOTIFY_TIMEOUT", "5")
        if addresses:
            monkeypatch.setenv("TRADEFLOWS_NOTIFY_URLS", " ".join(addresses))
        for name, value in values.items():
            monkeypatch.setenv(f"TRADEFLOWS_NOTIFY_{name.upper()}", value)
        return load_settings()

    return build


def message(text: str = "It failed.", severity: Severity = Severity.WARNING, key: str = "run|train") -> Message:
    return Message(severity, "train failed", text, key)


def record(store: Store, one: Message) -> dict[str, Any]:
    found = store.documents.get(NOTIFICATIONS, one.id)
    assert found is not None
    return found


def test_a_message_is_delivered_once_in_the_window_and_what_came_meanwhile_is_told_after(
    store: Store, receiver: Callable[[], Receiver], configured: Callable[..., Settings]
) -> None:
    one = receiver()
    settings = configured(one.address())
    assert notify(store, settings, message(), now=NOW).outcome == "delivered"
    assert one.heard == [
        {**one.heard[0], "title": "[warning] train failed", "message": "It failed.", "type": "warning"}
    ]
    for minutes in (1, 59):
        assert notify(store, settings, message(), now=NOW + timedelta(minutes=minutes)).outcome == "suppressed"
    assert notify(store, settings, message(key="run|ingest"), now=NOW).outcome == "delivered"
    # what has become worse is told
    assert notify(store, settings, message(severity=Severity.CRITICAL), now=NOW).outcome == "delivered"
    again = notify(store, settings, message(), now=NOW + timedelta(minutes=60))
    assert (again.outcome, again.untold) == ("delivered", 2)
    assert one.heard[-1]["message"] == "It failed.\n\nThe same came 2 more times that were not told."
    assert len(one.heard) == 4
    assert record(store, message())["untold"] == 0


def test_a_failed_delivery_says_so_and_the_next_attempt_tells_only_those_who_were_not_reached(
    store: Store, receiver: Callable[[], Receiver], configured: Callable[..., Settings]
) -> None:
    well, ill = receiver(), receiver()
    ill.replies = [500, 200]
    settings = configured(well.address(), ill.address())
    with pytest.raises(NotificationFailed, match=r"1 of 2 addresses .* 2 \(json\): answered 500") as caught:
        notify(store, settings, message(), now=NOW)
    assert (caught.value.targets, caught.value.transient) == (("2 (json)",), True)
    assert record(store, message())["state"] == "failed"
    assert notify(store, settings, message(), now=NOW).targets == ("2 (json)",)
    assert (len(well.heard), len(ill.heard)) == (1, 2)
    assert ill.heard[-1]["message"] == "It failed."
    assert notify(store, settings, message(), now=NOW).outcome == "suppressed"


def test_an_address_that_is_dead_or_too_slow_fails_in_time(
    store: Store, receiver: Callable[[], Receiver], configured: Callable[..., Settings], closed_port: int
) -> None:
    slow = receiver()
    slow.held = True
    settings = configured(f"json://127.0.0.1:{closed_port}/{TOKEN}", slow.address(), timeout="0.2")
    with pytest.raises(NotificationFailed, match=r"2 of 2 .* 1 \(json\): no answer.*2 \(json\): no answer"):
        notify(store, settings, message(), now=NOW)


def test_an_address_that_answers_in_drops_is_not_waited_for(
    store: Store, stub: Callable[..., Any], configured: Callable[..., Settings]
) -> None:
    never = threading.Event()

    def drops() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        while not never.wait(0.03):
            yield b"X-Drop: 1\r\n"

    slow = stub({"/": drops})
    settings = configured(slow.url.replace("http", "json"), timeout="0.1")
    try:
        with pytest.raises(NotificationFailed, match=r"1 \(json\): no answer within 0\.2 s"):
            notify(store, settings, message(), now=NOW)
    finally:
        never.set()


@pytest.mark.parametrize(
    "address",
    [
        "mailto://bot:pa55word@example.org?to=team@example.org",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#general",
        "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js",
        "critical=tgram://123456789:abcdefg_hijklmnop/12315544",
        "jsons://user:password@example.org/hook",
    ],
)
def test_the_usual_services_are_understood(address: str, configured: Callable[..., Settings]) -> None:
    [target] = targets(configured(address))
    assert target.name == f"1 ({address.split('://', maxsplit=1)[0].removeprefix('critical=')})"


def test_a_store_that_is_down_does_not_keep_a_message_back(
    receiver: Callable[[], Receiver],
    configured: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = receiver()
    configured(one.address())
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path / "file"))
    assert notify_task.fn("warning", "train failed", "The store is down.", "key", NOW).outcome == "delivered"
    assert one.titles == ["[warning] train failed"]


def test_quiet_hours_hold_back_what_is_not_critical_and_tell_it_in_the_morning(
    store: Store, receiver: Callable[[], Receiver], configured: Callable[..., Settings]
) -> None:
    one = receiver()
    settings = configured(one.address(), quiet="22:00-06:00")
    for minutes in (0, 5):
        assert notify(store, settings, message(), now=NIGHT + timedelta(minutes=minutes)).outcome == "held"
    assert notify(store, settings, message(key="b", severity=Severity.INFO), now=NIGHT).outcome == "held"
    assert tell_held(store, settings, now=NIGHT) is None
    assert one.heard == []
    assert notify(store, settings, message(severity=Severity.CRITICAL), now=NIGHT).outcome == "delivered"
    morning = NIGHT + timedelta(hours=7)
    told = tell_held(store, settings, now=morning)
    assert told is not None
    assert told.outcome == "delivered"
    assert one.titles == ["[critical] train failed", "[warning] 2 messages of the quiet hours"]
    assert sorted(one.heard[-1]["message"].splitlines()) == ["- train failed", "- train failed (2 times)"]
    assert tell_held(store, settings, now=morning) is None


def test_each_address_has_its_threshold_and_without_any_that_wants_it_the_message_is_on_record(
    store: Store,
    receiver: Callable[[], Receiver],
    configured: Callable[..., Settings],
    caplog: pytest.LogCaptureFixture,
) -> None:
    worst, usual = receiver(), receiver()
    settings = configured(worst.address("critical="), usual.address(), threshold="warning")
    assert [target.threshold for target in targets(settings)] == [Severity.CRITICAL, Severity.WARNING]
    assert notify(store, settings, message(), now=NOW).targets == ("2 (json)",)
    assert notify(store, settings, message(severity=Severity.CRITICAL), now=NOW).targets == ("1 (json)", "2 (json)")
    with caplog.at_level(logging.WARNING):
        assert notify(store, settings, message(severity=Severity.INFO), now=NOW).outcome == "nobody"
    assert "nobody to tell" in caplog.text
    assert record(store, message(severity=Severity.INFO))["state"] == "nobody"
    assert (len(worst.heard), len(usual.heard)) == (1, 2)


def test_without_addresses_messages_are_logged_and_recorded(
    store: Store, configured: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert notify(store, configured(), message(), now=NOW).outcome == "nobody"
    assert "TRADEFLOWS_NOTIFY_URLS is not set" in caplog.text
    assert record(store, message())["title"] == "train failed"


def test_many_at_once_tell_it_once(
    tmp_path: Path, receiver: Callable[[], Receiver], configured: Callable[..., Settings]
) -> None:
    one = receiver()
    settings = configured(one.address())
    count = 6
    barrier, outcomes = threading.Barrier(count), []

    def tell() -> None:
        with open_store(tmp_path) as mine:
            barrier.wait(20)
            outcomes.append(notify(mine, settings, message(), now=NOW).outcome)

    threads = [threading.Thread(target=tell) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["delivered"] + ["suppressed"] * (count - 1)
    assert len(one.heard) == 1
    with open_store(tmp_path) as opened:
        assert record(opened, message())["untold"] == count - 1


WORKER = """
import sys
from datetime import datetime
from pathlib import Path
from tasks.notification_texts import Message, Severity
from tasks.notifying import notify
from tasks.settings import load_settings
from tasks.store import open_store
with open_store(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    message = Message(Severity.WARNING, "train failed", "It failed.", "run|train")
    print(notify(store, load_settings(), message, now=datetime.fromisoformat(sys.argv[2])).outcome)
"""


@pytest.mark.integration
def test_two_processes_tell_it_once(
    tmp_path: Path, receiver: Callable[[], Receiver], configured: Callable[..., Settings]
) -> None:
    one = receiver()
    configured(one.address())
    with open_store(tmp_path):
        pass
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), NOW.isoformat()],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sorted(said) == ["delivered", "suppressed"]
    assert len(one.heard) == 1


@pytest.mark.parametrize("kind", ["delivered", "refused", "dead"])
def test_no_secret_is_in_any_error_log_or_document(
    kind: str,
    store: Store,
    receiver: Callable[[], Receiver],
    configured: Callable[..., Settings],
    closed_port: int,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    one = receiver()
    one.replies = [404 if kind == "refused" else 200]
    address = one.address().replace(f":{one.port}", f":{closed_port}") if kind == "dead" else one.address()
    settings = configured(address)
    leaking = message(f"ConnectError: {address} and {TOKEN}, mongodb://root:s3same@db/admin")
    said = ""
    elsewhere: list[str] = []
    # what the program's own handlers would get to see
    handler = logging.Handler()
    handler.emit = lambda line: elsewhere.append(line.name)  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("apprise").setLevel(logging.DEBUG)
        logging.getLogger("urllib3").setLevel(logging.DEBUG)
        try:
            said = repr(notify(store, settings, leaking, now=NOW))
        except NotificationFailed as error:
            said = f"{error} {error!r} {error.targets} {error.__cause__!r} {error.__context__!r}"
    logging.getLogger().removeHandler(handler)
    assert "apprise" not in elsewhere
    assert ("NotificationFailed" in said) == (kind != "delivered")
    seen = [said, caplog.text, *capfd.readouterr(), repr(settings), repr(targets(settings)), str(one.heard)]
    seen += [str(record(store, leaking))]
    for secret in (PASSWORD, TOKEN, HEADER, "s3same"):
        assert [text for text in seen if secret in text] == []
    assert "mongodb://root:***@db/admin" in record(store, leaking)["text"]


@pytest.mark.parametrize(
    "addresses",
    [f"nosuchscheme://{TOKEN}", f"slack://{TOKEN}", TOKEN, f"loud=json://{TOKEN}", f"json://ok.example {TOKEN}"],
)
def test_an_address_that_is_none_is_refused_by_number_and_without_itself(
    addresses: str, configured: Callable[..., Settings]
) -> None:
    with pytest.raises(ConfigurationError, match=r"address [12]") as caught:
        targets(configured(addresses))
    assert TOKEN not in str(caught.value)


def test_a_message_goes_out_without_the_store(
    receiver: Callable[[], Receiver], configured: Callable[..., Settings]
) -> None:
    one = receiver()
    settings = configured(one.address(), quiet="00:00-23:59")
    assert [notify(None, settings, message(), now=NOW).outcome for _ in range(2)] == ["delivered"] * 2
    assert len(one.heard) == 2


def test_other_secrets_of_the_settings_are_masked(
    monkeypatch: pytest.MonkeyPatch, configured: Callable[..., Settings]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-first-key")
    monkeypatch.setenv("OPENAI_BACKUP_API_KEYS", "sk-second-key, sk-third-key")
    monkeypatch.setenv("MONGODB_URL", "mongodb://u:pa55word@db:27017")
    settings = configured()
    said = masked("sk-first-key sk-second-key sk-third-key pa55word at db:27017, train failed", settings)
    assert said == "*** *** *** *** at db:27017, train failed"


def test_texts_are_plain_whatever_comes_into_them() -> None:
    evil = "x\r\nBcc: all@there.example\x1b[31m <!channel> <script>alert(1)</script> [safe](http://evil) @everyone ```"
    told = of_run("failed", Severity.WARNING, evil, "run", evil, "http://127.0.0.1/runs/1", NOW)
    for part in (plain(told.title, one_line=True), plain(told.text)):
        for bad in ("\r", "\x1b", "<!", "<s", "</", "](", "@everyone", "```"):
            assert bad not in part
    assert "\n" not in plain(told.title, one_line=True)
    assert "It was due at 2024-05-06 12:00 UTC." in told.text
    assert "rsi" in of_disabled("rsi", ["a"], NOW).title


@settings(max_examples=60)
@given(st.text(), st.integers(10, 60), st.booleans())
def test_plain_text_is_short_and_plain_already(text: str, longest: int, one_line: bool) -> None:
    said = plain(text, longest, one_line=one_line)
    assert len(said) <= longest
    assert plain(plain(text)) == plain(text)
    assert not any(sign in said for sign in "\r\x00\x1b\u202e")


@settings(max_examples=60)
@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439))
def test_quiet_hours_and_their_complement_share_no_minute(start: int, end: int, at: int) -> None:
    def clock(minutes: int) -> str:
        return f"{minutes // 60:02d}:{minutes % 60:02d}"

    now = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=at)
    inside = is_quiet(f"{clock(start)}-{clock(end)}", now)
    # independent: minutes from the start, around the clock
    assert inside == ((at - start) % 1440 < (end - start) % 1440)
    assert not is_quiet("", now)


def test_the_longest_text_is_cut() -> None:
    assert len(plain("x" * 2 * TEXT)) == TEXT
