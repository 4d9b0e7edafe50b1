import http.client
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restage.records import InputError
from restage.run.doors import Door, find_port, is_loopback
from restage.view import ViewSession
from restage.view.controls import escape_markdown
from restage.view.serve import Access, guarding, serving

viser = pytest.importorskip("viser", reason="needs restage[view]")
from websockets.datastructures import Headers  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402
from websockets.typing import Origin, Subprotocol  # noqa: E402


def test_a_taken_port_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert find_port("127.0.0.1", port) > port


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70000), ("192.0.2.1", 8080)])
def test_hosts_and_ports_that_cannot_be_used_are_bad_input(host, port):
    with pytest.raises(InputError):
        find_port(host, port)


def test_only_addresses_of_this_machine_are_loopback():
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""))


@pytest.fixture(scope="module")
def address(tiny_scene: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("served") / "scene"
    tiny_scene.write(folder)
    with serving(ViewSession(folder), port=18_180) as served:
        yield served.address


def ask(address: str, path: str = "/", **headers: str) -> http.client.HTTPResponse:
    """The answer to a plain request, with the Host of the address unless it is given."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    connection.putrequest("GET", path, skip_host=True)
    for name, value in {"Host": parts.netloc, **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_the_page_comes_with_the_token_of_the_address_and_then_by_its_cookie(address):
    query = urlsplit(address).query
    assert query.startswith("token=") and len(query) > 20
    assert ask(address).status == ask(address, "/?token=guessed").status == 403
    answer = ask(address, f"/?{query}")
    assert answer.status == 200
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert ask(address, Cookie=f"other=1; {cookie.partition(';')[0]}").status == 200
    assert ask(address, Cookie="restage-18180=guessed").status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:18180", "127.0.0.1.evil.example", "10.0.0.1", "[", ""])
def test_a_name_that_is_not_the_servers_own_is_refused_even_with_the_token(address, host):
    assert ask(address, f"/?{urlsplit(address).query}", Host=host).status == 403


def test_loopback_names_are_the_servers_own_with_any_port_since_it_may_be_forwarded(address):
    for host in ("localhost:9000", "127.0.0.1", "[::1]:18180", "LOCALHOST"):
        assert ask(address, f"/?{urlsplit(address).query}", Host=host).status == 200


def connects(address: str, *, origin: str | None, cookie: str) -> bool:
    parts = urlsplit(address)
    try:
        with connect(
            f"ws://{parts.netloc}/",
            origin=None if origin is None else Origin(origin),
            subprotocols=[Subprotocol(f"viser-v{viser.__version__}")],
            additional_headers={"Cookie": cookie},
            max_size=None,
        ) as opened:
            return bool(opened.recv(timeout=20))
    except InvalidStatus as error:
        assert error.response.status_code == 403
        return False


def test_the_socket_is_for_the_servers_own_page_with_its_cookie(address):
    own, cookie = f"http://{urlsplit(address).netloc}", f"restage-18180={urlsplit(address).query[6:]}"
    assert connects(address, origin=own, cookie=cookie)
    assert not connects(address, origin=own, cookie="")
    assert not connects(address, origin=None, cookie="restage-18180=")
    for other in ("http://evil.example", "http://localhost:1", "null", "http://127.0.0.1"):
        assert not connects(address, origin=other, cookie=cookie)


def refuses(access: Access, host: str) -> bool:
    return bool(access.refusal(Headers({"Host": host}), f"/?token={access.door.token}"))


def test_a_server_for_other_machines_answers_to_its_host_or_on_all_interfaces_to_addresses_in_numbers():
    named, everywhere = Access(Door("studio.example"), 8080), Access(Door("0.0.0.0"), 8080)
    assert not refuses(named, "studio.example:8080") and not refuses(named, "localhost:8080")
    assert refuses(named, "192.168.0.7:8080") and refuses(named, "evil.example:8080")
    for host in ("192.168.0.7:8080", "[fe80::1]:8080", f"{socket.gethostname()}:8080"):
        assert not refuses(everywhere, host)
    assert refuses(everywhere, "evil.example:8080")
    assert named.door.token != everywhere.door.token and named.door.token not in repr(named)


def test_a_viser_that_starts_its_server_in_another_way_is_noticed():
    with pytest.raises(RuntimeError, match="cannot be checked"), guarding(Access(Door("127.0.0.1"), 8080)):
        pass


class Reader(HTMLParser):
    """What a browser shows of a page, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags = "", set()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)


NASTY = "<iframe srcdoc='<script>x()</script>'></iframe> **bold** [a](javascript:x) ![b](c) `d` &lt; # {e} \\ _f_"


@given(st.one_of(st.just(NASTY), st.text(st.characters(max_codepoint=300, exclude_categories=["Cc", "Cs"]))))
def test_words_from_outside_are_shown_as_they_are_and_not_as_markdown_or_html(text):
    markdown = pytest.importorskip("markdown_it", reason="comes with rich, which restage[view] has")
    reader = Reader()
    reader.feed(markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render(f"x{escape_markdown(text)}"))
    assert reader.text.strip() == f"x{' '.join(text.split())}"
    assert reader.tags == {"p"}
