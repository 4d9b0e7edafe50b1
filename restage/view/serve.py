"""Serves the viewer's page until Ctrl-C, to browsers that were given its address.

Any web page may ask a browser to connect to this machine. So every request has to name the server as it is known, since
a page could point a name of its own at it, come from the server's own page, and carry the token of the printed address.
"""

from __future__ import annotations

import contextlib
import errno
import http
import importlib.util
import io
import ipaddress
import logging
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from restage.records import InputError, MissingExtra
from restage.run.progress import say
from restage.view.page import ViewerPage
from restage.view.session import ViewSession

__all__ = ["Access", "Served", "find_port", "guarding", "is_loopback", "serve", "serving"]


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
class Access:
    """What a request to one server must bring along."""

    host: str  # address that the server listens on, as the user named it
    port: int
    """Tells the cookies of several viewers on one machine apart, since cookies know no ports."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)

    def refusal(self, headers: Any, path: str) -> str:
        """Why a request is refused; empty if it may pass.

        Headers are those of `websockets`; the path comes with its query.
        """
        hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
        if len(hosts) != 1 or not self._is_own_name(hosts[0]):
            return "this server is not known by that name; open the address that restage view printed"
        if origins and [urlsplit(origin).netloc for origin in origins] != hosts:
            return "another page asked for this; open the address that restage view printed"
        tokens = parse_qs(urlsplit(path).query).get("token", [])
        if not any(map(self._is_token, tokens)) and not self._has_cookie(headers.get_all("Cookie")):
            return "the token is missing or wrong; open the address that restage view printed, with its ?token="
        return ""

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

    def _has_cookie(self, headers: list[str]) -> bool:
        cookies = (part.strip().partition("=") for header in headers for part in header.split(";"))
        return any(name == self._cookie and self._is_token(value) for name, _, value in cookies)

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())

    @property
    def _cookie(self) -> str:
        return f"restage-{self.port}"

    def guard(self, answer: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A `process_request` of `websockets` that refuses, or else lets another one answer."""
        from websockets.datastructures import Headers
        from websockets.http11 import Response

        def guarded(connection: Any, request: Any) -> Any:
            refusal = self.refusal(request.headers, request.path)
            if refusal:
                status = http.HTTPStatus.FORBIDDEN
                headers = Headers({"Content-Type": "text/plain; charset=utf-8", "Connection": "close"})
                return Response(status.value, status.phrase, headers, f"Refused: {refusal}.\n".encode())
            response = answer(connection, request)
            if response is not None:
                # The page opens its socket without the query, so the cookie carries the token from here on.
                cookie = f"{self._cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
                response.headers["Set-Cookie"] = cookie
                response.headers["Referrer-Policy"] = "no-referrer"
            return response

        return guarded


@contextlib.contextmanager
def guarding(access: Access) -> Iterator[None]:
    """Within it, servers of `websockets` that are started guard every request; viser has no such option.

    Raises:
        RuntimeError: no server was started inside, so that nothing is guarded.
    """
    from websockets.asyncio import server

    serve, started = server.serve, []

    def serve_guarded(*args: Any, process_request: Callable[[Any, Any], Any], **options: Any) -> Any:
        started.append(access)
        return serve(*args, process_request=access.guard(process_request), **options)

    server.serve = serve_guarded
    try:
        yield
    finally:
        server.serve = serve
    if not started:
        raise RuntimeError("viser started no server of websockets, so that its access cannot be checked")


PORTS_TRIED = 100


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


class Served(NamedTuple):
    """A page that is being served."""

    address: str  # where it is, with the token that lets a browser in
    page: ViewerPage


@contextlib.contextmanager
def serving(session: ViewSession, *, host: str = "127.0.0.1", port: int = 8080) -> Iterator[Served]:
    """Serve the page while the context lasts."""
    if importlib.util.find_spec("viser") is None:
        raise MissingExtra("viser", "view")
    import viser

    access = Access(host, find_port(host, port))
    # It would print a traceback for each request that is not HTTP; what others send is no news to who edits here.
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
    with guarding(access), contextlib.redirect_stdout(io.StringIO()):  # viser prints a banner of its own
        server = viser.ViserServer(host=host, port=access.port, verbose=False)
    # A page could else ask for a tunnel that opens this server to the internet.
    server.request_share_url = lambda verbose=True: None
    page = ViewerPage(server, session)
    try:
        name = f"[{host}]" if ":" in host else host
        yield Served(f"http://{name}:{server.get_port()}/?token={access.token}", page)
    finally:
        page.close()
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


def serve(path: Path, *, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Show a path (see `open_scenes`) in the browser until Ctrl-C; if the port is taken, at the next free one.

    With any but a loopback address as `host` other machines can reach it, and a line says so.
    """
    session = ViewSession(path)
    if not is_loopback(host):
        say(
            f"view: whoever reaches {host} and has the address below, with its token, can edit this scene",
            file=sys.stderr,
        )
    with serving(session, host=host, port=port) as served:
        say(f"view: Ctrl-C ends it\n{served.address}")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
