"""A cluster inside a Python program serves inside the block, and leaves nothing after it."""

import asyncio
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.descriptors import descriptors

from penstock_supervisor.children.events import Subscription
from penstock_supervisor.cluster import (
    Cluster,
    Config,
    Event,
    NotNowError,
    ReloadRefused,
    StartError,
)

WAIT_S = 60.0
LARGE = 1_000_000
SCHEMES = ("ports", "handoff", "shared", "reuseport")
SERVER = """
import os, socket, time
with socket.socket(fileno=3) as server:
    while True:
        server.accept()[0].close()
"""
TALKER = """
import json, os, socket
channel = socket.socket(fileno=int(os.environ["PENSTOCK_CHANNEL_FD"]))
channel.setblocking(True)
lines = channel.makefile()
pair = socket.socketpair()
for line in lines:
    message = json.loads(line)
    if message == "give":
        envelope = {"cmd": "NODE_HANDLE", "type": "net.Socket", "msg": "here it is"}
        socket.send_fds(channel, [json.dumps(envelope).encode() + b"\\n"], [pair[0].fileno()])
    elif not (isinstance(message, dict) and "cmd" in message):
        channel.sendall(json.dumps({"heard": message}).encode() + b"\\n")
"""
# Accepts in a thread, so that the supervisor sees that it took its socket.
BOTH = f"""
import threading
def accept():
    import socket
    with socket.socket(fileno=3) as server:
        while True:
            server.accept()[0].close()
threading.Thread(target=accept, daemon=True).start()
{TALKER}
"""


def config(code: str = SERVER, **keys: Any) -> Config:
    service = {"name": "web", "listen": "127.0.0.1:0", "scheme": "shared", "workers": 2, **keys}
    if "app" not in keys:
        service["command"] = [sys.executable, "-c", code]
    return Config.model_validate({"admin": "", "services": [service]})


async def next_event(name: str, events: Subscription, times: int = 1) -> Event:
    """The next event of that name; with `times` 2 the one after it, and so on."""
    async for event in events:
        if event.name == name:
            times -= 1
            if not times:
                return event
        elif event.handle is not None:
            event.handle.close()
    raise LookupError(name)


class EventsByProcess:
    """The names of the events of each worker process."""

    def __init__(self, events: Subscription) -> None:
        self._events = events
        self.names: dict[int, list[str]] = {}

    def alive(self) -> list[int]:
        return [pid for pid, names in self.names.items() if "exit" not in names]

    async def until_listening(self, count: int) -> None:
        while count:
            count -= self._note(await anext(self._events)) == "listening"

    async def until_the_end(self) -> None:
        async for event in self._events:
            self._note(event)

    def _note(self, event: Event) -> str:
        if event.role == "worker" and event.pid is not None:
            self.names.setdefault(event.pid, []).append(event.name)
        return event.name


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert [child.cmdline() for child in psutil.Process().children(recursive=True)] == []
    assert descriptors() <= before


async def test_inside_the_block_clients_are_served_and_after_it_refused() -> None:
    async with asyncio.timeout(WAIT_S):
        async with Cluster(config()) as cluster:
            host, port = cluster.listening["web"].rsplit(":", 1)
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            await writer.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))


async def test_the_events_of_a_run_come_in_order() -> None:
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config(workers=1))
        events = cluster.events()
        async with cluster:
            pass
        names = [event.name async for event in events if event.role == "worker"]
    assert names == ["fork", "listening", "disconnect", "exit"]


async def test_an_exit_event_has_its_signal_and_the_worker_restarts() -> None:
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config())
        events = cluster.events()
        async with cluster:
            first = await next_event("fork", events)
            assert first.pid is not None
            os.kill(first.pid, signal.SIGKILL)
            gone = await next_event("exit", events)
            assert (gone.pid, gone.slot, gone.code, gone.signal) == (
                first.pid, first.slot, None, "SIGKILL",
            )  # fmt: skip
            again = await next_event("fork", events)
            assert (again.slot, again.pid != first.pid) == (first.slot, True)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_every_process_is_disconnected_once_before_its_exit_however_it_ends(
    scheme: str,
) -> None:
    rounds, workers = 3, 10
    often = {"max_restarts": rounds * workers, "backoff": "1ms"}
    keys = {"app": "penstock_worker.demo:app", "scheme": scheme, "access_log": "off"}
    async with asyncio.timeout(3 * WAIT_S):
        cluster = Cluster(config(workers=workers, restart=often, **keys))
        noted = EventsByProcess(cluster.events())
        async with cluster:
            for _ in range(rounds):
                await noted.until_listening(workers)
                # Together, so that several ends are seen in one turn of the loop.
                for pid in noted.alive():
                    os.kill(pid, signal.SIGKILL)
            await noted.until_listening(workers)
        # The last ones were told to stop.
        await noted.until_the_end()
    assert len(noted.names) == (rounds + 1) * workers
    for names in noted.names.values():
        assert names.count("disconnect") == 1
        assert names[-2:] == ["disconnect", "exit"]


async def test_messages_go_both_ways_to_the_right_worker() -> None:
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config(BOTH))
        events = cluster.events()
        async with cluster:
            for slot in (1, 0):
                assert cluster.send("web", slot, {"to": slot})
                answer = await next_event("message", events)
                assert (answer.slot, answer.message) == (slot, {"heard": {"to": slot}})


# Sends large messages, and leaves at once.
LEAVES = f"""
import asyncio, threading
def accept():
    import socket
    with socket.socket(fileno=3) as server:
        while True:
            server.accept()[0].close()
threading.Thread(target=accept, daemon=True).start()
from penstock_worker import process
async def main():
    go = asyncio.Event()
    process.on_message(lambda message, _: go.set())
    await go.wait()
    for number in range(25):
        await process.drain()
        process.send([number, "x" * {LARGE}])
asyncio.run(main())
"""
# Blocks its loop until it finds a file; an `app`.
BUSY = """
import asyncio, os, time
from aiohttp import web
from penstock_worker import process

heard = 0

@process.on_message
def callback(message, handle):
    global heard
    if message == "block":
        process.send("blocked")
        asyncio.get_running_loop().call_soon(block)
    elif message == "how many?":
        process.send(heard)
    else:
        heard += 1

def block():
    while not os.path.exists("go"):
        time.sleep(0.01)

async def last_words(app):
    for number in range(3):
        process.send([number, "x" * 900_000])

app = web.Application()
app.on_cleanup.append(last_words)
"""


def fill(cluster: Cluster) -> int:
    """Send to web/0 until that is refused; returns how many messages were accepted."""
    sent = 0
    codes: list[int | None] = []
    while not codes:
        try:
            assert cluster.send("web", 0, "x" * LARGE)
        except OSError as error:
            codes.append(error.errno)
        else:
            sent += 1
            assert sent < 100, "it is never refused"
    assert codes == [errno.ENOBUFS]
    return sent


async def test_messages_right_before_a_clean_exit_all_arrive() -> None:
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config(LEAVES, workers=1))
        events = cluster.events()
        async with cluster:
            assert cluster.send("web", 0, "go")
            numbers = []
            async for event in events:
                if event.name == "message":
                    numbers.append(event.message[0])
                elif event.name == "exit":
                    break
    assert (numbers, event.code) == (list(range(25)), 0)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_the_last_words_of_an_app_arrive(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    keys = {"app": "busy:app", "directory": str(tmp_path), "scheme": scheme, "access_log": "off"}
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config(workers=1, **keys))
        events = cluster.events()
        async with cluster:
            pass
        said = [event.message[0] async for event in events if event.name == "message"]
    assert said == [0, 1, 2]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_more_than_a_busy_worker_takes_is_refused_and_the_worker_stays(
    tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    keys = {"app": "busy:app", "directory": str(tmp_path), "scheme": scheme, "access_log": "off"}
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config(workers=1, **keys))
        events = cluster.events()
        async with cluster:
            assert cluster.send("web", 0, "block")
            assert (await next_event("message", events)).message == "blocked"
            sent = fill(cluster)
            draining = asyncio.ensure_future(cluster.drain("web", 0))
            await asyncio.sleep(0)
            assert not draining.done()
            (tmp_path / "go").touch()
            await draining
            assert cluster.send("web", 0, "x" * LARGE)
            await cluster.drain("web", 0)
            assert cluster.send("web", 0, "how many?")
            assert (await next_event("message", events)).message == sent + 1
            with pytest.raises(KeyError):
                await cluster.drain("web", 7)
        assert cluster._events.counts_of("worker", "web", 0)["fork"] == 1


async def test_a_descriptor_comes_with_its_message_and_belongs_to_the_subscriber() -> None:
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config(BOTH, workers=1))
        events = cluster.events()
        async with cluster:
            assert cluster.send("web", 0, "give")
            event = await next_event("message", events)
            assert event.message == "here it is"
            assert event.handle is not None
            assert event.handle.family == socket.AF_UNIX
            event.handle.close()


async def test_descriptors_without_a_subscriber_are_closed() -> None:
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config(BOTH, workers=1))
        events, ignored = cluster.events(), cluster.events()
        async with cluster:
            assert cluster.send("web", 0, "give")
            event = await next_event("message", events)
            assert event.handle is not None
            event.handle.close()
        ignored.close()
        # `nothing_left` counts.


async def test_a_worker_is_replaced_on_request() -> None:
    async with asyncio.timeout(WAIT_S):
        async with Cluster(config()) as cluster:
            events = cluster.events()
            cluster.replace("web", 1)
            seen: dict[str, Event] = {}
            while not {"listening", "exit"} <= seen.keys():
                event = await anext(events)
                seen[event.name] = event
            assert seen["listening"].slot == seen["exit"].slot == 1
            assert seen["listening"].pid != seen["exit"].pid


async def test_a_reload_returns_how_the_roll_out_ended_and_its_steps_are_events() -> None:
    async with asyncio.timeout(WAIT_S):
        async with Cluster(config()) as cluster:
            events = cluster.events()
            ended = await cluster.reload()
            assert (ended.result, len(ended.steps)) == ("succeeded", 2)
            assert (await next_event("rollout", events)).message["phase"] == "begin"
            while (event := await next_event("rollout", events)).message["phase"] != "end":
                assert (event.service, event.message["action"]) == ("web", "replace")
            assert event.message["result"] == "succeeded"
            with pytest.raises(ReloadRefused, match=r"service\.web\.scheme"):
                await cluster.reload(config(scheme="reuseport"))
            with pytest.raises(KeyError):
                await cluster.reload(None, "shop")
            # What was refused is not what comes next.
            assert (await cluster.reload()).result == "succeeded"


async def test_a_reload_is_not_possible_before_the_start() -> None:
    with pytest.raises(NotNowError):
        await Cluster(config()).reload()


async def test_a_worker_that_dies_while_its_successor_starts_does_not_come_back_beside_it() -> None:
    """Whenever its own restart comes: before, while or after the successor gets ready."""
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config(workers=1, restart={"backoff": "1ms", "backoff_max": "1ms"}))
        events = cluster.events()
        async with cluster:
            first = await next_event("listening", events)
            cluster.replace("web", 0)
            successor = await next_event("fork", events)
            assert first.pid is not None
            os.kill(first.pid, signal.SIGKILL)
            alive = {first.pid, successor.pid}
            came = False
            while not came or alive != {successor.pid}:
                event = await anext(events)
                came = came or (event.name == "listening" and event.pid == successor.pid)
                if event.name == "fork":
                    alive.add(event.pid)
                elif event.name == "exit":
                    alive.discard(event.pid)


async def test_an_unknown_slot_is_a_key_error() -> None:
    async with asyncio.timeout(WAIT_S), Cluster(config()) as cluster:
        with pytest.raises(KeyError):
            cluster.send("web", 2, "hello")
        with pytest.raises(KeyError):
            cluster.replace("api", 0)


async def test_a_program_that_cannot_run_fails_the_start_with_one_line() -> None:
    broken = Config.model_validate(
        {"admin": "", "services": [
            {"name": "web", "listen": "127.0.0.1:0", "command": ["/no/such/program"]},
        ]}
    )  # fmt: skip
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(StartError, match="no such program"):
            async with Cluster(broken):
                pytest.fail("it cannot start")


async def test_the_events_end_when_the_cluster_stops_itself() -> None:
    async with asyncio.timeout(WAIT_S):
        async with Cluster(config()) as cluster:
            events = cluster.events()
            cluster.stop()
            names = [event.name async for event in events]
            assert names.count("exit") == 2
            assert not cluster.send("web", 0, "anybody?")


async def test_a_stop_before_the_start_is_a_failed_start() -> None:
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config())
        cluster.stop()
        with pytest.raises(StartError, match="stopped before"):
            async with cluster:
                pytest.fail("it was stopped")


async def test_a_cancelled_start_leaves_nothing() -> None:
    cluster = Cluster(config("import time; time.sleep(1000)"))
    events = cluster.events()

    async def enter() -> None:
        async with cluster:
            pytest.fail("it never takes its socket")

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        entering = tasks.create_task(enter())
        await next_event("fork", events, 2)
        entering.cancel()
    assert entering.cancelled()


async def test_a_cancelled_stop_ends_at_once() -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVER
    cluster = Cluster(config(stubborn, timeouts={"stop": "10m"}))
    inside = asyncio.Event()

    async def live() -> None:
        async with cluster:
            inside.set()

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        living = tasks.create_task(live())
        await inside.wait()
        living.cancel()


async def test_an_error_in_the_block_stops_the_cluster_and_is_raised() -> None:
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(ZeroDivisionError):
            async with Cluster(config()):
                _ = 1 / 0


async def test_a_worker_with_the_penstock_runtime_is_online_before_it_listens() -> None:
    async with asyncio.timeout(WAIT_S):
        cluster = Cluster(config(app="penstock_worker.demo:app", workers=1, access_log="off"))
        events = cluster.events()
        async with cluster:
            pass
        names = [event.name async for event in events if event.role == "worker"]
    assert names[:3] == ["fork", "online", "listening"]
    assert names[-2:] == ["disconnect", "exit"]


def test_an_event_can_be_serialized_as_json() -> None:
    event = Event(name="message", role="worker", service="web", slot=0, message={"a": [1, None]})
    assert json.loads(json.dumps(event.message)) == {"a": [1, None]}
