"""Which hosts may be talked to, by their names, by their addresses, and by whoever answers in the end."""

from __future__ import annotations

import gc
import ipaddress
import socket
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import addresses, http
from tasks.addresses import ANYWHERE, Access, checked_url, without_login
from tasks.retry import is_transient
from tasks.settings import load_settings
from tasks.sources import source_of
from trading.errors import ConfigurationError

VARIABLE = "ENGINE_URL"
PRODUCTION = Access(public_only=True)
PUBLIC = "93.184.215.14"


def answering(monkeypatch: pytest.MonkeyPatch, *found: str) -> list[str]:
    """Lets every name resolve to these addresses; the names that were asked for."""
    asked: list[str] = []

    def resolve(host: str) -> list[addresses.Ip]:
        asked.append(host)
        return [ipaddress.ip_address(one) for one in found]

    monkeypatch.setattr(addresses, "_resolve", resolve)
    return asked


def passes(url: str, access: Access) -> bool:
    try:
        return str(checked_url(url, VARIABLE, access).host) != ""
    except ConfigurationError as error:
        assert VARIABLE in str(error)
        assert "TRADEFLOWS_ALLOWED_HOSTS" in str(error)
        assert not is_transient(error)
        return False


# --- by the address ------------------------------------------------------------------------------

SPECIAL = [
    "127.0.0.1",
    "127.9.9.9",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",  # carriers' networks
    "169.254.169.254",  # metadata of cloud machines
    "0.0.0.0",
    "0.1.2.3",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fec0::1]",
    "[ff02::1]",
    "[2001:db8::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[::127.0.0.1]",
    "[64:ff9b::10.0.0.1]",  # through NAT64
    "[64:ff9b::a9fe:a9fe]",
    "[2002:7f00:1::]",  # through 6to4
]
# what getaddrinfo, and so the connection, makes of 127.0.0.1 and of 169.254.169.254
SPELLINGS = ["2130706433", "0x7f.1", "0x7f000001", "127.1", "0", "2852039166", "0xa9fea9fe"]
OPEN = [PUBLIC, "1.1.1.1", "[2606:4700::1111]", "[::ffff:1.1.1.1]", "[64:ff9b::1.1.1.1]", "[2002:101:101::]"]


@pytest.mark.parametrize("host", SPECIAL + SPELLINGS)
def test_in_production_no_private_or_special_address(host: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{VARIABLE} leads to .* a private or special address; in produc"):
        checked_url(f"http://{host}:8000/api", VARIABLE, PRODUCTION)
    assert passes(f"http://{host}:8000/api", ANYWHERE)  # in development it is what one has


@pytest.mark.parametrize("host", OPEN)
def test_in_production_public_addresses_pass(host: str) -> None:
    assert passes(f"https://{host}", PRODUCTION)


@pytest.mark.parametrize("host", ["0177.0.0.1", "127.0.0.256", "[::1", "[::ffff:127.0.0.1.5]"])
def test_an_address_that_is_none(host: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{VARIABLE} is not an address"):
        checked_url(f"http://{host}/", VARIABLE, PRODUCTION)


@given(st.ip_addresses(v=4))
def test_every_ipv4_address_is_judged_alike_in_all_its_spellings(ip: ipaddress.IPv4Address) -> None:
    number = int(ip)
    spellings = [
        f"{ip}",
        f"[::ffff:{ip}]",
        f"[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]",
        f"[64:ff9b::{ip}]",
        f"[2002:{number >> 16:x}:{number & 0xFFFF:x}::1]",
        f"{number}",
        f"{number:#x}",
        f"{number >> 24:#x}.{number & 0xFFFFFF}",
    ]
    verdicts = {spelling: passes(f"http://{spelling}", PRODUCTION) for spelling in spellings}
    assert set(verdicts.values()) == {ip.is_global and not ip.is_multicast}, verdicts


@given(st.ip_addresses())
def test_a_private_address_never_passes(ip: addresses.Ip) -> None:
    host = f"[{ip}]" if ip.version == 6 else f"{ip}"
    if ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        plain = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        assert not passes(f"http://{host}", PRODUCTION) or (plain is not None and plain.is_global)


# --- by the name ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "LocalHost"])
def test_a_name_is_judged_by_what_it_resolves_to(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"leads to localhost at (127\.0\.0\.1|::1), a private"):
        checked_url(f"http://{host}", VARIABLE, PRODUCTION)


def test_every_address_of_a_name_must_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (["10.0.0.1"], [PUBLIC, "10.0.0.1"], ["10.0.0.1", PUBLIC], ["2606:4700::1111", "::1"]):
        answering(monkeypatch, *found)
        assert not passes("https://exchange.test", PRODUCTION)
    answering(monkeypatch, PUBLIC, "2606:4700::1111")
    assert passes("https://exchange.test", PRODUCTION)


def test_a_name_that_does_not_resolve_is_left_to_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch)
    assert passes("https://exchange.test", PRODUCTION)
    assert not passes("https://exchange.test", Access(("10.0.0.0/8",)))  # nothing says that it is in there


@pytest.mark.parametrize("host", ["a" * 64, "a..b", f"{'a' * 64}.test"])
def test_a_name_that_none_may_have_does_not_resolve(host: str) -> None:
    assert addresses._resolve(host) == []
    assert not passes(f"http://{host}", Access(("other.test",), public_only=True))


def test_a_resolver_that_fails_is_no_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert addresses._resolve("exchange.test") == []


def test_a_zone_in_an_address_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1%eth0", 0, 0, 2))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    assert addresses._resolve("exchange.test") == [ipaddress.ip_address("fe80::1")]
    assert not passes("http://exchange.test", PRODUCTION)


def test_where_everything_is_allowed_no_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, "10.0.0.1")
    assert passes("http://exchange.test", ANYWHERE)
    assert passes("http://exchange.test", Access(("exchange.test",), public_only=True))
    assert asked == []
    assert not passes("http://exchange.test", PRODUCTION)
    assert asked == ["exchange.test"]


# --- the list ------------------------------------------------------------------------------------


@pytest.mark.parametrize("public_only", [False, True])
@pytest.mark.parametrize(
    ("allowed", "host"),
    [
        ("exchange.test", "exchange.test"),
        ("exchange.test", "EXCHANGE.Test"),
        ("Exchange.TEST", "exchange.test"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "2130706433"),
        ("127.0.0.0/8", "127.0.0.1"),
        ("127.0.0.0/8", "0x7f.1"),
        ("127.0.0.5/8", "127.0.0.1"),  # a network by one of its hosts
        ("10.0.0.0/8", "[::ffff:10.2.3.4]"),
        ("::1", "[::1]"),
        ("fd00::/8", "[fd12::1]"),
        ("0.0.0.0/0", "10.2.3.4"),
        ("93.184.0.0/16", PUBLIC),
    ],
)
def test_who_is_listed_passes_even_in_production(public_only: bool, allowed: str, host: str) -> None:
    assert passes(f"http://{host}:8000", Access((allowed,), public_only))
    assert passes(f"http://{host}:8000", Access(("other.test", "192.168.7.0/24", allowed), public_only))


@pytest.mark.parametrize("public_only", [False, True])
@pytest.mark.parametrize(
    ("allowed", "host"),
    [
        ("exchange.test", "other.test"),
        ("exchange.test", "exchange.test.other.test"),
        ("exchange.test", "api.exchange.test"),
        ("exchange.test", "exchange.test."),  # another name, to a resolver
        ("exchange.test", "xexchange.test"),
        ("*", "exchange.test"),
        ("", "exchange.test"),
        ("10.0.0.0/8", "11.0.0.1"),
        ("10.0.0.0/8", "127.0.0.1"),
        ("10.0.0.0/33", "10.0.0.1"),
        ("fd00::/8", "10.0.0.1"),
        ("0.0.0.0/0", "[::1]"),
        ("exchange.test", PUBLIC),
        ("exchange.test", "127.0.0.1"),
    ],
)
def test_where_there_is_a_list_nobody_else_passes(public_only: bool, allowed: str, host: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{VARIABLE} names .*, which TRADEFLOWS_ALLOWED_HOSTS does not list"):
        checked_url(f"http://{host}:8000", VARIABLE, Access((allowed,), public_only))


def test_every_address_of_a_name_must_be_in_a_listed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(("10.0.0.0/8", "fd00::/8"), public_only=True)
    for found, verdict in (
        (["10.0.0.1"], True),
        (["10.0.0.1", "fd00::1"], True),
        (["10.0.0.1", "11.0.0.1"], False),
        ([PUBLIC], False),
    ):
        answering(monkeypatch, *found)
        assert passes("http://engine.test", access) is verdict, found


def test_the_list_comes_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRADEFLOWS_ALLOWED_HOSTS", raising=False)
    assert load_settings().access == ANYWHERE
    monkeypatch.setenv("TRADEFLOWS_ALLOWED_HOSTS", " exchange.test,10.0.0.0/8 , ,::1")
    assert load_settings().access == Access(("exchange.test", "10.0.0.0/8", "::1"), public_only=False)
    monkeypatch.setenv("TRADEFLOWS_ENVIRONMENT", "production")
    monkeypatch.setenv("MONGODB_URL", "mongodb://store.test")
    monkeypatch.setenv("TRADEFLOWS_SIGNING_KEY", "0" * 64)
    monkeypatch.setenv("TRADEFLOWS_PASSWORD", "for-nobody-else-0")
    assert load_settings().access == Access(("exchange.test", "10.0.0.0/8", "::1"), public_only=True)
    monkeypatch.setenv("TRADEFLOWS_ENGINE_URL", "http://192.168.0.9:8000")
    with pytest.raises(ConfigurationError, match=r"ENGINE_URL names 192\.168\.0\.9"):
        source_of(load_settings(), "engine")
    monkeypatch.delenv("TRADEFLOWS_ALLOWED_HOSTS")
    with pytest.raises(ConfigurationError, match=r"ENGINE_URL leads to 192\.168\.0\.9 .* private"):
        source_of(load_settings(), "engine")


# --- the peer ------------------------------------------------------------------------------------


def asked(url: str, access: Access) -> Any:
    with http.client(url, VARIABLE, access=access) as connection:
        return http.get_json(connection, "/x", variable=VARIABLE, sleep=lambda seconds: pytest.fail("asked again"))


def at_localhost(server: Any) -> str:
    return str(server.url).replace("127.0.0.1", "localhost")


def test_a_name_that_is_public_first_and_private_later_gets_no_request(
    stub: Any, http_reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stub([http_reply("1")])
    answering(monkeypatch, PUBLIC)  # when the client is made; the connection asks the system
    with pytest.raises(ConfigurationError, match=rf"{VARIABLE} leads to localhost at 127\.0\.0\.1, a private"):
        asked(at_localhost(server), PRODUCTION)
    assert server.paths == []
    # the same way leads there where it is allowed
    assert asked(at_localhost(server), ANYWHERE) == 1
    assert server.paths == ["/x"]


def test_a_name_that_leaves_its_listed_network_gets_no_request(
    stub: Any, http_reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stub([http_reply("1")])
    for public_only in (False, True):
        for network, inside in (("10.0.0.0/8", "10.0.0.1"), ("93.184.0.0/16", PUBLIC)):
            answering(monkeypatch, inside)
            with pytest.raises(ConfigurationError, match=r"localhost at 127\.0\.0\.1, which .* does not list"):
                asked(at_localhost(server), Access((network,), public_only))
    assert server.paths == []


@pytest.mark.parametrize("entry", ["localhost", "LOCALHOST", "127.0.0.0/8", "127.0.0.1"])
def test_a_listed_peer_is_asked(stub: Any, http_reply: Any, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = stub([http_reply("1")])
    answering(monkeypatch, "127.0.0.1")
    assert asked(at_localhost(server), Access((entry,), public_only=True)) == 1


def test_each_new_connection_is_checked(stub: Any, http_reply: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a client that has talked to others before, too."""
    server = stub([http_reply("1")])  # which ends the connection after each reply
    answering(monkeypatch, "127.0.0.1")
    access = Access(("127.0.0.0/8",), public_only=True)
    with http.client(at_localhost(server), VARIABLE, access=access) as connection:
        assert http.get_json(connection, "/first", variable=VARIABLE) == 1
        monkeypatch.setattr(addresses, "_inside", lambda ip, access: False)
        with pytest.raises(ConfigurationError, match="does not list"):
            http.get_json(connection, "/second", variable=VARIABLE)
    assert server.paths == ["/first"]


def test_a_refused_connection_is_closed(stub: Any, http_reply: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = stub([http_reply("1")])
    answering(monkeypatch, PUBLIC)
    gc.collect()  # what others left behind
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(3):
            with pytest.raises(ConfigurationError):
                asked(at_localhost(server), PRODUCTION)
        gc.collect()
    assert [str(one.message) for one in said if "127.0.0.1" in str(one.message)] == []


def test_a_refusal_is_not_told_the_guard_as_the_source_s(
    stub: Any, http_reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []

    class Ear:
        def admit(self, weight: int) -> None:
            heard.append(weight)

        def heard(self, error: object) -> None:
            heard.append(error)

    answering(monkeypatch, PUBLIC)
    server = stub([http_reply("1")])
    with (
        http.client(at_localhost(server), VARIABLE, access=PRODUCTION) as connection,
        pytest.raises(ConfigurationError),
    ):
        http.get_json(connection, "/x", variable=VARIABLE, guard=Ear())
    assert heard == [1]


def test_a_login_in_an_address_that_a_library_quotes_is_left_out() -> None:
    said = "Server error '503' for url 'http://me:hidden@127.0.0.1:5000/health' and mongodb://root:x@a,b/?c=1"
    assert without_login(said) == "Server error '503' for url 'http://127.0.0.1:5000/health' and mongodb://a,b/?c=1"
    assert without_login("https://a.test/x@y and me@b.test") == "https://a.test/x@y and me@b.test"
