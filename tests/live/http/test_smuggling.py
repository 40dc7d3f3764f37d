"""Every known smuggling trick is refused by a real run, and no worker gets it.

`tests/proxy` proves the same in memory, byte by byte. This proves that the buffers of the event
loop and the pace of a worker make no difference.
"""

import threading
from typing import TYPE_CHECKING

import pytest
from tests.support.smuggling.chunks import BODIES
from tests.support.smuggling.requests import REQUESTS
from tests.support.smuggling.responses import CHUNKED, REFUSED

if TYPE_CHECKING:
    from tests.live.conftest import Penstock, Worker
    from tests.support.live.wire import Wire

GET = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FEW = 16


def test_no_smuggled_request_reaches_a_worker(penstock: "Penstock", origin: "Worker") -> None:
    seen: list[bytes] = []
    seen_lock = threading.Lock()

    def answer(wire: "Wire") -> None:
        while True:
            head = wire.head()
            with seen_lock:
                seen.append(head)
            if b"\r\nTransfer-Encoding: chunked" in head:
                # Its body never comes to an end.
                wire.chunks()
                pytest.fail(f"a whole body for {head!r}")
            wire.send(OK)

    run = penstock("--to", origin(answer).address)
    tricks = list(REQUESTS.values())
    for begin in range(0, len(tricks), FEW):
        wires = [(trick, run.connect()) for trick in tricks[begin : begin + FEW]]
        for trick, wire in wires:
            wire.send(GET + trick.data)
        for trick, wire in wires:
            assert wire.answer().status == 200, trick
            assert wire.answer().status == trick.status, trick
            assert wire.is_ended(), trick
        run.hang_up()
    starts = {head.partition(b"\r\n")[0] for head in seen}
    assert starts == {b"GET /good HTTP/1.1", b"POST / HTTP/1.1"}
    assert sum(head.startswith(b"GET /good ") for head in seen) == len(tricks)


def test_no_smuggled_response_reaches_a_client(penstock: "Penstock", origin: "Worker") -> None:
    tricks = [response for response, _ in REFUSED.values()]

    def answer(wire: "Wire") -> None:
        while True:
            number = int(wire.head().split(b" ")[1][1:])
            wire.send(tricks[number] if number < len(tricks) else OK)

    run = penstock("--to", origin(answer).address, ejection={"failures": 0})
    for number in range(len(tricks)):
        wire = run.connect()
        wire.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        answered = wire.answer()
        while answered.status < 200:
            answered = wire.answer()
        assert (answered.status, answered.body) == (502, b"the worker's answer is not HTTP\n")
        # The same connection serves the next request, over another one to the worker.
        assert wire.ask(b"GET /999 HTTP/1.1\r\nHost: a\r\n\r\n").body == b"ok"
        run.hang_up()


def test_ambiguous_chunks_never_look_whole_to_a_client(
    penstock: "Penstock", origin: "Worker"
) -> None:
    bodies = [body for body, _ in BODIES.values()]

    def answer(wire: "Wire") -> None:
        number = int(wire.head().split(b" ")[1][1:])
        wire.send(CHUNKED + bodies[number])
        wire.finish()
        wire.rest()

    run = penstock("--to", origin(answer).address, ejection={"failures": 0})
    for number, body in enumerate(bodies):
        for minor, cut in ((1, EOFError), (0, ConnectionResetError)):
            wire = run.connect()
            wire.send(b"GET /%d HTTP/1.%d\r\nHost: a\r\n\r\n" % (number, minor))
            with pytest.raises(cut):
                wire.answer() if minor else wire.rest()
            assert body
        run.hang_up()
