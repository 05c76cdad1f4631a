"""One way to ask over HTTP: what is refused, what is waited for, and what each failure is called."""

from __future__ import annotations

import gzip
import json
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import http
from tasks.retry import LONGEST_WAIT, REQUEST, RetryPolicy, is_transient
from tasks.sources import ROWS
from trading.errors import (
    CircuitOpen,
    ConfigurationError,
    MalformedResponse,
    RateLimited,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)

VARIABLE = "TRADEFLOWS_EXCHANGE_URL"
KLINES = {"symbol": "BTCSIM", "interval": "1h"}
ONCE = RetryPolicy(0, 0.5, 8.0)


def get(url: str, path: str = "/x", **params: str | int) -> Any:
    """One try."""
    return ask(url, path, policy=ONCE, **params)


def ask(
    url: str,
    path: str = "/x",
    *,
    sleep: Callable[[float], None] | None = None,
    policy: RetryPolicy = REQUEST,
    guard: http.Guard | None = None,
    decoder: msgspec.json.Decoder[Any] = http.ANY_JSON,
    **params: str | int,
) -> Any:
    """As many tries as the policy allows; waiting fails the test unless ``sleep`` takes it."""
    with http.client(url, VARIABLE) as connection:
        return http.get_json(
            connection,
            path,
            params,
            variable=VARIABLE,
            decoder=decoder,
            weight=7,
            guard=guard,
            policy=policy,
            sleep=sleep or unexpected,
        )


def unexpected(seconds: float) -> None:
    pytest.fail(f"waited {seconds} seconds")


# --- the address ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["", "exchange.test", "exchange.test:443/api", "ftp://exchange.test", "file:///etc/passwd", "https://", "//x.test"],
)
def test_only_http_addresses_with_a_host(address: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{VARIABLE} must be an http or https address with a host"):
        http.client(address, VARIABLE)


@pytest.mark.parametrize("address", ["http://exchange.test:port", "http://exchange\x00.test"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{VARIABLE} is not an address .*looks like https://host"):
        http.client(address, VARIABLE)


@pytest.mark.parametrize("address", ["https://exchange.test", "http://127.0.0.1:8000", "HTTPS://Exchange.test/base"])
def test_addresses_that_will_do(address: str) -> None:
    with http.client(address, VARIABLE) as connection:
        assert connection.follow_redirects is False
        assert connection.timeout == http.TIMEOUT
    with http.client(address, VARIABLE, timeout=httpx.Timeout(3.0)) as connection:
        assert connection.timeout == httpx.Timeout(3.0)


def test_certificates_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(httpx, "Client", lambda **options: made.append(options["verify"]))
    http.client("https://exchange.test", VARIABLE)
    http.client("http://127.0.0.1:8000", VARIABLE)
    assert made[0] is True
    # nothing to check on plain http, and no TLS peer would pass
    assert (made[1].verify_mode, made[1].check_hostname) == (ssl.CERT_REQUIRED, True)
    assert made[1].cert_store_stats()["x509_ca"] == 0


@given(st.text(alphabet="ab1:/?#[]%& \\", max_size=12))
def test_a_password_in_the_address_is_refused_and_never_shown(junk: str) -> None:
    address = f"https://user:hunter{junk}2secret@exchange.test"
    with pytest.raises(ConfigurationError, match=f"{VARIABLE} holds a user name or password") as caught:
        http.client(address, VARIABLE)
    assert not {word for word in ("hunter", "secret", "user:") if word in str(caught.value)}


def test_a_user_name_alone_is_refused_too() -> None:
    with pytest.raises(ConfigurationError, match="user name or password"):
        http.client("https://user@exchange.test", VARIABLE)


# --- what is asked, what is answered -------------------------------------------------------------


def test_the_query_and_the_reply(stub: Any, http_reply: Any) -> None:
    server = stub([http_reply('{"a": [1, "ä"]}')])
    assert get(server.url, "/x/y", symbol="A&B", limit=5) == {"a": [1, "ä"]}
    assert server.paths == ["/x/y?symbol=A%26B&limit=5"]


def test_a_base_address_with_a_path_is_kept(stub: Any, http_reply: Any) -> None:
    server = stub([http_reply("1")])
    assert get(f"{server.url}/proxy") == 1
    assert server.paths == ["/proxy/x"]


def test_nobody_answers(closed_port: int) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        get(f"http://127.0.0.1:{closed_port}")
    assert f"no answer from 127.0.0.1:{closed_port} for /x (ConnectError" in str(caught.value)
    assert f"check that it runs and that {VARIABLE} is right" in str(caught.value)
    assert is_transient(caught.value)


def test_a_source_that_does_not_answer_in_time(sandbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", httpx.Timeout(0.2))
    sandbox.set_faults(hanging=1.0, hang_seconds=1.0)
    with pytest.raises(SourceUnavailable, match="ReadTimeout"):
        get(sandbox.url, "/api/v3/klines", **KLINES)


def test_a_reply_that_comes_in_drops(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def drops() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 -\r\nContent-Length: 1000\r\n\r\n"
        while True:
            yield b" "
            time.sleep(0.02)

    monkeypatch.setattr(http, "LONGEST_REPLY", 0.1)
    with pytest.raises(SourceUnavailable, match=r"/x took longer than 0\.1 seconds"):
        get(stub([drops]).url)


def test_the_connection_is_cut_in_the_middle(stub: Any, http_reply: Any) -> None:
    cut = http_reply(json.dumps(list(range(1000))))[:-500]
    with pytest.raises(SourceUnavailable, match="RemoteProtocolError") as caught:
        get(stub([cut]).url)
    assert is_transient(caught.value)


def test_the_connection_is_closed_without_a_word(stub: Any) -> None:
    with pytest.raises(SourceUnavailable, match="no answer from"):
        get(stub([b""]).url)


@pytest.mark.parametrize("body", ["<html>captive portal</html>", "", '{"a": 1', "[1, 2,", "[" * 100_000])
def test_a_reply_that_is_not_json(stub: Any, http_reply: Any, body: str) -> None:
    with pytest.raises(MalformedResponse, match="did not answer with JSON") as caught:
        get(stub([http_reply(body)]).url)
    assert body[:20] in str(caught.value)
    assert VARIABLE in str(caught.value)
    assert len(str(caught.value)) < 500
    assert is_transient(caught.value)


def test_bytes_that_are_no_text(stub: Any, http_reply: Any) -> None:
    with pytest.raises(MalformedResponse, match="did not answer with JSON"):
        get(stub([http_reply(b"\xff\xfe\x00\x01")]).url)


def test_a_truncated_reply_of_the_exchange(sandbox: Any) -> None:
    sandbox.set_faults(truncated=1.0)
    with pytest.raises(MalformedResponse, match=r"/api/v3/klines did not answer with JSON .*\[\[15"):
        get(sandbox.url, "/api/v3/klines", **KLINES)


def test_compressed_replies_are_read_and_broken_ones_are_not(stub: Any, http_reply: Any) -> None:
    assert get(stub([http_reply(gzip.compress(b"[1]"), Content_Encoding="gzip")]).url) == [1]
    with pytest.raises(MalformedResponse, match="says is compressed and is not"):
        get(stub([http_reply(b"[1]", Content_Encoding="gzip")]).url)


def test_an_endless_reply_is_cut_off(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 -\r\n\r\n["
        while True:
            sent.append(b"1," * 4096)
            yield sent[-1]

    monkeypatch.setattr(http, "LARGEST_REPLY", 1_000_000)
    with pytest.raises(MalformedResponse, match="sent more than 1000000 bytes; ask for fewer candles"):
        get(stub([endless]).url)
    # what fits into the buffers of two sockets on top
    assert sum(map(len, sent)) < 40_000_000


def test_a_reply_of_the_largest_size_still_passes(stub: Any, http_reply: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LARGEST_REPLY", 100)
    assert get(stub([http_reply("1".ljust(100))]).url) == 1
    with pytest.raises(MalformedResponse, match="more than 100 bytes"):
        get(stub([http_reply("1".ljust(101))]).url)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
def test_server_errors_may_pass(stub: Any, http_reply: Any, status: int) -> None:
    server = stub([http_reply("busy", status)])
    with pytest.raises(SourceUnavailable, match=f"/x answered {status}: 'busy'") as caught:
        get(server.url)
    assert is_transient(caught.value)
    assert len(server.paths) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_refusals_are_final_and_say_what_was_said(stub: Any, http_reply: Any, status: int) -> None:
    server = stub([http_reply("not for you", status)])
    with pytest.raises(SourceRefused) as caught:
        ask(server.url)
    assert len(server.paths) == 1
    # one sentence, not the text of a tuple
    assert str(caught.value).startswith("127.0.0.1:")
    assert str(caught.value).endswith(f"/x answered {status}: 'not for you'")
    assert (caught.value.status, caught.value.reply) == (status, b"not for you")
    assert not is_transient(caught.value)


def test_a_long_refusal_is_shortened(stub: Any, http_reply: Any) -> None:
    with pytest.raises(SourceRefused) as caught:
        get(stub([http_reply("no " * 1000, 400)]).url)
    assert len(str(caught.value)) < 200
    assert str(caught.value).endswith("…'")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(stub: Any, http_reply: Any, status: int) -> None:
    elsewhere = stub([http_reply('{"serverTime": 1}')])
    with pytest.raises(SourceRefused, match=f"answered {status}"):
        ask(stub([http_reply("moved", status, Location=f"{elsewhere.url}/x")]).url)
    assert elsewhere.paths == []


# --- asked again ---------------------------------------------------------------------------------


def within(waited: list[float], delays: list[float]) -> bool:
    """Whether each wait is its delay or a little more: half a second at most, half of a shorter one."""
    return len(waited) == len(delays) and all(
        delay <= wait <= delay + REQUEST.jitter * min(delay, 1.0) for wait, delay in zip(waited, delays, strict=True)
    )


def test_the_policy_of_one_request() -> None:
    assert (REQUEST.attempts, REQUEST.delays) == (4, [0.5, 1.0, 2.0, 4.0])
    assert REQUEST.longest == 8.0


def test_what_passes_in_time_does_not_show(stub: Any, http_reply: Any) -> None:
    waited: list[float] = []
    troubles = [
        b"",
        http_reply("busy", 503),
        http_reply("[1, 2,"),
        http_reply(b"[1]", Content_Encoding="gzip"),
        http_reply("[1]"),
    ]
    server = stub(troubles)
    assert ask(server.url, sleep=waited.append) == [1]
    assert len(server.paths) == 5
    assert within(waited, REQUEST.delays)


def test_an_endless_trouble_is_raised_after_the_last_try(stub: Any, http_reply: Any) -> None:
    waited: list[float] = []
    server = stub([*[http_reply("busy", 500)] * 4, http_reply("still busy", 502)])
    with pytest.raises(SourceUnavailable, match="answered 502: 'still busy'"):
        ask(server.url, sleep=waited.append)
    assert len(server.paths) == 5
    assert within(waited, REQUEST.delays)


def test_a_connection_that_is_refused_is_tried_again(closed_port: int) -> None:
    waited: list[float] = []
    with pytest.raises(SourceUnavailable, match="ConnectError"):
        ask(f"http://127.0.0.1:{closed_port}", sleep=waited.append)
    assert within(waited, REQUEST.delays)


def test_a_timeout_is_tried_again(sandbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(http, "TIMEOUT", httpx.Timeout(0.2))
    sandbox.set_faults(hanging=1.0, hang_seconds=0.6, only=1)
    assert len(ask(sandbox.url, "/api/v3/klines", sleep=waited.append, **KLINES)) == 500
    assert within(waited, [0.5])
    assert sandbox.state.requests == 2


def test_replies_that_say_something_else_are_not_asked_for_again(stub: Any, http_reply: Any) -> None:
    """It was whole, so it would say the same once more."""
    server = stub([http_reply('[[1, "2", "3", "4", "5", "6"], [1, "2", "3", null, "5", "6"]]')])
    with pytest.raises(MalformedResponse, match=r"did not answer as the protocol says \(.*`\$\[1\]\[3\]`\): .\[\[1,"):
        ask(server.url, decoder=ROWS)
    assert len(server.paths) == 1


def test_a_reply_that_is_too_large_is_not_asked_for_again(
    stub: Any, http_reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LARGEST_REPLY", 100)
    server = stub([http_reply("1".ljust(101))])
    with pytest.raises(MalformedResponse, match="more than 100 bytes"):
        ask(server.url)
    assert len(server.paths) == 1


def test_the_waits_differ_from_one_client_to_the_next(closed_port: int) -> None:
    waited: list[float] = []
    for _ in range(5):
        with pytest.raises(SourceUnavailable):
            ask(f"http://127.0.0.1:{closed_port}", sleep=waited.append, policy=RetryPolicy(1, 4.0, 8.0))
    assert len(set(waited)) == 5
    assert all(4.0 <= wait <= 4.5 for wait in waited)


def test_without_jitter_the_waits_are_the_delays(closed_port: int) -> None:
    waited: list[float] = []
    with pytest.raises(SourceUnavailable):
        ask(f"http://127.0.0.1:{closed_port}", sleep=waited.append, policy=RetryPolicy(5, 1.0, 6.0, jitter=0.0))
    assert waited == [1.0, 2.0, 4.0, 6.0, 6.0]


# --- rate limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 418])
def test_a_rate_limit_is_waited_out(stub: Any, http_reply: Any, status: int) -> None:
    waited: list[float] = []
    server = stub([http_reply("slow", status, Retry_After="1.5"), http_reply("7")])
    assert ask(server.url, sleep=waited.append) == 7
    assert within(waited, [1.5])
    assert len(server.paths) == 2


def test_rate_limits_one_after_the_other_are_each_waited_out(stub: Any, http_reply: Any) -> None:
    waited: list[float] = []
    told = [20.0, 3.0, 0.25, 30.0]
    replies = [http_reply("slow", 429, Retry_After=str(seconds)) for seconds in told]
    assert ask(stub([*replies, http_reply("7")]).url, sleep=waited.append) == 7
    assert within(waited, told)  # neither less than asked for, nor the policy's delays


def test_a_rate_limit_that_stays_is_raised(stub: Any, http_reply: Any) -> None:
    waited: list[float] = []
    server = stub([*[http_reply("slow", 429, Retry_After="2")] * 4, http_reply("slower", 429, Retry_After="9")])
    with pytest.raises(RateLimited, match="answered 429: 'slower'; slow down") as caught:
        ask(server.url, sleep=waited.append)
    assert within(waited, [2.0] * 4)
    assert caught.value.retry_after == 9.0
    assert len(server.paths) == 5
    assert is_transient(caught.value)


def test_a_wait_that_turns_long_is_not_begun(stub: Any, http_reply: Any) -> None:
    waited: list[float] = []
    server = stub([http_reply("slow", 429, Retry_After="2"), http_reply("ban", 418, Retry_After="7200")])
    with pytest.raises(RateLimited, match="answered 418: 'ban'") as caught:
        ask(server.url, sleep=waited.append)
    assert within(waited, [2.0])
    assert caught.value.retry_after == 7200.0
    assert len(server.paths) == 2


@pytest.mark.parametrize(("header", "known"), [("31", 31.0), ("3600", 3600.0), ("1e400", float("inf"))])
def test_a_long_wait_is_left_to_others(stub: Any, http_reply: Any, header: str, known: float) -> None:
    server = stub([http_reply("slow", 429, Retry_After=header)])
    with pytest.raises(RateLimited) as caught:
        ask(server.url)
    assert caught.value.retry_after == known
    assert len(server.paths) == 1


@pytest.mark.parametrize(
    "header",
    [
        None,
        "soon",
        "nan",
        "",
        "Wed, 21 Oct 2026 07:28:00",  # without a zone
        "Wed, 32 Oct 2026 07:28:00 GMT",
        "Wed, 21 Oct 99999999999999999999 07:28:00 GMT",
        "Wed, 21 Oct 2026 07:28:00 +99999999999999999999",
    ],
)
def test_a_rate_limit_that_does_not_say_how_long(stub: Any, http_reply: Any, header: str | None) -> None:
    waited: list[float] = []
    server = stub([http_reply("slow", 429, **({} if header is None else {"Retry_After": header}))])
    with pytest.raises(RateLimited) as caught:
        ask(server.url, sleep=waited.append)
    assert caught.value.retry_after is None
    assert within(waited, REQUEST.delays)  # like any other trouble


def test_a_wait_may_be_given_as_a_date(stub: Any, http_reply: Any) -> None:
    waited: list[float] = []
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert ask(stub([http_reply("slow", 429, Retry_After=soon), http_reply("7")]).url, sleep=waited.append) == 7
    assert 15 < waited[0] <= 20.5

    later = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    server = stub([http_reply("slow", 429, Retry_After=later)])
    with pytest.raises(RateLimited) as caught:
        ask(server.url)
    assert caught.value.retry_after == pytest.approx(7200, abs=5)
    assert len(server.paths) == 1


@pytest.mark.parametrize("header", ["-5", "0", "-inf", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_wait_is_never_negative(stub: Any, http_reply: Any, header: str) -> None:
    waited: list[float] = []
    ask(stub([http_reply("", 429, Retry_After=header), http_reply("1")]).url, sleep=waited.append)
    assert waited == [0.0]


def test_the_longest_wait_is_still_waited(stub: Any, http_reply: Any) -> None:
    waited: list[float] = []
    ask(stub([http_reply("", 429, Retry_After="30"), http_reply("1")]).url, sleep=waited.append)
    assert LONGEST_WAIT == 30.0
    assert within(waited, [LONGEST_WAIT])


@given(st.text(st.characters(max_codepoint=0x7E, min_codepoint=0x20), max_size=40))
def test_no_header_is_an_error(header: str) -> None:
    seconds = http.retry_after(header)
    assert seconds is None or seconds >= 0


def test_the_sandbox_s_rate_limit(sandbox: Any) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        sandbox.set_faults()

    sandbox.set_faults(rate_limited=1.0, retry_after=12)
    assert len(ask(sandbox.url, "/api/v3/klines", sleep=wait, **KLINES)) == 500
    assert within(waited, [12.0])
    assert sandbox.state.replies == {"klines": {"429": 1, "200": 1}}


# --- the guard -----------------------------------------------------------------------------------


class Recorder:
    """A guard that writes down what it is told, and lets so many requests pass."""

    def __init__(self, lets: int = 100) -> None:
        self.told: list[object] = []
        self._lets = lets

    def admit(self, weight: int) -> None:
        if not self._lets:
            raise CircuitOpen("left alone", datetime(2030, 1, 1, tzinfo=UTC))
        self._lets -= 1
        self.told.append(weight)

    def heard(self, error: SourceError | None) -> None:
        self.told.append(None if error is None else type(error))


def ignore(seconds: float) -> None:
    """No wait."""


def test_the_guard_is_asked_before_each_try_and_told_of_each(stub: Any, http_reply: Any) -> None:
    guard = Recorder()
    server = stub([http_reply("", 503), http_reply("", 429, Retry_After="1"), http_reply("["), http_reply("5")])
    assert ask(server.url, sleep=ignore, guard=guard) == 5
    assert guard.told == [7, SourceUnavailable, 7, RateLimited, 7, http._Damaged, 7, None]


@pytest.mark.parametrize(
    ("reply", "status", "kind"), [("no", 403, SourceRefused), ("{}", 200, MalformedResponse), ("1", 200, None)]
)
def test_the_guard_hears_of_an_end_without_a_second_try(
    stub: Any, http_reply: Any, reply: str, status: int, kind: type[SourceError] | None
) -> None:
    guard = Recorder()
    server = stub([http_reply(reply, status)])
    numbers = msgspec.json.Decoder(int)
    if kind is None:
        assert ask(server.url, guard=guard, decoder=numbers) == 1
    else:
        with pytest.raises(kind):
            ask(server.url, guard=guard, decoder=numbers)
    assert len(guard.told) == 2
    assert guard.told[0] == 7
    heard = guard.told[1]
    assert heard is None if kind is None else isinstance(heard, type) and issubclass(heard, kind)


def test_nothing_is_asked_while_the_guard_lets_nobody_pass(stub: Any, http_reply: Any) -> None:
    guard = Recorder(lets=0)
    server = stub([http_reply("5")])
    with pytest.raises(CircuitOpen):
        ask(server.url, guard=guard)  # nor is it waited for
    assert (server.paths, guard.told) == ([], [])


def test_a_guard_that_closes_between_two_tries_ends_them(stub: Any, http_reply: Any) -> None:
    guard = Recorder(lets=2)
    server = stub([http_reply("busy", 503)])
    with pytest.raises(CircuitOpen):
        ask(server.url, sleep=ignore, guard=guard)
    assert len(server.paths) == 2
    assert guard.told == [7, SourceUnavailable, 7, SourceUnavailable]
