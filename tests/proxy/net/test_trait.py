"""A marked base has methods only: a connection that derives from it takes no more memory."""

import pytest

from penstock_proxy.http.client_connection import ClientConnection
from penstock_proxy.http.worker_connection import WorkerConnection
from penstock_proxy.net.reactor import EventHandler
from penstock_proxy.net.socket_transport import SocketTransport
from penstock_proxy.net.trait import trait
from penstock_proxy.net.transport import FirstReceiver, Receiver
from penstock_proxy.tcp.duplex import ClientHalf, WorkerHalf
from penstock_proxy.tls.handshake import Handshake
from penstock_proxy.tls.transport import TlsConnection


def test_the_mark_leaves_the_class_as_it_is() -> None:
    class Marked:
        pass

    assert trait(Marked) is Marked


@pytest.mark.parametrize("base", [Receiver, FirstReceiver, EventHandler])
def test_a_marked_base_has_no_fields(base: type) -> None:
    assert vars(base)["__slots__"] == ()
    assert "__annotations__" not in vars(base)


@pytest.mark.parametrize(
    "kind",
    [
        ClientConnection,
        ClientHalf,
        Handshake,
        SocketTransport,
        TlsConnection,
        WorkerConnection,
        WorkerHalf,
    ],
)
def test_a_connection_has_no_dictionary(kind: type) -> None:
    assert not any("__dict__" in vars(one) for one in kind.__mro__)
