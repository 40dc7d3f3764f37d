"""A hostile worker is named and replaced, and the supervisor and other workers go on."""

from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from tests.live.conftest import Penstock

PROGRAM = """
import os, signal, socket, http.server, threading
up = socket.socket(fileno=int(os.environ["PENSTOCK_CHANNEL_FD"]))
up.setblocking(True)

def garbage():
    up.sendall(b"this is not JSON\\n")

def endless():
    piece = b"x" * (1 << 20)
    try:
        for _ in range(100):
            up.sendall(piece)
    except OSError:
        pass

def stray():
    with open("/dev/null") as file:
        socket.send_fds(up, [b'{"cmd":"hello"}\\n'], [file.fileno()])

def no_socket():
    with open("/dev/null") as file:
        line = b'{"cmd":"NODE_HANDLE","type":"net.Socket","msg":1}\\n'
        socket.send_fds(up, [line], [file.fileno()])

def unasked():
    up.sendall(b'{"cmd":"NODE_HANDLE_ACK"}\\n')

def unknown():
    up.sendall(b'{"cmd":"NODE_PENSTOCK_NONSENSE"}\\n{"cmd":"NODE_PENSTOCK_STATS","seq":[]}\\n[1,2]\\n'
               b'{"cmd":"reconfigured","seq":1}\\n')

def cuts():
    line = b'{"cmd":"NODE_PENSTOCK_CUT","count":' + b"9" * 4299 + b"}\\n"
    up.sendall(line * 20 + b'{"cmd":"NODE_PENSTOCK_CUT","count":3}\\n' * 1000)

def retires():
    line = b'{"cmd":"NODE_PENSTOCK_RETIRE","reason":"a\\\\n00:00:00.000 INFO    forged"}\\n'
    up.sendall(line * 10000)

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.strip("/")
        if name in globals():
            threading.Thread(target=globals()[name]).start()
        body = f"{os.getpid()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

address = (os.environ["HOST"], int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""


@pytest.fixture
def program(tmp_path: Any) -> list[str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    return ["python3", "program.py"]


@pytest.mark.parametrize(
    ("evil", "named"),
    [
        ("garbage", "not JSON"),
        ("endless", "a line of more than"),
        ("stray", "descriptor"),
        ("no_socket", "no socket"),
        ("unasked", "nobody asked for"),
    ],
)
def test_a_worker_that_breaks_the_channel_is_named_and_replaced(
    penstock: "Penstock", program: list[str], evil: str, named: str
) -> None:
    run = penstock(command=program, workers=2)
    supervisor = psutil.Process(run.process.pid)
    memory = supervisor.memory_info().rss
    before = {worker["slot"]: worker["pid"] for worker in run.workers()}
    status, pid = run.get(f"/{evil}")
    assert status == 200
    (slot,) = [slot for slot, other in before.items() if other == int(pid)]

    def is_replaced() -> bool:
        now = {worker["slot"]: worker for worker in run.workers()}
        return now[slot]["pid"] not in (None, int(pid)) and now[slot]["health"] == "up"

    run.until(is_replaced)
    assert f"web/{slot}" in run.err
    assert named in run.err
    now = {worker["slot"]: worker["pid"] for worker in run.workers()}
    assert now[1 - slot] == before[1 - slot], "the other one is unharmed"
    run.until(lambda: not psutil.pid_exists(int(pid)))
    assert supervisor.memory_info().rss - memory < 32 << 20
    assert run.get("/")[0] == 200


def test_unknown_messages_on_the_channel_change_nothing(
    penstock: "Penstock", program: list[str]
) -> None:
    run = penstock(command=program, workers=2)
    before = {worker["pid"] for worker in run.workers()}
    assert run.get("/unknown")[0] == 200
    run.until(lambda: "is not understood" in run.err)
    # What only a proxy says is a message of the program.
    run.until(
        lambda: run.metric("penstock_child_events_total", role="worker", event="message") == 2
    )
    assert {worker["pid"] for worker in run.workers()} == before


def test_numbers_without_end_and_false_counts_do_not_end_the_run(
    penstock: "Penstock", program: list[str]
) -> None:
    run = penstock(command=program, workers=2)
    assert run.get("/cuts")[0] == 200
    run.until(lambda: "cut: 3" in run.err)
    assert run.get("/unknown")[0] == 200
    run.until(lambda: "is not understood" in run.err)
    assert run.stop() == 0
    assert run.err.count("the time to finish is over") == 1
    assert "Traceback" not in run.err


def test_who_retires_ten_thousand_times_is_replaced_once_and_forges_no_line(
    penstock: "Penstock", program: list[str]
) -> None:
    run = penstock(command=program, workers=2)
    _, pid = run.get("/retires")
    run.until(lambda: not psutil.pid_exists(int(pid)))
    assert run.stop() == 0
    assert run.err.count(" retires: ") == run.err.count("; replacing it") + 1 == 2
    assert not [line for line in run.err.splitlines() if line.startswith("00:00:00.000")]
