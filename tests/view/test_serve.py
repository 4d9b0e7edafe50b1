import socket

import pytest

from restage.records import InputError
from restage.view.serve import find_port, is_loopback


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
