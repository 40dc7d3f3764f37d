"""What live tests are made of: a real `penstock run`, workers that say what a test wants
them to, byte for byte, and a client that reads as little and as late as it is told.

Fixtures and not modules to import, because test modules cannot import each other. Every
wait has a deadline and every socket a time-out; what is started is ended by its pid, and a
run that leaves a process behind or a traceback in its log fails the test that started it.
"""

import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

WAIT_S = 60.0
PIECE = 1 << 16


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition, as long as it may take on a busy machine."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it was on the wire; `body` is without its framing."""

    status: int
    version: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    trailers: bytes

    def __getitem__(self, name: str) -> str | None:
        """The field of that name, whatever its case; None if there is none."""
        values = [value for key, value in self.fields if key.lower() == name.lower().encode()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0].decode() if values else None


class Wire:
    """One end of a connection. Reads only what it is asked to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(WAIT_S)
        self._buffer = bytearray()

    def send(self, *data: bytes) -> None:
        self.sock.sendall(b"".join(data))

    def ask(self, *data: bytes, method: str = "GET") -> Answer:
        """Send a whole request and read the whole answer."""
        self.send(*data)
        return self.answer(method)

    def _more(self) -> None:
        data = self.sock.recv(PIECE)
        if not data:
            raise EOFError(bytes(self._buffer[-100:]))
        self._buffer += data

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark. EOFError: the end came first."""
        while mark not in self._buffer:
            self._more()
        return self.exactly(self._buffer.index(mark) + len(mark))

    def head(self) -> bytes:
        return self.until(b"\r\n\r\n")

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def some(self) -> bytes:
        """What there is, at least a byte. EOFError: the end came first."""
        if not self._buffer:
            self._more()
        return self.exactly(len(self._buffer))

    def rest(self) -> bytes:
        """Everything up to the end."""
        with suppress(EOFError):
            while True:
                self._more()
        return self.exactly(len(self._buffer))

    def chunks(self) -> tuple[bytes, bytes]:
        """A chunked body and its trailers."""
        body = b""
        while size := int(self.until(b"\r\n"), 16):
            body += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        trailers = b""
        while (line := self.until(b"\r\n")) != b"\r\n":
            trailers += line
        return body, trailers

    def answer(self, method: str = "GET") -> Answer:
        """The next response."""
        line, *lines = self.head()[:-4].split(b"\r\n")
        version, status, *_ = line.split(b" ", 2)
        fields = [(name, value.strip()) for name, _, value in (f.partition(b":") for f in lines)]
        answer = Answer(int(status), version, fields, b"", b"")
        if method == "HEAD" or answer.status in (204, 304) or answer.status < 200:
            return answer
        if answer["Transfer-Encoding"]:
            assert not answer["Content-Length"]
            body, trailers = self.chunks()
            return replace(answer, body=body, trailers=trailers)
        if (length := answer["Content-Length"]) is not None:
            return replace(answer, body=self.exactly(int(length)))
        assert answer["Connection"] == "close"
        return replace(answer, body=self.rest())

    def finish(self) -> None:
        """Say that nothing more is sent; go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close it the rude way."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def is_ended(self) -> bool:
        """Wait for the end, and say that it is one: nothing was left to read."""
        with suppress(ConnectionResetError):
            return not self.rest()
        return True

    def close(self) -> None:
        self.sock.close()


class Origin:
    """A worker, or whatever a test makes of one: `answer` is given each connection.

    A connection that ends without a byte was a health check. What `answer` finds wrong
    fails the test; that its client left is no fault.
    """

    def __init__(self, answer: Callable[[Wire], object], host: str = "127.0.0.1") -> None:
        self._answer = answer
        self._listener = socket.create_server((host, 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        self.address = f"{host}:{self.port}"
        self.faults: list[BaseException] = []
        self._wires: list[Wire] = []
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._threads = [threading.Thread(target=self._accept, args=(self._listener,))]
        self._threads[0].start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            wire = Wire(sock)
            thread = threading.Thread(target=self._serve, args=(wire,))
            with self._lock:
                self._wires.append(wire)
                self._threads.append(thread)
            thread.start()

    def _serve(self, wire: Wire) -> None:
        try:
            self._answer(wire)
        except (OSError, EOFError):
            pass
        except BaseException as fault:  # noqa: BLE001 -- raised by `close`, in the test's thread
            self.faults.append(fault)
        finally:
            # A test that keeps a wire says so by making it None here.
            wire.close()

    def away(self) -> None:
        """From now on connecting is refused; connections that stand are cut."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for wire in self._wires:
                with suppress(OSError):
                    wire.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def back(self) -> None:
        """Listen again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self._begin()

    def close(self) -> None:
        self.away()
        if self.faults:
            raise self.faults[0]


class Cluster:
    """One `penstock run` and every process that it ever had."""

    def __init__(
        self,
        folder: Path,
        services: Mapping[str, Mapping[str, Any]],
        *words: str,
        under: Sequence[str] = (),
        top: Mapping[str, Any] | None = None,
    ) -> None:
        """`under` are words that start it, such as those of setpriv; `top`, keys of the run."""
        self.folder = folder
        self.may_trace = False
        """A worker's last words have a traceback, and are logged by us."""
        keys = {"admin": "127.0.0.1:0", **(top or {})}
        lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        for name, table in services.items():
            lines += _table(f"service.{name}", {"listen": "127.0.0.1:0", **table})
        (folder / "penstock.toml").write_text("\n".join(lines))
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *under, sys.executable, "-m", "penstock_supervisor", "run",
                    "-c", "penstock.toml", *words,
                ],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip
        self._seen: dict[int, psutil.Process] = {}
        self._wires: list[Wire] = []
        try:
            self.until(lambda: "Ctrl-C to stop" in self.err)
            self.until(lambda: all(worker["standing"] == "up" for worker in self.workers()))
        except BaseException:
            self.kill()
            raise

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    @property
    def said(self) -> str:
        """What our own processes said; a program may complain as it likes."""
        return re.sub(r"(?m)^(?!front)\w+/\d+ \| .*\n", "", self.err)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The access log, as far as it is written."""
        text = (self.folder / "access.log").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait for a condition while the run goes on."""

        def met() -> object:
            self.look()
            assert self.process.poll() is None, self.err
            return condition()

        until(met, what)

    def look(self) -> list[psutil.Process]:
        """Everything below the supervisor; remembered for the end."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._seen.update((process.pid, process) for process in found)
        return found

    def address(self, name: str = "web") -> tuple[str, int]:
        match = re.search(rf"^{name} on (?:https?://)?([\d.]+):(\d+)", self.err, re.MULTILINE)
        assert match, self.err
        return match[1], int(match[2])

    def connect(self, name: str = "web") -> Wire:
        wire = Wire(socket.create_connection(self.address(name), timeout=WAIT_S))
        self._wires.append(wire)
        return wire

    def hang_up(self) -> None:
        """End all of `connect`'s connections."""
        while self._wires:
            self._wires.pop().close()

    def get(self, path: str = "/", name: str = "web") -> tuple[int, str]:
        """One request on a connection of its own: status and body."""
        connection = http.client.HTTPConnection(*self.address(name), timeout=WAIT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def status(self) -> Any:
        return json.loads(self.get("/status", "admin")[1])

    def workers(self, *names: str) -> list[dict[str, Any]]:
        """What /status says of the workers of these services, or of all."""
        services = self.status()["services"]
        return [worker for name in names or services for worker in services[name]["workers"]]

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all samples of that name with these labels."""
        page = self.get("/metrics", "admin")[1]
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def front(self) -> psutil.Process:
        (front,) = self.fronts
        return front

    @property
    def fronts(self) -> list[psutil.Process]:
        """By slot; all of them have to be there."""
        return [psutil.Process(front["pid"]) for front in self.status()["fronts"]]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to leave; return its exit status once nothing is left of it."""
        self.look()
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        until(lambda: self.process.poll() is not None, "the supervisor's end")
        until(lambda: not any(map(_is_alive, self._seen.values())), "the end of all it started")
        return self.process.returncode

    def kill(self) -> None:
        """Whatever is left: end it, each by its pid."""
        self.hang_up()
        self.look()
        self.process.kill()
        self.process.wait(WAIT_S)
        for process in filter(_is_alive, self._seen.values()):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def close(self) -> None:
        try:
            self.hang_up()
            if self.process.poll() is None:
                assert self.stop() == 0, self.err
            assert self.may_trace or "Traceback" not in self.said, self.err
        finally:
            self.kill()


def _table(path: str, keys: Mapping[str, Any]) -> Iterator[str]:
    """A table in TOML."""
    yield f"[{path}]"
    # Quoted: the name of a host has dots, and is one key all the same.
    for key, value in keys.items():
        if not isinstance(value, Mapping):
            yield f"{json.dumps(key)} = {_value(value)}"
    for key, value in keys.items():
        if isinstance(value, Mapping):
            yield from _table(f"{path}.{key}", value)


def _value(value: Any) -> str:
    """Numbers and text read in TOML as they do in JSON, and so do lists of them; tables do not."""
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{json.dumps(key)} = {_value(one)}" for key, one in value.items())
        return f"{{{pairs}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)


def _is_alive(process: psutil.Process) -> bool:
    """A dead one that its new parent has not buried yet is none of ours."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


Penstock = Callable[..., Cluster]
Worker = Callable[..., Origin]
Launch = Callable[..., Cluster]
Peak = Callable[[int], Callable[[], int]]


@pytest.fixture
def origin() -> Iterator[Worker]:
    """Makes workers: `origin(answer)`."""
    with ExitStack() as stack:

        def make(answer: Callable[[Wire], object]) -> Origin:
            made = Origin(answer)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def penstock(tmp_path: Path) -> Iterator[Penstock]:
    """Makes a run: `penstock("--to", address, balance="hash")`, or of several `services`."""
    with ExitStack() as stack:

        def make(
            *words: str,
            services: Mapping[str, Mapping[str, Any]] | None = None,
            folder: Path = tmp_path,
            under: Sequence[str] = (),
            top: Mapping[str, Any] | None = None,
            **keys: Any,
        ) -> Cluster:
            ours = "app" in keys and keys.get("mode") != "udp"
            seen = ours or keys.get("scheme", "ports") == "ports"
            log = "./access.log" if seen else "off"
            tables = services or {"web": {"access_log": log, **keys}}
            made = Cluster(folder, tables, *words, under=under, top=top)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Makes runs that the tests of a module share: `launch(web={...}, raw={...})`."""
    with ExitStack() as stack:

        def make(*words: str, **services: Mapping[str, Any]) -> Cluster:
            made = Cluster(tmp_path_factory.mktemp("run"), services, *words)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="module")
def demo_run(launch: Launch) -> Cluster:
    """The demo application under both modes: services web (http) and raw (tcp)."""
    demo = {"app": "penstock_worker.demo:app", "access_log": "off"}
    return launch(web=demo, raw={**demo, "mode": "tcp"})


@pytest.fixture
def demo(demo_run: Cluster) -> Iterator[Cluster]:
    """The demo application, shared by the tests of a module."""
    yield demo_run
    demo_run.hang_up()


@pytest.fixture
def peak() -> Peak:
    """From `peak(pid)` on: by how many bytes a process has grown at the most, asked when it is."""

    def begin(pid: int) -> Callable[[], int]:
        status = Path(f"/proc/{pid}/status")

        def high_water() -> int:
            match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
            assert match
            return int(match[1]) << 10

        # Forget what was the most until now.
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        before = high_water()
        return lambda: high_water() - before

    return begin
