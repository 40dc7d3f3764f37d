"""The module `process` works as documented in a program that runs without our runtime.

Real processes: the module exists once in a process, and much depends on which process has the
descriptor. The test holds the supervisor's end of the channel.

Covers `process`.
"""

import errno
import socket

from tests.support.worker.supervisor import SupervisorEnd

from penstock_worker.channel.channel import MAX_HANDLES
from penstock_worker.contract import ONLINE, PING, PONG, READY, RETIRE


def test_a_program_can_read_its_slot_and_service_and_send_them(supervisor: SupervisorEnd) -> None:
    supervisor.run("process.send([process.is_worker, process.slot, process.service])\nend()")
    assert supervisor.status() == 0
    supervisor.until(lambda: supervisor.disconnects == 1)
    assert supervisor.received() == [[True, 3, "web"]]
    assert supervisor.messages[0]["cmd"] == ONLINE, "before anything else"


def test_a_callback_may_be_set_before_there_is_a_loop(supervisor: SupervisorEnd) -> None:
    text = """
import asyncio
import errno
from penstock_worker import process

@process.on_message
def callback(message, handle):
    process.send(["told", message])
    loop.stop()

loop = asyncio.new_event_loop()
loop.call_soon(process.ready)
loop.run_forever()
"""
    supervisor.start("-W", "ignore", "-c", text)
    supervisor.until(lambda: {"cmd": READY} in supervisor.messages)
    supervisor.send({"any": ["JSON"]})
    supervisor.until(lambda: ["told", {"any": ["JSON"]}] in supervisor.messages)
    assert supervisor.status() == 0


def test_handles_go_both_ways(supervisor: SupervisorEnd, udp: socket.socket) -> None:
    supervisor.run("process.on_message(lambda m, h: (process.send(m, h), h.close(), end()))")
    supervisor.send("echo", udp)
    supervisor.until(lambda: len(supervisor.handles) == 1)
    assert supervisor.handles[0].getsockname() == udp.getsockname()
    assert supervisor.status() == 0


def test_messages_that_came_before_the_callback_was_set_are_delivered_in_order(
    supervisor: SupervisorEnd, udp: socket.socket
) -> None:
    supervisor.run(
        """
process.ready()
delivered = []
def callback(message, handle):
    delivered.append([message, handle is not None])
    if message == "last":
        process.send(delivered)
        end()
while not process._state.queued or process._state.queued[-1][0] != 9:
    await asyncio.sleep(0.001)
process.on_message(callback)
process.send("listens")
"""
    )
    for number in range(10):
        supervisor.send(number, udp if number == 5 else None)
    supervisor.until(lambda: "listens" in supervisor.messages)
    supervisor.send("last")
    supervisor.until(lambda: supervisor.disconnects == 1)
    assert supervisor.messages[-1] == [[n, n == 5] for n in range(10)] + [["last", False]]


def test_on_disconnect_is_called_when_the_supervisor_is_gone(supervisor: SupervisorEnd) -> None:
    supervisor.run("process.on_disconnect(lambda: sys.exit(5))\nprocess.ready()")
    supervisor.until(lambda: {"cmd": READY} in supervisor.messages)
    assert supervisor.channel is not None
    supervisor.channel.close()
    assert supervisor.status() == 5


def test_on_disconnect_set_after_the_supervisor_is_gone_is_still_called(
    supervisor: SupervisorEnd,
) -> None:
    supervisor.run(
        """
process.ready()
while process.send("still there"):
    await asyncio.sleep(0.001)
while not process._state.is_disconnected:
    await asyncio.sleep(0.001)
process.on_disconnect(end)
"""
    )
    supervisor.until(lambda: "still there" in supervisor.messages)
    assert supervisor.channel is not None
    supervisor.channel.close()
    assert supervisor.status() == 0


def test_retire_sends_the_supervisor_a_bounded_reason(supervisor: SupervisorEnd) -> None:
    supervisor.run('process.retire("cache is corrupt " + "x" * 100_000)')
    supervisor.until(lambda: len(supervisor.received()) == 1)
    (message,) = supervisor.received()
    assert message["cmd"] == RETIRE
    assert message["reason"].startswith("cache is corrupt xxx")
    assert len(message["reason"]) < 10_000


def test_a_ping_is_answered_and_internal_messages_are_hidden_from_the_program(
    supervisor: SupervisorEnd, udp: socket.socket
) -> None:
    supervisor.run("process.on_message(lambda m, h: process.send(['told', m]))")
    supervisor.send({"cmd": PING, "seq": 7})
    supervisor.send({"cmd": "NODE_PENSTOCK_NEWER"}, udp)
    supervisor.send({"cmd": "NODE_SOCKET_NOTIFY_CLOSE"}, udp)
    supervisor.send({"cmd": "NODE_"})
    supervisor.until(lambda: len(supervisor.received()) == 2)
    assert supervisor.received() == [{"cmd": PONG, "seq": 7}, ["told", {"cmd": "NODE_"}]]


def test_an_exception_in_a_callback_goes_to_the_loop_and_the_next_message_is_delivered(
    supervisor: SupervisorEnd,
) -> None:
    supervisor.run(
        """
caught = []
asyncio.get_running_loop().set_exception_handler(lambda _, c: caught.append(repr(c["exception"])))
def callback(message, handle):
    if message == "last":
        process.send(caught)
    raise ZeroDivisionError(message)
process.on_message(callback)
"""
    )
    supervisor.send("first")
    supervisor.send("last")
    supervisor.until(lambda: len(supervisor.received()) == 1)
    assert supervisor.received() == [["ZeroDivisionError('first')"]]


def test_handles_beyond_the_bound_are_refused_and_the_channel_stays_open(
    supervisor: SupervisorEnd,
) -> None:
    supervisor.run(
        """
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    taken = 0
    try:
        for number in range(1000):
            taken += process.send(number, sock)
    except OSError as error:
        refused = error.errno
while process._state.channel.congested:
    await asyncio.sleep(0.001)
process.send([taken, refused])
"""
    )
    supervisor.until(lambda: len(supervisor.received()) == MAX_HANDLES + 1)
    assert supervisor.received()[-1] == [MAX_HANDLES, errno.ENOBUFS]
    assert supervisor.received()[:-1] == list(range(MAX_HANDLES))
    assert supervisor.disconnects == 0


def test_a_program_that_sends_more_than_is_read_is_refused_and_can_wait_for_room(
    supervisor: SupervisorEnd,
) -> None:
    supervisor.run(
        """
sent = 0
try:
    while True:
        process.send("x" * 1_000_000)
        sent += 1
except OSError as error:
    refused = error.errno
await process.drain()
process.send([sent, refused])
end()
"""
    )
    supervisor.until(lambda: supervisor.disconnects == 1)
    *large, (sent, refused) = supervisor.received()
    assert (len(large), refused) == (sent, errno.ENOBUFS)
    assert supervisor.status() == 0


def test_messages_sent_right_before_the_exit_arrive_although_the_loop_is_closed(
    supervisor: SupervisorEnd,
) -> None:
    supervisor.run("for n in range(3): process.send([n, 'x' * 1_000_000])\nend()")
    supervisor.until(lambda: supervisor.disconnects == 1)
    assert [message[0] for message in supervisor.received()] == [0, 1, 2]
    assert supervisor.status() == 0
    assert supervisor.stderr() == ""


def test_a_child_that_the_program_forks_does_not_send_over_its_channel(
    supervisor: SupervisorEnd,
) -> None:
    supervisor.run(
        """
process.send("from the parent")
pid = os.fork()
if not pid:
    os._exit(int(process.send("from the child")))
process.send(["status", os.waitpid(pid, 0)[1]])
end()
"""
    )
    supervisor.until(lambda: supervisor.disconnects == 1)
    assert supervisor.received() == ["from the parent", ["status", 0]]


def test_send_from_another_thread_is_an_error_that_names_call_soon_threadsafe(
    supervisor: SupervisorEnd,
) -> None:
    supervisor.run(
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
    supervisor.until(lambda: len(supervisor.received()) == 2)
    assert "call_soon_threadsafe" in supervisor.received()[1]


def test_a_channel_variable_without_its_descriptor_means_no_supervisor(
    supervisor: SupervisorEnd,
) -> None:
    supervisor.run(
        """
assert not process.is_worker and process.slot is None
assert process.send("x") is False
process.ready()
process.retire("lonely")
end()
""",
        passed=False,
    )
    assert supervisor.status() == 0, supervisor.stderr()
    assert "there is no supervisor" in supervisor.stderr()


def test_without_a_supervisor_every_call_is_harmless(supervisor: SupervisorEnd) -> None:
    supervisor.run(
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
    assert (supervisor.status(), supervisor.stderr()) == (0, "")


def test_children_of_the_program_do_not_see_the_channel_variable(supervisor: SupervisorEnd) -> None:
    supervisor.run(
        """
process.ready()
child = await asyncio.create_subprocess_exec(
    sys.executable, "-c", "import os; print(os.environ.get('PENSTOCK_CHANNEL_FD'))",
    stdout=asyncio.subprocess.PIPE, close_fds=False)
process.send((await child.communicate())[0].decode())
end()
"""
    )
    supervisor.until(lambda: "None\n" in supervisor.messages)
    assert supervisor.status() == 0
