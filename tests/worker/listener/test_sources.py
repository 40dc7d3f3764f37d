"""HOST and PORT become a bound socket, or an error in one line with the reason."""

import socket

import pytest

from penstock_worker.listener import sources
from penstock_worker.listener.sources import ListenError, address, listen_error, own_port
from penstock_worker.net.somaxconn import max_backlog


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_the_port_is_bound_on_loopback_and_refuses_clients_until_it_listens() -> None:
    with own_port({"PORT": "0"}) as sock:
        host, port = sock.getsockname()
        assert host == "127.0.0.1"
        assert address(sock) == f"127.0.0.1:{port}"
        with socket.socket() as client:
            assert client.connect_ex((host, port)) != 0
        sock.listen(max_backlog())
        with socket.create_connection((host, port)):
            pass


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_the_host_may_be_ipv6(host: str) -> None:
    with own_port({"PORT": "0", "HOST": host}) as sock:
        assert address(sock) == f"[::1]:{sock.getsockname()[1]}"


def test_a_socket_does_not_block_and_is_not_inherited() -> None:
    with own_port({"PORT": "0"}) as sock:
        assert not sock.getblocking()
        assert not sock.get_inheritable()


def test_connections_of_a_predecessor_do_not_keep_the_port() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as old:
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = old.accept()
        served.close()
        client.close()
    with own_port({"PORT": str(port)}) as sock:
        assert sock.getsockname()[1] == port


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "PORT is not set"),
        ({"PORT": ""}, "PORT='' is not a port"),
        ({"PORT": "http"}, "PORT='http' is not a port"),
        ({"PORT": "-1"}, "is not a port"),
        ({"PORT": "65536"}, "is not a port"),
        ({"PORT": "٣"}, "is not a port"),
        ({"PORT": "0", "HOST": "203.0.113.9"}, "203.0.113.9:0: this machine has no such address"),
        ({"PORT": "0", "HOST": "no.such.host.invalid"}, "unknown host"),
        ({"PORT": "0", "HOST": "x" * 70}, "unknown host"),
    ],
)
def test_a_host_or_port_that_cannot_be_bound_is_an_error_in_one_line(
    environ: dict[str, str], reason: str
) -> None:
    with pytest.raises(ListenError, match=reason) as failure:
        own_port(environ)
    assert "\n" not in str(failure.value)


def test_a_port_in_use_is_an_error_with_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}: address alr"):
            own_port({"PORT": str(port)})


def test_the_second_process_to_listen_on_a_port_gets_an_error_with_the_reason() -> None:
    with (
        own_port({"PORT": "0"}) as first,
        own_port({"PORT": str(first.getsockname()[1])}) as second,
    ):
        first.listen()
        with pytest.raises(OSError, match="in use") as failure:
            second.listen()
        assert "address already in use" in str(listen_error(second, failure.value))


def test_a_missing_permission_is_an_error_with_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    # As root there is no port that is refused, so the test raises the kernel's error.
    def deny(*_: object) -> socket.socket:
        raise PermissionError(13, "x")

    monkeypatch.setattr(sources, "_bound", deny)
    with pytest.raises(ListenError, match=r"127\.0\.0\.1:80: permission denied"):
        own_port({"PORT": "80"})
