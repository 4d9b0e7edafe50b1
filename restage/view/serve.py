"""Serves the viewer's page until Ctrl-C, to browsers that were given its address.

Every request has to come through the door (`restage.run.doors`) and carry the token of the printed address.
"""

from __future__ import annotations

import contextlib
import http
import importlib.util
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from restage.records import MissingExtra
from restage.run.doors import Door, find_port, is_loopback
from restage.run.progress import say
from restage.view.page import ViewerPage
from restage.view.session import ViewSession

__all__ = ["Access", "Served", "guarding", "serve", "serving"]


@dataclass(frozen=True)
class Access:
    """What a request to the viewer must bring along."""

    door: Door
    port: int
    """Tells the cookies of several viewers on one machine apart, since cookies know no ports."""

    def refusal(self, headers: Any, path: str) -> str:
        """Why a request is refused; empty if it may pass.

        Headers are those of `websockets`; the path comes with its query.
        """
        refusal = self.door.refusal(headers.get_all("Host"), headers.get_all("Origin"))
        if refusal:
            return f"{refusal}; open the address that restage view printed"
        tokens = parse_qs(urlsplit(path).query).get("token", [])
        cookies = (part.strip().partition("=") for header in headers.get_all("Cookie") for part in header.split(";"))
        if not self.door.knows([*tokens, *(value for name, _, value in cookies if name == self._cookie)]):
            return "the token is missing or wrong; open the address that restage view printed, with its ?token="
        return ""

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
                cookie = f"{self._cookie}={self.door.token}; Path=/; HttpOnly; SameSite=Strict"
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

    access = Access(Door(host), find_port(host, port))
    # It would print a traceback for each request that is not HTTP; what others send is no news to who edits here.
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
    with guarding(access), contextlib.redirect_stdout(io.StringIO()):  # viser prints a banner of its own
        server = viser.ViserServer(host=host, port=access.port, verbose=False)
    # A page could else ask for a tunnel that opens this server to the internet.
    server.request_share_url = lambda verbose=True: None
    page = ViewerPage(server, session)
    try:
        name = f"[{host}]" if ":" in host else host
        yield Served(f"http://{name}:{server.get_port()}/?token={access.door.token}", page)
    finally:
        page.close()
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


def serve(path: Path, *, host: str = "127.0.0.1", port: int = 8080, device: str = "cpu") -> None:
    """Show a path (see `open_scenes`) in the browser until Ctrl-C; if the port is taken, at the next free one.

    Pictures are drawn and edits made on the device. With any but a loopback address as `host` other machines can reach
    the page, and a line says so.
    """
    session = ViewSession(path, device)
    if not is_loopback(host):
        say(
            f"view: whoever reaches {host} and has the address below, with its token, can edit this scene",
            file=sys.stderr,
        )
    with serving(session, host=host, port=port) as served:
        say(f"view: Ctrl-C ends it\n{served.address}")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
