"""Under every scheme: workers share the work, are replaced without a loss, and nothing leaks.

The same program, the same port, the same supervision; only the way of a connection to its
worker differs. What is promised of all schemes is tested of all of them here.
"""

import asyncio
import re
import signal
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from tests.live.cluster import Cluster
    from tests.live.conftest import Penstock

DEMO = "penstock_worker.demo:app"
SCHEMES = ("ports", "handoff", "shared", "reuseport")
PASSED = ("handoff", "shared", "reuseport")
CROWD = 32
GET = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

PROGRAM = """
import asyncio, os
from aiohttp import web
from penstock_worker import process

async def hello(request):
    return web.Response(text=f"hello from {process.slot} (pid {os.getpid()})")

async def slow(request):
    await asyncio.sleep(float(request.query["s"]))
    return web.Response(text=f"slept in {os.getpid()}")

async def retire(request):
    process.retire("had enough")
    return web.Response(text=str(os.getpid()))

async def throw(request):
    def broken():
        raise RuntimeError("nobody catches this")
    asyncio.get_running_loop().call_soon(broken)
    return web.Response(text=str(os.getpid()))

async def say(request):
    process.send({"from": process.slot})
    return web.Response(text="said")

app = web.Application()
app.router.add_get("/", hello)
app.router.add_get("/slow", slow)
app.router.add_get("/retire", retire)
app.router.add_get("/throw", throw)
app.router.add_get("/say", say)
app.router.add_get("/healthz", hello)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    """An application of a test's own, which can be made to retire."""
    (tmp_path / "program.py").write_text(PROGRAM)
    return "program:app"


async def once(address: tuple[str, int], path: bytes = b"/") -> str:
    """One request on a connection of its own; its body, or what went wrong."""
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError as error:
        return f"connect: {error.strerror}"
    try:
        writer.write(GET % path)
        answer = await asyncio.wait_for(reader.read(), 60)
    except (OSError, TimeoutError) as error:
        return f"lost: {type(error).__name__}"
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return f"answer: {head[:40]!r}"
    return body.decode()


async def crowd(
    address: tuple[str, int],
    count: int,
    *,
    meanwhile: Callable[[int], Awaitable[object] | None] = lambda _: None,
) -> list[str]:
    """`count` clients, CROWD at a time; `meanwhile(n)` is called after each n-th answer."""
    answers: list[str] = []
    started = 0

    async def client() -> None:
        nonlocal started
        while started < count:
            started += 1
            answers.append(await once(address))
            if (todo := meanwhile(len(answers))) is not None:
                await todo

    await asyncio.gather(*(client() for _ in range(CROWD)))
    return answers


def pids(run: "Cluster") -> set[int]:
    return {worker["pid"] for worker in run.workers()}


def settled(run: "Cluster", count: int, but: set[int]) -> None:
    """Wait until `count` workers are up, none of them in `but`."""

    def are_there() -> bool:
        workers = run.workers()
        fresh = {worker["pid"] for worker in workers if worker["standing"] == "up"}
        return len(fresh) == count and not fresh & but

    run.until(are_there)


def failures(answers: list[str]) -> list[str]:
    return [answer for answer in answers if not answer.startswith("hello")]


def handoffs(run: "Cluster", result: str) -> float:
    return run.metric("penstock_handoffs_total", result=result)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_workers_share_the_work_on_one_port(penstock: "Penstock", scheme: str) -> None:
    run = penstock(app=DEMO, scheme=scheme, workers=3)
    answers = asyncio.run(crowd(run.address(), 600))
    assert not failures(answers)
    shares = Counter(re.sub(r" \(.*", "", answer.strip()) for answer in answers)
    assert len(shares) == 3, shares
    if scheme in ("ports", "handoff"):
        assert set(shares.values()) == {200}


@pytest.mark.parametrize("scheme", PASSED)
def test_a_client_is_seen_with_its_own_address(penstock: "Penstock", scheme: str) -> None:
    run = penstock(app=DEMO, scheme=scheme)
    wire = run.connect()
    wire.send(b"GET /headers HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b'"peer": "127.0.0.1"' in wire.answer().body


@pytest.mark.parametrize("scheme", ["ports", "handoff", "shared"])
def test_a_unix_socket_or_a_port_is_the_same(
    penstock: "Penstock", tmp_path: Path, scheme: str
) -> None:
    run = penstock(app=DEMO, scheme=scheme, listen="unix:web.sock")
    sock = socket.socket(socket.AF_UNIX)
    with sock:
        sock.settimeout(60)
        sock.connect(str(tmp_path / "web.sock"))
        sock.sendall(GET % b"/")
        assert b"hello from web/" in sock.recv(4096)
    assert run.stop() == 0


@pytest.mark.parametrize("scheme", PASSED)
def test_the_metrics_of_requests_do_not_depend_on_the_scheme(
    penstock: "Penstock", scheme: str
) -> None:
    run = penstock(app=DEMO, scheme=scheme)
    answers = asyncio.run(crowd(run.address(), 50))
    assert not failures(answers)
    run.until(lambda: run.metric("penstock_requests_total", service="web", code="200") == 50)
    assert run.metric("penstock_connections_total", service="web") == 50
    assert run.metric("penstock_worker_connections_total", service="web") == 50
    run.until(lambda: run.metric("penstock_connections_active", service="web") == 0)
    run.until(lambda: len(run.log) == 50)
    assert {line["status"] for line in run.log} == {200}
    assert {line["worker"] for line in run.log} == {"web/0", "web/1"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_descriptors_are_what_the_scheme_promises(penstock: "Penstock", scheme: str) -> None:
    run = penstock(app=DEMO, scheme=scheme)
    seen: set[str] = set()

    def all_have_served() -> bool:
        # The loop of a process opens one for itself with its first connection.
        seen.update(asyncio.run(crowd(run.address(), CROWD)))
        return len(seen) == 2

    run.until(all_have_served)
    run.until(lambda: run.metric("penstock_connections_active", service="web") == 0)
    before = descriptors(run)
    wires = [run.connect() for _ in range(100)]
    for wire in wires:
        wire.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    held = descriptors(run)
    grown = {role: held[role] - before[role] for role in held}
    if scheme == "ports":
        assert run.metric("penstock_fds_per_connection", service="web") > 1
        assert grown["front"] >= 100
    else:
        assert grown["front"] == 0
        assert grown["workers"] == 100
        assert run.metric("penstock_fds_per_connection", service="web") == 1
    # Who asked for the figures may not have hung up yet.
    run.until(lambda: descriptors(run)["supervisor"] <= before["supervisor"])
    run.hang_up()
    run.until(lambda: descriptors(run)["workers"] <= before["workers"] + 2)


def test_a_relayed_connection_costs_three_descriptors_and_a_port(penstock: "Penstock") -> None:
    run = penstock(app=DEMO, mode="tcp")
    wires = [run.connect() for _ in range(50)]
    for wire in wires:
        wire.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert run.metric("penstock_fds_per_connection", service="web") == 3
    assert run.metric("penstock_ephemeral_ports", service="web") >= 50


def descriptors(run: "Cluster") -> Counter[str]:
    """Open ones by role, as the kernel has it."""
    status = run.status()
    found = Counter(supervisor=psutil.Process(run.process.pid).num_fds(), front=0, workers=0)
    for front in status["fronts"]:
        found["front"] += psutil.Process(front["pid"]).num_fds()
    for worker in run.workers():
        found["workers"] += psutil.Process(worker["pid"]).num_fds()
    # The connection that asked for the status.
    return found


def test_of_ten_thousand_handed_off_none_is_lost_when_a_worker_is_killed(
    penstock: "Penstock",
) -> None:
    run = penstock(app=DEMO, scheme="handoff", workers=3, access_log="off")
    victim = run.workers()[0]["pid"]
    before = descriptors(run)

    def kill(answered: int) -> None:
        if answered == 5_000:
            psutil.Process(victim).kill()

    answers = asyncio.run(crowd(run.address(), 10_000, meanwhile=kill))
    # What the dead worker had taken is gone with it, and nothing else: a window at the most.
    assert len(failures(answers)) <= CROWD, Counter(failures(answers))
    settled(run, 3, {victim})
    run.until(lambda: run.metric("penstock_handoffs_in_flight") == 0)
    assert handoffs(run, "lost") == 0
    sent = handoffs(run, "taken") + handoffs(run, "returned")
    assert handoffs(run, "taken") >= 10_000 - handoffs(run, "returned")
    assert sent >= 10_000
    run.until(lambda: descriptors(run) <= before + Counter(supervisor=2, front=2, workers=6))


def test_what_a_stopped_worker_does_not_take_goes_to_another(penstock: "Penstock") -> None:
    run = penstock(
        app=DEMO, scheme="handoff", workers=2, timeouts={"connect": "500ms"}, access_log="off"
    )
    stopped = psutil.Process(run.workers()[0]["pid"])
    stopped.send_signal(signal.SIGSTOP)
    try:
        answers = asyncio.run(crowd(run.address(), 200))
        assert not failures(answers)
        assert not any("web/0" in answer for answer in answers)
        assert handoffs(run, "returned") > 0
    finally:
        stopped.send_signal(signal.SIGCONT)
    run.until(lambda: all(worker["standing"] == "up" for worker in run.workers()))
    assert handoffs(run, "lost") == 0
    answers = asyncio.run(crowd(run.address(), 100))
    assert not failures(answers)
    assert any("web/0" in answer for answer in answers)


@pytest.mark.parametrize("scheme", PASSED)
def test_a_connect_is_never_refused_while_the_worker_is_replaced(
    penstock: "Penstock", scheme: str
) -> None:
    run = penstock(app=DEMO, scheme=scheme, workers=1)
    (victim,) = pids(run)
    psutil.Process(victim).kill()
    answers = asyncio.run(crowd(run.address(), CROWD))
    assert not [answer for answer in answers if answer.startswith("connect:")]
    settled(run, 1, {victim})


def test_the_front_can_die_under_handoff(penstock: "Penstock") -> None:
    run = penstock(app=DEMO, scheme="handoff", workers=2, access_log="off")
    workers, front = pids(run), run.front

    def kill(answered: int) -> None:
        if answered == 500:
            front.kill()

    answers = asyncio.run(crowd(run.address(), 2_000, meanwhile=kill))
    assert not [answer for answer in answers if answer.startswith("connect:")]
    # Those that the front had accepted and not passed on go with it.
    assert len(failures(answers)) <= CROWD
    assert pids(run) == workers
    assert not failures(asyncio.run(crowd(run.address(), 100)))


@pytest.mark.parametrize("path", ["/retire", "/throw"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_that_retires_under_load_loses_no_request(
    penstock: "Penstock", program: str, scheme: str, path: str
) -> None:
    run = penstock(app=program, scheme=scheme, workers=2, health={"path": "/healthz"})
    run.may_trace = path == "/throw"
    before = pids(run)
    retired: list[str] = []

    async def load() -> list[str]:
        address = run.address()
        # One that is being served when its worker is told to go, whichever that is.
        long = [asyncio.create_task(once(address, b"/slow?s=1")) for _ in range(8)]
        answers = await crowd(address, 200)
        retired.append(await once(address, path.encode()))
        more = await crowd(address, 3_000)
        return [*answers, *more, *(await asyncio.gather(*long))]

    answers = asyncio.run(load())
    assert not [one for one in answers if not one.startswith(("hello", "slept"))]
    gone = int(retired[0])
    settled(run, 2, {gone})
    assert before - pids(run) == {gone}
    run.until(lambda: not psutil.pid_exists(gone))
    reason = "had enough" if path == "/retire" else "nobody catches this"
    assert reason in run.err
    assert ("RuntimeError" in run.err) is (path == "/throw")
    assert run.metric("penstock_worker_restarts_total", reason="retire") == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_workers_are_replaced_under_load_and_no_request_fails(
    penstock: "Penstock", program: str, scheme: str
) -> None:
    run = penstock(app=program, scheme=scheme, workers=2, health={"path": "/healthz"})
    before = pids(run)
    run.process.send_signal(signal.SIGHUP)
    failed: list[str] = []
    while "all workers are replaced" not in run.err:
        failed += failures(asyncio.run(crowd(run.address(), 200)))
        run.look()
        assert run.process.poll() is None
    assert not failed
    settled(run, 2, before)
    run.until(lambda: not any(psutil.pid_exists(pid) for pid in before))


def test_a_worker_that_retires_and_does_not_leave_is_killed(
    penstock: "Penstock", program: str
) -> None:
    run = penstock(app=program, workers=2, timeouts={"stop": "1s"})
    wire = run.connect()
    wire.send(b"GET /slow?s=600 HTTP/1.1\r\nHost: x\r\n\r\n")
    run.until(lambda: run.metric("penstock_worker_active", service="web") == 1)
    before = pids(run)
    run.process.send_signal(signal.SIGHUP)
    settled(run, 2, before)
    run.until(lambda: not any(psutil.pid_exists(pid) for pid in before))
    assert "did not leave within 1 s and is killed" in run.err


def test_a_worker_that_retires_again_and_again_is_given_up(
    penstock: "Penstock", program: str
) -> None:
    run = penstock(
        app=program, workers=2, restart={"max_restarts": 2}, health={"interval": "100ms"}
    )

    def one_retires() -> bool:
        run.get("/retire")
        return "GIVING UP" in run.err

    run.until(one_retires)
    assert re.search(r"GIVING UP on web/\d", run.err)


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_any_program_that_knows_listen_fds_can_be_a_worker(
    penstock: "Penstock", tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "server.py").write_text(
        "import os, socket\n"
        "assert os.environ['LISTEN_PID'] == str(os.getpid())\n"
        "listener = socket.socket(fileno=3)\n"
        "listener.setblocking(True)\n"
        "while True:\n"
        "    client, _ = listener.accept()\n"
        "    client.recv(4096)\n"
        "    slot = os.environ['PENSTOCK_SLOT'].encode()\n"
        "    body = b'hello from ' + slot\n"
        "    client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 12\\r\\n\\r\\n' + body)\n"
        "    client.close()\n"
    )
    run = penstock(command=["python3", "server.py"], scheme=scheme, workers=2)
    answers = asyncio.run(crowd(run.address(), 400))
    assert not failures(answers)
    assert len(set(answers)) == 2


def test_a_program_that_ignores_listen_fds_is_named(tmp_path: Path, penstock: "Penstock") -> None:
    with pytest.raises(AssertionError, match="did not take the socket that it was given"):
        penstock(
            command=["python3", "-m", "http.server", "--bind", "127.0.0.1", "0"],
            scheme="shared",
            timeouts={"start": "3s"},
        )


def test_a_worker_that_fails_its_checks_has_its_socket_closed_until_it_passes(
    penstock: "Penstock",
) -> None:
    run = penstock(
        app=DEMO,
        scheme="reuseport",
        workers=2,
        access_log="off",
        health={"path": "/healthz", "interval": "100ms", "timeout": "200ms", "fall": 2},
    )
    stuck = psutil.Process(run.workers()[1]["pid"])
    stuck.send_signal(signal.SIGSTOP)
    try:
        run.until(lambda: "web/1: its socket is closed" in run.err)
        answers = asyncio.run(crowd(run.address(), 100))
        assert not failures(answers)
        assert all("web/0" in answer for answer in answers)
    finally:
        stuck.send_signal(signal.SIGCONT)
    run.until(lambda: all(worker["standing"] == "up" for worker in run.workers()))

    def both_serve() -> bool:
        answers = asyncio.run(crowd(run.address(), 100))
        assert not failures(answers)
        return any("web/1" in answer for answer in answers)

    run.until(both_serve)


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_datagrams_are_answered_by_every_worker(penstock: "Penstock", scheme: str) -> None:
    run = penstock(app="penstock_worker.demo:udp", mode="udp", scheme=scheme, workers=2)
    match = re.search(r"^web on (?:udp://)?([\d.]+):(\d+)", run.err, re.MULTILINE)
    assert match
    seen = set()

    def ask() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(60)
            sock.connect((match[1], int(match[2])))
            sock.send(b"hello\n")
            seen.add(sock.recv(4096))
        return len(seen) == 2

    run.until(ask)
    assert seen == {b"hello from web/0\n", b"hello from web/1\n"}


def test_a_client_that_resets_on_its_way_harms_nobody(penstock: "Penstock") -> None:
    run = penstock(app=DEMO, scheme="handoff", access_log="off")
    for _ in range(200):
        sock = socket.create_connection(run.address())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    assert not failures(asyncio.run(crowd(run.address(), 100)))
    run.until(lambda: run.metric("penstock_handoffs_in_flight") == 0)
    assert handoffs(run, "lost") == 0


def test_messages_of_a_program_are_counted_as_events(penstock: "Penstock", program: str) -> None:
    run = penstock(app=program, scheme="handoff")
    for _ in range(4):
        assert run.get("/say")[1] == "said"
    counted: dict[str, Any] = {"role": "worker", "service": "web"}
    run.until(lambda: run.metric("penstock_worker_events_total", event="message", **counted) == 4)
    assert run.metric("penstock_worker_events_total", event="fork", **counted) == 2
    assert run.metric("penstock_worker_events_total", event="listening", **counted) == 2
