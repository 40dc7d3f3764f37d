"""Over TLS bytes arrive whole, buffers stay small, and every way to close is seen as what it is."""

import ssl
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Peak, Penstock, Worker
    from tests.live.tls.conftest import Dial, Files
    from tests.support.live.wire import Wire as Plain

MIB = 1 << 20
HELLO = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_each_direction_ends_on_its_own(
    penstock: "Penstock", origin: "Worker", files: "Files", dial: "Dial", version: ssl.TLSVersion
) -> None:
    received: list[bytes] = []
    done = threading.Event()

    def answer(wire: "Plain") -> None:
        question = wire.rest()
        if question:
            wire.send(question[::-1] * 100_000)

    def speak(wire: "Plain") -> None:
        if wire.exactly(1) == b"?":
            wire.send(b"that is all")
            wire.finish()
            received.append(wire.rest())
            done.set()

    tls = files.issue("localhost", into="halves")
    run = penstock(
        services={
            "first": {"upstreams": [origin(answer).address], "mode": "tcp", "tls": tls},
            "last": {"upstreams": [origin(speak).address], "mode": "tcp", "tls": tls},
        }
    )
    first = dial(run, "first", context=files.trusting(version))
    first.send(b"abc")
    first.finish()
    assert first.rest() == b"cba" * 100_000
    last = dial(run, "last", context=files.trusting(version))
    last.send(b"?")
    assert last.rest() == b"that is all"
    last.send(b"not for me" * 10_000)
    last.finish()
    assert done.wait(60)
    assert received == [b"not for me" * 10_000]


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_an_answer_that_breaks_off_looks_cut(
    penstock: "Penstock", origin: "Worker", files: "Files", dial: "Dial", mode: str
) -> None:
    def answer(wire: "Plain") -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        wire.reset()

    keys = {"mode": mode, "tls": files.issue("localhost", into="cut")}
    run = penstock(services={"web": {"upstreams": [origin(answer).address], **keys}})
    wire = dial(run)
    wire.send(HELLO)
    with pytest.raises(ConnectionError):
        wire.rest()


def test_an_answer_arrives_though_its_client_still_sends(
    penstock: "Penstock", origin: "Worker", files: "Files", dial: "Dial"
) -> None:
    def answer(wire: "Plain") -> None:
        wire.head()
        wire.send(b"HTTP/1.1 413 Too Much\r\nContent-Length: 6\r\nConnection: close\r\n\r\nenough")

    tls = files.issue("localhost", into="early")
    run = penstock(services={"web": {"upstreams": [origin(answer).address], "tls": tls}})
    wire = dial(run)
    wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % MIB)
    wire.send(bytes(MIB // 2))
    assert wire.rest().endswith(b"enough")


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_large_bodies_arrive_whole_both_ways(
    penstock: "Penstock", origin: "Worker", files: "Files", dial: "Dial", mode: str
) -> None:
    data = bytes(range(256)) * (4 * MIB // 256)

    def answer(wire: "Plain") -> None:
        wire.head()
        body = wire.exactly(len(data))
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    keys = {"mode": mode, "tls": files.issue("localhost", into="large")}
    run = penstock(services={"web": {"upstreams": [origin(answer).address], **keys}})
    wire = dial(run)
    wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data))
    sender = threading.Thread(target=wire.send, args=(data[: len(data) // 2],))
    sender.start()
    sender.join()
    wire.send(data[len(data) // 2 :])
    got = b""
    while not got.endswith(data):
        got += wire.read()
    assert got.partition(b"\r\n\r\n")[2] == data


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_slow_reader_of_a_huge_answer_costs_little_memory(
    penstock: "Penstock", origin: "Worker", files: "Files", dial: "Dial", peak: "Peak", mode: str
) -> None:
    size = 64 * MIB

    def answer(wire: "Plain") -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // MIB):
            wire.send(bytes(MIB))

    keys = {"mode": mode, "tls": files.issue("localhost", into="slow")}
    run = penstock(services={"web": {"upstreams": [origin(answer).address], **keys}})
    growth = peak(run.proxy.pid)
    wire = dial(run)
    wire.send(HELLO)
    got = len(wire.read())
    seen = -1.0
    while (now := run.metric("penstock_bytes_total", direction="sent")) != seen:
        seen = now
    assert seen < size // 2
    assert growth() < 8 * MIB
    while got < size:
        data = wire.read()
        assert data
        got += len(data)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_request_before_a_close_notify_is_answered(
    penstock: "Penstock", origin: "Worker", files: "Files", dial: "Dial", version: ssl.TLSVersion
) -> None:
    ended = threading.Event()

    def answer(wire: "Plain") -> None:
        if wire.head():
            ended.wait(60)
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanswer")

    tls = files.issue("localhost", into="notify")
    run = penstock(services={"web": {"upstreams": [origin(answer).address], "tls": tls}})
    wire = dial(run, "web", context=files.trusting(version))
    wire.send(HELLO)
    wire.finish()
    ended.set()
    head, _, body = wire.rest().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b"answer"
