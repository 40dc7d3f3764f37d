"""What a program imports works as promised, in a program of its own and under our runtime.

Real processes, with the supervisor's end of their channel in our hands: the module is one of
a kind in its process, and much of it is about who has the descriptor.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from penstock_worker import process
from penstock_worker.channel import MAX_HANDLES, Channel, pair
from penstock_worker.contract import CHANNEL_FD, ONLINE, PING, PONG, READY, RETIRE, SERVICE, SLOT
from penstock_worker.process import MOST_KEPT, MOST_KEPT_HANDLES, _State

DEADLINE_S = 30.0

PROGRAM = """
import asyncio, os, socket, sys, threading
from penstock_worker import process

over = None

def end(*_):
    over.set_result(None)

async def main():
    global over
    over = asyncio.get_running_loop().create_future()
    {body}
    await over

asyncio.run(main())
"""

APP = """
import asyncio, os, socket
from aiohttp import web
from penstock_worker import process

process.send(["imported", process.is_worker, process.slot, process.service])

@process.on_message
def told(message, handle):
    if message == "break":
        raise ZeroDivisionError("in a callback")
    if message == "retire":
        process.retire("had enough")
        return
    process.send(["told", message], handle)
    if handle is not None:
        handle.close()

@process.on_disconnect
def gone():
    open("gone", "w").close()
    raise ZeroDivisionError("nobody to tell")

app = web.Application()
"""


class Above:
    """The supervisor's end, and the process at the other one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: Path) -> None:
        self.loop = loop
        self.messages: list[Any] = []
        self.handles: list[socket.socket] = []
        self.goodbyes = 0
        self._directory = directory
        self._stderr = directory / "stderr"
        self._child: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None

    def start(self, *arguments: str, passed: bool = True, named: bool = True) -> None:
        ours, theirs = pair()
        # A Python of a test has no own channel, whatever started us.
        environment = {**os.environ, SLOT: "3", SERVICE: "web", "PORT": "0"}
        environment.pop(CHANNEL_FD, None)
        if named:
            environment[CHANNEL_FD] = str(theirs.fileno())
        with self._stderr.open("wb") as stderr:
            self._child = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment,
                cwd=self._directory,
                pass_fds=[theirs.fileno()] if passed else [],
                stderr=stderr,
            )
        theirs.close()
        self.channel = Channel(self.loop, ours, self._heard, self._gone)

    def run(self, body: str, *, passed: bool = True, named: bool = True) -> None:
        """Start a program of its own, with these lines in its loop."""
        text = PROGRAM.format(body=body.strip().replace("\n", "\n    "))
        self.start("-c", text, passed=passed, named=named)

    def serve(self) -> None:
        """Start one under our runtime, and wait until it serves."""
        (self._directory / "shop.py").write_text(APP)
        self.start("-m", "penstock_worker.serve", "shop:app")
        self.until(lambda: {"cmd": READY} in self.messages)

    def tell(self, message: Any, handle: socket.socket | None = None) -> None:
        assert self.channel is not None
        assert self.channel.send(message, handle)

    def said(self) -> list[Any]:
        """What was said, but that it is there."""
        return [m for m in self.messages if not (isinstance(m, dict) and m.get("cmd") == ONLINE)]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = self.loop.time() + DEADLINE_S
        while not condition():
            assert self.loop.time() < deadline, (self.messages, self.stderr())
            self.loop.run_until_complete(asyncio.sleep(0.002))

    def status(self) -> int:
        child = self._child
        assert child is not None
        self.until(lambda: child.poll() is not None)
        assert child.returncode is not None
        return child.returncode

    def signal(self, number: signal.Signals) -> None:
        assert self._child is not None
        self._child.send_signal(number)

    def stderr(self) -> str:
        return self._stderr.read_text()

    def end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        if self.channel is not None:
            self.channel.close()
        for handle in self.handles:
            handle.close()

    def _heard(self, message: Any, handle: socket.socket | None) -> None:
        self.messages.append(message)
        if handle is not None:
            self.handles.append(handle)

    def _gone(self) -> None:
        self.goodbyes += 1


@pytest.fixture
def above(tmp_path: Path) -> Iterator[Above]:
    loop = asyncio.new_event_loop()
    made = Above(loop, tmp_path)
    yield made
    made.end()
    loop.close()


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        yield made


# A program of its own.


def test_a_program_knows_where_it_stands_and_says_so(above: Above) -> None:
    above.run("process.send([process.is_worker, process.slot, process.service])\nend()")
    assert above.status() == 0
    above.until(lambda: above.goodbyes == 1)
    assert above.said() == [[True, 3, "web"]]
    assert above.messages[0]["cmd"] == ONLINE, "before anything else"


def test_a_callback_may_be_set_before_there_is_a_loop(above: Above) -> None:
    text = """
import asyncio
import errno
from penstock_worker import process

@process.on_message
def told(message, handle):
    process.send(["told", message])
    loop.stop()

loop = asyncio.new_event_loop()
loop.call_soon(process.ready)
loop.run_forever()
"""
    above.start("-W", "ignore", "-c", text)
    above.until(lambda: {"cmd": READY} in above.messages)
    above.tell({"any": ["JSON"]})
    above.until(lambda: ["told", {"any": ["JSON"]}] in above.messages)
    assert above.status() == 0


def test_handles_go_both_ways(above: Above, udp: socket.socket) -> None:
    above.run("process.on_message(lambda m, h: (process.send(m, h), h.close(), end()))")
    above.tell("echo", udp)
    above.until(lambda: len(above.handles) == 1)
    assert above.handles[0].getsockname() == udp.getsockname()
    assert above.status() == 0


def test_what_came_before_somebody_listened_is_told_in_order(
    above: Above, udp: socket.socket
) -> None:
    above.run(
        """
process.ready()
heard = []
def told(message, handle):
    heard.append([message, handle is not None])
    if message == "last":
        process.send(heard)
        end()
while not process._state.kept or process._state.kept[-1][0] != 9:
    await asyncio.sleep(0.001)
process.on_message(told)
process.send("listens")
"""
    )
    for number in range(10):
        above.tell(number, udp if number == 5 else None)
    above.until(lambda: "listens" in above.messages)
    above.tell("last")
    above.until(lambda: above.goodbyes == 1)
    assert above.messages[-1] == [[n, n == 5] for n in range(10)] + [["last", False]]


def test_a_program_hears_that_its_supervisor_is_gone(above: Above) -> None:
    above.run("process.on_disconnect(lambda: sys.exit(5))\nprocess.ready()")
    above.until(lambda: {"cmd": READY} in above.messages)
    assert above.channel is not None
    above.channel.close()
    assert above.status() == 5


def test_who_asks_late_still_hears_that_the_supervisor_is_gone(above: Above) -> None:
    above.run(
        """
process.ready()
while process.send("still there"):
    await asyncio.sleep(0.001)
while not process._state.gone:
    await asyncio.sleep(0.001)
process.on_disconnect(end)
"""
    )
    above.until(lambda: "still there" in above.messages)
    assert above.channel is not None
    above.channel.close()
    assert above.status() == 0


def test_a_program_asks_to_be_replaced(above: Above) -> None:
    above.run('process.retire("cache is corrupt " + "x" * 100_000)')
    above.until(lambda: len(above.said()) == 1)
    (said,) = above.said()
    assert said["cmd"] == RETIRE
    assert said["reason"].startswith("cache is corrupt xxx")
    assert len(said["reason"]) < 10_000


def test_a_program_answers_that_it_is_there_and_sees_nothing_of_it(
    above: Above, udp: socket.socket
) -> None:
    above.run("process.on_message(lambda m, h: process.send(['told', m]))")
    above.tell({"cmd": PING, "seq": 7})
    above.tell({"cmd": "NODE_PENSTOCK_NEWER"}, udp)
    above.tell({"cmd": "NODE_SOCKET_NOTIFY_CLOSE"}, udp)
    above.tell({"cmd": "NODE_"})
    above.until(lambda: len(above.said()) == 2)
    assert above.said() == [{"cmd": PONG, "seq": 7}, ["told", {"cmd": "NODE_"}]]


def test_an_exception_in_a_callback_is_the_loops_and_the_next_message_comes(above: Above) -> None:
    above.run(
        """
caught = []
asyncio.get_running_loop().set_exception_handler(lambda _, c: caught.append(repr(c["exception"])))
def told(message, handle):
    if message == "last":
        process.send(caught)
    raise ZeroDivisionError(message)
process.on_message(told)
"""
    )
    above.tell("first")
    above.tell("last")
    above.until(lambda: len(above.said()) == 1)
    assert above.said() == [["ZeroDivisionError('first')"]]


def test_a_thousand_handles_at_one_go_are_refused_and_the_channel_lives(above: Above) -> None:
    above.run(
        """
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    taken = 0
    try:
        for number in range(1000):
            taken += process.send(number, sock)
    except OSError as error:
        refused = error.errno
while process._state.channel.crowded:
    await asyncio.sleep(0.001)
process.send([taken, refused])
"""
    )
    above.until(lambda: len(above.said()) == MAX_HANDLES + 1)
    assert above.said()[-1] == [MAX_HANDLES, errno.ENOBUFS]
    assert above.said()[:-1] == list(range(MAX_HANDLES))
    assert above.goodbyes == 0


def test_a_program_that_is_called_from_another_thread_says_what_to_do(above: Above) -> None:
    above.run(
        """
process.ready()
def other():
    try:
        process.send("from elsewhere")
    except RuntimeError as error:
        loop.call_soon_threadsafe(process.send, str(error))
loop = asyncio.get_running_loop()
threading.Thread(target=other).start()
"""
    )
    above.until(lambda: len(above.said()) == 2)
    assert "call_soon_threadsafe" in above.said()[1]


def test_a_name_without_its_descriptor_is_no_supervisor(above: Above) -> None:
    above.run(
        """
assert not process.is_worker and process.slot is None
assert process.send("x") is False
process.ready()
process.retire("lonely")
end()
""",
        passed=False,
    )
    assert above.status() == 0, above.stderr()
    assert "there is no supervisor" in above.stderr()


def test_without_a_supervisor_nothing_does_harm(above: Above) -> None:
    above.run(
        """
assert (process.is_worker, process.slot, process.service) == (False, None, "")
assert process.send({"a": 1}) is False
process.on_message(print)
process.on_disconnect(print)
process.ready()
process.retire()
end()
""",
        named=False,
    )
    assert (above.status(), above.stderr()) == (0, "")


def test_the_programs_own_children_find_no_channel(above: Above) -> None:
    above.run(
        """
process.ready()
child = await asyncio.create_subprocess_exec(
    sys.executable, "-c", "import os; print(os.environ.get('PENSTOCK_CHANNEL_FD'))",
    stdout=asyncio.subprocess.PIPE, close_fds=False)
process.send((await child.communicate())[0].decode())
end()
"""
    )
    above.until(lambda: "None\n" in above.messages)
    assert above.status() == 0


# Under our runtime.


def test_a_program_under_the_runtime_has_the_runtimes_channel(
    above: Above, udp: socket.socket
) -> None:
    above.serve()
    imported = ["imported", True, 3, "web"]
    assert above.said().index(imported) < above.said().index({"cmd": READY})
    above.tell({"x": 1}, udp)
    above.until(lambda: ["told", {"x": 1}] in above.messages)
    assert above.handles[0].getsockname() == udp.getsockname()
    above.signal(signal.SIGTERM)
    assert above.status() == 0


@pytest.mark.parametrize(
    ("message", "reason"), [("retire", "had enough"), ("break", "in a callback")]
)
def test_its_own_call_and_an_exception_in_its_callback_retire_it(
    above: Above, message: str, reason: str
) -> None:
    above.serve()
    above.tell(message)
    above.until(lambda: above.said()[-1].get("cmd") == RETIRE)
    assert reason in above.said()[-1]["reason"]
    above.signal(signal.SIGTERM)
    assert above.status() == 0


def test_a_program_that_fails_when_its_supervisor_is_gone_leaves_all_the_same(
    above: Above, tmp_path: Path
) -> None:
    above.serve()
    assert above.channel is not None
    above.channel.close()
    above.status()
    assert (tmp_path / "gone").exists()


# What can be asked of the module itself.


def test_what_nobody_listens_to_is_bounded_and_its_handles_are_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = _State({})
    with ExitStack() as stack:
        handles = []
        for number in range(MOST_KEPT_HANDLES + 5):
            one, other = socket.socketpair()
            stack.enter_context(one)
            handles.append(stack.enter_context(other))
            state.deliver(number, other)
        open_ones = [handle.fileno() >= 0 for handle in handles]
        assert open_ones == [False] * 5 + [True] * MOST_KEPT_HANDLES
        for number in range(MOST_KEPT):
            state.deliver(number, None)
        assert len(state.kept) == MOST_KEPT
        assert all(handle.fileno() < 0 for handle in handles)
        assert state.kept_handles == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "once"


async def test_a_message_that_comes_while_the_first_are_told_is_told_behind_them() -> None:
    state = _State({})
    told: list[Any] = []
    for number in range(3):
        state.deliver(number, None)
    state.listen(lambda message, _: told.append(message))
    state.deliver(3, None)
    assert told == [], "not from within"
    await asyncio.sleep(0)
    assert told == [0, 1, 2, 3]


@pytest.mark.parametrize("register", [process.on_message, process.on_disconnect])
def test_a_callback_that_would_never_run_is_refused(
    register: Callable[[Callable[..., object]], object],
) -> None:
    async def told(*_: object) -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        register(told)


@pytest.mark.parametrize("command", [READY, "NODE_HANDLE", "NODE_CLUSTER"])
def test_a_program_cannot_speak_for_the_runtime(command: str) -> None:
    with pytest.raises(ValueError, match="not for programs"):
        process.send({"cmd": command})


def test_the_first_use_without_a_loop_is_one_clear_error() -> None:
    ours, theirs = pair()
    with ours, theirs:
        environ = {CHANNEL_FD: str(theirs.fileno()), SLOT: "x", SERVICE: "web"}
        state = _State(environ)
        assert (state.is_worker, state.slot, state.service) == (True, None, "web")
        with pytest.raises(RuntimeError, match="event loop"):
            state.upward()
        assert CHANNEL_FD in environ, "it can be tried again"
