"""Under our runtime a program shares the runtime's channel, but cannot send internal messages.

Messages that are kept for a program without a callback are bounded.

Covers `process` and `runtime/supervisor_link`.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.worker.supervisor import SupervisorEnd

from penstock_worker import process
from penstock_worker.channel.channel import pair
from penstock_worker.contract import CHANNEL_FD, READY, RETIRE, SERVICE, SLOT, UNCAUGHT
from penstock_worker.process import MAX_QUEUED, MAX_QUEUED_HANDLES, _State


def test_under_the_runtime_a_program_uses_the_runtimes_channel(
    supervisor: SupervisorEnd, udp: socket.socket
) -> None:
    supervisor.serve()
    imported = ["imported", True, 3, "web"]
    assert supervisor.received().index(imported) < supervisor.received().index({"cmd": READY})
    supervisor.send({"x": 1}, udp)
    supervisor.until(lambda: ["told", {"x": 1}] in supervisor.messages)
    assert supervisor.handles[0].getsockname() == udp.getsockname()
    supervisor.signal(signal.SIGTERM)
    assert supervisor.status() == 0


@pytest.mark.parametrize(
    ("message", "command", "reason"),
    [("retire", RETIRE, "had enough"), ("break", UNCAUGHT, "in a callback")],
)
def test_the_supervisor_hears_of_retire_and_of_an_exception_in_a_callback(
    supervisor: SupervisorEnd, message: str, command: str, reason: str
) -> None:
    supervisor.serve()
    supervisor.send(message)
    supervisor.until(lambda: supervisor.received()[-1].get("cmd") == command)
    assert reason in supervisor.received()[-1]["reason"]
    supervisor.signal(signal.SIGTERM)
    assert supervisor.status() == 0


def test_a_worker_exits_although_its_on_disconnect_raises(
    supervisor: SupervisorEnd, tmp_path: Path
) -> None:
    supervisor.serve()
    assert supervisor.channel is not None
    supervisor.channel.close()
    supervisor.status()
    assert (tmp_path / "gone").exists()


def test_messages_without_a_callback_are_bounded_and_their_handles_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = _State({})
    with ExitStack() as stack:
        handles = []
        for number in range(MAX_QUEUED_HANDLES + 5):
            one, other = socket.socketpair()
            stack.enter_context(one)
            handles.append(stack.enter_context(other))
            state.deliver(number, other)
        open_ones = [handle.fileno() >= 0 for handle in handles]
        assert open_ones == [False] * 5 + [True] * MAX_QUEUED_HANDLES
        for number in range(MAX_QUEUED):
            state.deliver(number, None)
        assert len(state.queued) == MAX_QUEUED
        assert all(handle.fileno() < 0 for handle in handles)
        assert state.queued_handles == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "once"


async def test_a_message_that_comes_during_the_delivery_of_queued_ones_follows_them() -> None:
    state = _State({})
    delivered: list[Any] = []
    for number in range(3):
        state.deliver(number, None)
    state.listen(lambda message, _: delivered.append(message))
    state.deliver(3, None)
    assert delivered == [], "not from within"
    await asyncio.sleep(0)
    assert delivered == [0, 1, 2, 3]


@pytest.mark.parametrize("register", [process.on_message, process.on_disconnect])
def test_a_callback_that_would_never_run_is_refused(
    register: Callable[[Callable[..., object]], object],
) -> None:
    async def callback(*_: object) -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        register(callback)


@pytest.mark.parametrize("command", [READY, "NODE_HANDLE", "NODE_CLUSTER"])
def test_a_program_cannot_send_internal_commands(command: str) -> None:
    with pytest.raises(ValueError, match="not for programs"):
        process.send({"cmd": command})


def test_the_first_use_without_a_loop_is_one_clear_error() -> None:
    ours, theirs = pair()
    with ours, theirs:
        environ = {CHANNEL_FD: str(theirs.fileno()), SLOT: "x", SERVICE: "web"}
        state = _State(environ)
        assert (state.is_worker, state.slot, state.service) == (True, None, "web")
        with pytest.raises(RuntimeError, match="event loop"):
            state.open_channel()
        assert CHANNEL_FD in environ, "it can be tried again"
