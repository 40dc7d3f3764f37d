"""A connection goes to the service of the server name that its client asks for.

Covers `listener/sni_router`.
"""

import ssl
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Penstock, Worker
    from tests.live.tls.conftest import Dial, Files
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire as Plain

MIB = 1 << 20
HELLO = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

DEMO = {"app": "penstock_worker.demo:app", "workers": 1, "access_log": "off"}


@pytest.fixture
def edge(penstock: "Penstock", origin: "Worker", files: "Files") -> "Cluster":
    """A service that repeats in plain words, and sends on what asks for another's name."""
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files.authority.issue_cert("b.example", "x.c.example").configure_cert(own)

    def encrypted(wire: "Plain") -> None:
        with own.wrap_socket(wire.sock, server_side=True) as sock:
            sock.sendall(b"from b: " + sock.recv(5))
            sock.unwrap().close()

    def plain(wire: "Plain") -> None:
        wire.send(b"plain: " + wire.exactly(5))

    there = origin(encrypted).address
    return penstock(
        services={
            "edge": {
                "upstreams": [origin(plain).address], "mode": "tcp",
                "timeouts": {"handshake": "500ms"},
                "sni": {"a.example": "ours", "B.example": "theirs", "*.c.example": "theirs"},
            },
            "ours": {**DEMO, "tls": files.issue("a.example", into="ours")},
            "theirs": {"upstreams": [there], "mode": "tcp"},
        }
    )  # fmt: skip


def test_a_connection_goes_to_the_service_of_its_name(edge: "Cluster", dial: "Dial") -> None:
    ours = dial(edge, "edge", "a.example")
    ours.send(LAST)
    assert ours.rest().startswith(b"HTTP/1.1 200")
    for name in ("b.example", "x.c.example"):
        theirs = dial(edge, "edge", name)
        theirs.send(b"hello")
        assert theirs.rest() == b"from b: hello"
    plain = edge.connect("edge")
    plain.send(b"hello")
    assert plain.rest() == b"plain: hello"


def test_a_client_hello_may_arrive_in_pieces_but_only_within_its_time_limit(
    edge: "Cluster", files: "Files"
) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = files.trusting().wrap_bio(incoming, outgoing, server_hostname="b.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    pieces = edge.connect("edge")
    for byte in hello:
        pieces.send(bytes([byte]))
    assert pieces.exactly(3) == b"\x16\x03\x03"
    never, silent, gone = (edge.connect("edge") for _ in range(3))
    for wire in (never, gone):
        wire.send(hello[:50])
    gone.finish()
    assert all(wire.is_ended() for wire in (never, silent, gone))
    # A client that has disconnected is not waited for.
    assert edge.metric("penstock_connection_errors_total", kind="hello_timeout") == 2
    edge.hang_up()
    edge.until(lambda: edge.metric("penstock_connections_active") == 0)
