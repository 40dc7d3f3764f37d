"""Messages on a link: reports are summed, a full link refuses, surplus descriptors are closed.

Real socket pairs and descriptors.
"""

import os
import socket

import pytest
from tests.support.descriptors import descriptors
from tests.support.worker.links import fill, pair

from penstock_worker.handoff.protocol import CLIENT, CREDIT, read_reports, receive, send


def test_descriptors_beyond_one_for_each_connection_are_closed() -> None:
    one, other = pair()
    with one, other, open(os.devnull) as file:  # noqa: PTH123
        before = descriptors()
        socket.send_fds(one, [CLIENT], [file.fileno()] * 3)
        got = receive(other)
        assert got is not None
        os.close(got[1][0])
        assert descriptors() == before


def test_sending_to_a_full_link_fails_at_once() -> None:
    one, other = pair()
    with one, other, open(os.devnull) as file:  # noqa: PTH123
        fill(lambda: send(one, CLIENT, [file.fileno()]))
        assert receive(one) is None


def test_all_credits_that_have_arrived_are_one_report() -> None:
    proxy, worker = pair()
    with proxy, worker:
        assert read_reports(proxy) is None
        worker.send(CREDIT.pack(2, 0))
        worker.send(CREDIT.pack(0, 1))
        worker.send(CREDIT.pack(0xFFFF, 0xFFFF))
        assert read_reports(proxy) == (0x10001, 0x10000)
        worker.send(CREDIT.pack(1, 0) + b"!")
        with pytest.raises(ConnectionResetError):
            read_reports(proxy)
