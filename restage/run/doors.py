"""Who may ask a server that runs on this machine: names that it goes by, pages that may ask, a token.

Any web page may ask a browser to connect to this machine. So every request has to name the server as it is known, since
a page could point a name of its own at it, and must not come from another page. `restage view` and `restage serve`
open their doors by this.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import secrets
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from restage.records import InputError

__all__ = ["Door", "find_port", "is_loopback"]

PORTS_TRIED = 100


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host's address."""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


@dataclass(frozen=True)
class Door:
    """What a request to one server must bring along."""

    host: str  # address that the server listens on, as the user named it
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)

    def refusal(self, hosts: Sequence[str], origins: Sequence[str]) -> str:
        """Why a request with these headers is refused, whatever its token; empty if it may pass."""
        if len(hosts) != 1 or not self._is_own_name(hosts[0]):
            return "this server is not known by that name"
        if origins and [urlsplit(origin).netloc for origin in origins] != list(hosts):
            return "another page asked for this"
        return ""

    def knows(self, tokens: Iterable[str]) -> bool:
        """Whether the server's token is among some that were given."""
        return any(secrets.compare_digest(given.encode(), self.token.encode()) for given in tokens)

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == self.host.lower() or is_loopback(name):
            return True
        listens_on = _address(self.host)
        if listens_on is None or not listens_on.is_unspecified:
            return False
        # A server on all interfaces cannot list its names, but an address in numbers is never somebody else's name.
        return _address(name) is not None or name == socket.gethostname().lower()


def find_port(host: str, port: int) -> int:
    """The port if it is free, or else the next one that is."""
    if not 0 < port < 65536:
        raise InputError(f"expected a port from 1 to 65535, got {port}")
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            return candidate
        except socket.gaierror as error:
            raise InputError(f"{host!r} is not a host name or address: {error}; omit --host") from None
        except PermissionError:
            raise InputError(f"this user may not open port {candidate}; choose one above 1023") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise InputError(f"cannot listen on {host}: {error}; omit --host") from None
    raise InputError(f"no free port from {port} to {port + PORTS_TRIED - 1}; choose another with --port")
