"""Serves the viewer's page until Ctrl-C: chooses a port, says where the page is, closes cleanly."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from restage.records import InputError, MissingExtra
from restage.run.terminal import say
from restage.view.access import Access, guarding, is_loopback
from restage.view.page import ViewerPage
from restage.view.session import ViewSession

__all__ = ["Served", "find_port", "serve", "serving"]

PORTS_TRIED = 100


def find_port(host: str, port: int) -> int:
    """The port if it is free, or else the next one that is.

    Raises:
        InputError: the host is not an address of this machine, the port is no port, or none is free.
    """
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

    address: str
    """Where it is, with the token that lets a browser in."""
    page: ViewerPage


@contextlib.contextmanager
def serving(session: ViewSession, *, host: str = "127.0.0.1", port: int = 8080) -> Iterator[Served]:
    """Serve the page while the context lasts.

    Raises:
        MissingExtra: viser is not installed.
        InputError: the host cannot be used, or no port is free.
    """
    if importlib.util.find_spec("viser") is None:
        raise MissingExtra("viser", "view")
    import viser

    access = Access(host, find_port(host, port))
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
    """Show a path in the browser until Ctrl-C.

    Args:
        path: What to show; see `open_scenes`.
        host: Address to listen on; with any but a loopback address other machines can reach it, and a line says so.
        port: Port to listen on; the next free one if it is taken.

    Raises:
        InputError: there is nothing to show, or the host cannot be used.
        MissingExtra: viser is not installed.
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
