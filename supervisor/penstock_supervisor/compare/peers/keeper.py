"""The process that starts the processes of a peer, and leaves none of them behind.

`python -m penstock_supervisor.compare.peers.keeper` reads one line of JSON from its standard
input: what to start, and its private directory. It writes a line with the process ids, and
another one if a process ends. It stops everything when its standard input is closed, so a peer
does not outlive the comparison, even if that is killed.

Servers start workers of their own, and some of those outlive a master that is killed. So the
keeper is their reaper (PR_SET_CHILD_SUBREAPER): whatever is orphaned becomes its child, and it
ends only when it has no child any more. If the keeper itself is killed, PR_SET_PDEATHSIG tells the
masters to stop. It has a session of its own, so a Ctrl-C in the terminal does not reach it.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess  # noqa: TID251 -- no guardian of ours reaps what servers start
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final

from penstock_supervisor.compare import stdin_pipe
from penstock_supervisor.compare.host import resource_usage

STOP_S: Final = 4.0
"""For the processes to stop when they are asked. Then they are killed."""
_POLL_S: Final = 0.05
_MAX_LOG: Final = 4096
"""Bytes at the end of a log that are read."""
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class _Keeper:
    def __init__(self, order: Mapping[str, Any]) -> None:
        self._order = order
        self._started: dict[int, str] = {}
        """Process groups that we started, and their names; the first ones are the servers'."""
        self._stopping = False

    def run(self) -> int:
        try:
            for one in self._order["processes"]:
                self._start(one)
            _say({"pids": list(self._started)})
            self._watch()
        except OSError as error:
            _say({"failed": f"{error.filename or 'a process'}: {error.strerror}"})
        finally:
            self._stop()
            shutil.rmtree(self._order["folder"], ignore_errors=True)
        return 0

    def stop(self, *_: object) -> None:
        self._stopping = True

    def _start(self, one: Mapping[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        outputs = [os.open(one[name], flags, 0o600) for name in ("stdout", "stderr")]
        parent = os.getpid()

        def before_exec() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        try:
            process = subprocess.Popen(
                one["argv"], cwd=one["directory"], env=one["env"], stdin=subprocess.DEVNULL,
                stdout=outputs[0], stderr=outputs[1], process_group=0,
                preexec_fn=before_exec,  # noqa: PLW1509 - there is one thread
            )  # fmt: skip
        finally:
            for output in outputs:
                os.close(output)
        self._started[process.pid] = one["argv"][0]
        # Its exit is seen by waitpid for all, and not by the object.
        process.returncode = 0

    def _watch(self) -> None:
        """Until standard input is closed, a signal comes, or one of them ends."""
        poller = select.poll()
        poller.register(stdin_pipe.FD, select.POLLIN)
        while not self._stopping:
            if poller.poll(_POLL_S * 1000):
                return
            for pid, status in _reap():
                if pid in self._started:
                    name = self._started[pid]
                    _say({"failed": f"{name} ended, {_exit_text(status)}{self._last_line()}"})
                    return

    def _last_line(self) -> str:
        """Of all that they wrote: the best reason that a reader can get."""
        for path in dict.fromkeys(one["stderr"] for one in self._order["processes"]):
            if line := last_line(Path(path)):
                return f": {line}"
        return ""

    def _stop(self) -> None:
        """Ask them, the proxy first; then kill all that descends from us, until nothing is left."""
        for pid in reversed(self._started):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = monotonic() + STOP_S
        while True:
            for _ in _reap():
                pass
            left = resource_usage.tree(os.getpid())[1:]
            if not left and not _has_children():
                return
            if monotonic() >= deadline:
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            select.select((), (), (), _POLL_S)


def last_line(path: Path) -> str:
    """The last line of a log that is not empty. "" if there is none."""
    with suppress(OSError):
        text = path.read_bytes()[-_MAX_LOG:].decode(errors="replace")
        return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return ""


def _reap() -> list[tuple[int, int]]:
    """The children that have ended: pid and status of each."""
    ended = []
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended.append((pid, status))
    return ended


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _exit_text(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"signal {-code}"


def _say(message: Mapping[str, Any]) -> None:
    with suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def _main() -> int:
    line = stdin_pipe.read_line()
    if line is None:
        return 1
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    keeper = _Keeper(json.loads(line))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, keeper.stop)
    return keeper.run()


if __name__ == "__main__":
    sys.exit(_main())
