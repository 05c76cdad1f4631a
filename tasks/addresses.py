"""Which hosts a source may be at: schemes, an allow-list, and no private network in production.

An address is checked twice: when a client is made, by what its name resolves to, and each time a
connection is opened, by the peer that was reached, before anything is sent to it. So a name that
resolves to a public address first and to a private one later leads nowhere.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from trading.errors import ConfigurationError

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Access:
    """Who may be talked to.

    Attributes:
        allowed: host names, addresses or networks (``10.0.0.0/8``); where there are any, nobody else may.
        public_only: hosts in private, link-local and other special networks must be in ``allowed``.
    """

    allowed: tuple[str, ...] = ()
    public_only: bool = False


ANYWHERE: Final = Access()
_LOGIN: Final = re.compile(r"//[^/@\s]+@")
# RFC 6052: an IPv4 address for those who have IPv6 only
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def without_login(text: str) -> str:
    """A text without the user and password of the addresses in it, as libraries quote them in their errors."""
    return _LOGIN.sub("//", text)


def checked_url(base_url: str, variable: str, access: Access) -> httpx.URL:
    """``base_url``, if it may be talked to.

    Raises:
        ConfigurationError: not an http or https address, one with a password in it, or of a host that
            ``access`` does not let pass; names ``variable`` and the remedy.
    """
    # looked for in the text: a password with a slash in it is no user information to a parser
    if "@" in base_url:
        raise ConfigurationError(f"{variable} holds a user name or password; leave them out of the address")
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{variable} is not an address ({error}); it looks like https://host") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigurationError(f"{variable} must be an http or https address with a host, such as https://host")
    if access == ANYWHERE or _named(url.host, access):
        return url
    found = _resolve(url.host)
    if access.allowed and not found:
        raise _unlisted(url.host, variable)
    for ip in found:
        _require(ip, url.host, variable, access)
    return url


def checking_peers(access: Access, variable: str) -> Callable[[httpx.Request], None]:
    """A request hook that refuses the peer of each new connection which ``access`` does not let pass."""

    def prepare(request: httpx.Request) -> None:
        host = request.url.host
        if access == ANYWHERE or _named(host, access):
            return

        def trace(event: str, information: dict[str, Any]) -> None:
            if event.endswith("connect_tcp.complete"):
                connection = information["return_value"]
                peer = connection.get_extra_info("server_addr")
                try:
                    _require(ipaddress.ip_address(peer[0].partition("%")[0]), host, variable, access)
                except ConfigurationError:
                    connection.close()  # nobody else will
                    raise

        request.extensions["trace"] = trace

    return prepare


def _require(ip: Ip, host: str, variable: str, access: Access) -> None:
    plain = _plain(ip)
    if _inside(plain, access):
        return
    if access.allowed:
        raise _unlisted(f"{host} at {plain}", variable)
    if access.public_only and not _public(plain):
        raise ConfigurationError(
            f"{variable} leads to {host} at {plain}, a private or special address; in production such a host must "
            "be listed in TRADEFLOWS_ALLOWED_HOSTS"
        )


def _unlisted(who: str, variable: str) -> ConfigurationError:
    return ConfigurationError(f"{variable} names {who}, which TRADEFLOWS_ALLOWED_HOSTS does not list; add it there")


def _plain(ip: Ip) -> Ip:
    """The IPv4 address that an IPv6 address stands for, where it does: mapped, NAT64 or 6to4."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def _public(ip: Ip) -> bool:
    if ip.is_multicast or ip.is_reserved or (isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local):
        return False
    return ip.is_global


def _named(host: str, access: Access) -> bool:
    return host.lower() in {entry.lower() for entry in access.allowed}


def _inside(ip: Ip, access: Access) -> bool:
    return any(ip in network for network in _networks(access.allowed))


def _networks(entries: Sequence[str]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    networks = []
    for entry in entries:
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            continue  # a host name
    return networks


def _resolve(host: str) -> list[Ip]:
    """Every address of a host; none where it does not resolve, which connecting will report."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the latter of a label that no name may have
        return []
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
