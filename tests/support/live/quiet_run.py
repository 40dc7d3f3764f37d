"""A real `penstock run` whose standard streams are a test's own, so its log may say nothing.

It is reached over unix sockets, because no line tells which port it has.
"""

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from tests.support.live.cluster import descendants, is_alive
from tests.support.live.wire import WAIT_S, until


class QuietRun:
    """Ended, with all of its processes, at the end of the `with` block."""

    def __init__(
        self, folder: Path, *program: str, under: Sequence[str] = (), **streams: Any
    ) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [
                *under, sys.executable, "-m", "penstock_supervisor", "run",
                "-b", f"unix:{folder}/web", "--admin", f"unix:{folder}/admin",
                "--run-dir", str(folder / "run"), *program,
            ],
            cwd=folder, **{"stdin": subprocess.DEVNULL, **streams},
        )  # fmt: skip
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> "QuietRun":
        until(lambda: self.get("/readyz", "admin")[0] == 200, "a run that is ready")
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self.process.kill()
        self.process.wait(WAIT_S)
        for process in filter(is_alive, self._seen.values()):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def look(self) -> list[psutil.Process]:
        found = descendants(self.process.pid)
        self._seen.update((process.pid, process) for process in found)
        return found

    def get(self, path: str = "/", name: str = "web") -> tuple[int, str]:
        """Status 0: nobody listens yet."""
        assert self.process.poll() is None, f"it ended with {self.process.returncode}"
        connection = http.client.HTTPConnection("localhost", timeout=WAIT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(WAIT_S)
        try:
            connection.sock.connect(f"{self.folder}/{name}")
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (FileNotFoundError, ConnectionRefusedError):
            return 0, ""
        finally:
            connection.close()

    def workers(self) -> list[Mapping[str, Any]]:
        status = json.loads(self.get("/status", "admin")[1])
        workers: list[Mapping[str, Any]] = status["services"]["web"]["workers"]
        return workers

    def stop(self, number: int) -> int:
        """Its exit status, when nothing is left of it."""
        self.look()
        self.process.send_signal(number)
        status = self.process.wait(WAIT_S)
        until(lambda: not any(map(is_alive, self._seen.values())), "the end of all it started")
        return status
