"""A real `penstock run` that a test controls, and every process that it ever had.

What is started is ended by its pid.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families
from tests.support.live.wire import WAIT_S, Wire, until


def environment() -> dict[str, str]:
    """Of a run: there are no authorities that the machine trusts, and nothing of ours asks for
    them. aiohttp reads all of them when it is imported, which is a tenth of what a run costs."""
    return {**os.environ, "SSL_CERT_FILE": os.devnull}


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
        self._top = top or {}
        self.configure(services)
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *under, sys.executable, "-m", "penstock_supervisor", "run",
                    "-c", "penstock.toml", *words,
                ],
                cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip
        self._seen: dict[int, psutil.Process] = {}
        self._wires: list[Wire] = []
        try:
            self.until(lambda: "Ctrl-C to stop" in self.err)
            self.until(lambda: all(worker["health"] == "up" for worker in self.workers()))
        except BaseException:
            self.kill()
            raise

    def configure(self, services: Mapping[str, Mapping[str, Any]], **top: Any) -> None:
        """Write the file; keys in `top` are those of the run, beside those that it began with."""
        keys = {"admin": "127.0.0.1:0", **self._top, **top}
        lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        for name, table in services.items():
            lines += _table(f"service.{name}", {"listen": "127.0.0.1:0", **_soon(table)})
        new = self.folder / "penstock.new"
        new.write_text("\n".join(lines))
        new.replace(self.folder / "penstock.toml")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    @property
    def said(self) -> str:
        """The log of our own processes, without the output of programs."""
        return re.sub(r"(?m)^(?!proxy)\w+/\d+ \| .*\n", "", self.err)

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
        found = descendants(self.process.pid)
        self._seen.update((process.pid, process) for process in found)
        return found

    def address(self, name: str = "web") -> tuple[str, int]:
        match = re.search(rf"^{name} on (?:https?://)?([\d.]+):(\d+)", self.err, re.MULTILINE)
        assert match, self.err
        return match[1], int(match[2])

    def connect(self, name: str = "web", source: str = "") -> Wire:
        """`source`: the address to come from."""
        address = self.address(name)
        wire = Wire(socket.create_connection(address, WAIT_S, (source, 0) if source else None))
        self._wires.append(wire)
        return wire

    def hang_up(self) -> None:
        """End all of `connect`'s connections."""
        while self._wires:
            self._wires.pop().close()

    def get(self, path: str = "/", name: str = "web") -> tuple[int, str]:
        """One request on a connection of its own: status and body."""
        return self.get_from(self.address(name), path)

    def get_from(self, address: tuple[str, int], path: str = "/") -> tuple[int, str]:
        """The same, from an address that was not there at the start."""
        connection = http.client.HTTPConnection(*address, timeout=WAIT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def status(self) -> Any:
        return json.loads(self.get("/status", "admin")[1])

    def workers(self, *names: str) -> list[dict[str, Any]]:
        """The workers in /status, of these services or of all."""
        services = self.status()["services"]
        return [worker for name in names or services for worker in services[name]["workers"]]

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all samples of that name with these labels."""
        page = self.get("/metrics", "admin")[1]
        # The parser takes 10 ms for all of it, and tests ask for one name again and again.
        lines = [line for line in page.splitlines(keepends=True) if line.startswith(name)]
        return sum(
            sample.value
            for family in text_string_to_metric_families("".join(lines))
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def proxy(self) -> psutil.Process:
        (proxy,) = self.proxies
        return proxy

    @property
    def proxies(self) -> list[psutil.Process]:
        """By slot, as soon as all of them are there: the status may name one that has just
        ended."""
        found: list[psutil.Process] = []

        def are_there() -> bool:
            pids = [proxy["pid"] for proxy in self.status()["proxies"]]
            with suppress(psutil.NoSuchProcess):
                found[:] = [psutil.Process(pid) for pid in pids if pid is not None]
                return len(found) == len(pids)
            return False

        until(are_there, "every proxy")
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to leave; return its exit status once nothing is left of it."""
        self.look()
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        until(lambda: self.process.poll() is not None, "the supervisor's end")
        until(lambda: not any(map(is_alive, self._seen.values())), "the end of all it started")
        return self.process.returncode

    def kill(self) -> None:
        """Whatever is left: end it, each by its pid."""
        self.hang_up()
        self.look()
        self.process.kill()
        self.process.wait(WAIT_S)
        for process in filter(is_alive, self._seen.values()):
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


def _soon(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """A roll-out of it looks at each new worker only for a moment."""
    has_program = "app" in table or "command" in table
    return {"rollout": {"watch": "200ms"}, **table} if has_program else table


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


def descendants(pid: int) -> list[psutil.Process]:
    """None, if there is no such process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_alive(process: psutil.Process) -> bool:
    """A dead one that its new parent has not buried yet is none of ours."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
