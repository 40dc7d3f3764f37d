"""What a supervisor that dies leaves behind, and who kills it: our side of the guardian.

Owns the guardian's process, which outlives us by as long as that takes (`guardian` is its
program), and the ids of all process groups of the run. As process 1 of a container a supervisor
also reaps the orphans of others. It does not know what the groups are, nor starts any of them.
"""

import logging
import os
import random
import select
import subprocess
import sys
from asyncio import AbstractEventLoop, TimerHandle
from contextlib import suppress
from pathlib import Path
from typing import Final

import penstock_proxy
import penstock_worker
from penstock_supervisor.errors import StartError
from penstock_supervisor.process import guardian
from penstock_supervisor.process.privileges import AS_WE_ARE, Privileges, closed
from penstock_supervisor.process.restart_policy import RestartPolicy

_NEEDED: Final = (
    (Path(sys.executable).resolve(), os.X_OK),
    *(
        (Path(one.__file__ or "").resolve(), os.R_OK)
        for one in (os, penstock_proxy, penstock_worker)
    ),
)
"""What proxies and workers are made of. It may be in somebody's home, and closed to others."""
_FAREWELL_S: Final = 5.0
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0

_log = logging.getLogger("penstock.supervisor")


class Guardian:
    """Our side of the guardian process; the ids of all living groups are here as well.

    It is there for a supervisor that dies, so a run goes on without it. It is tried again for
    as long as the run lasts, and its successor is told everything.
    """

    def __init__(self, loop: AbstractEventLoop, privileges: Privileges = AS_WE_ARE) -> None:
        """As whom children run, so does it: it kills none but them. StartError: it may not."""
        self._loop = loop
        self._privileges = privileges
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._since = 0.0
        self._again: TimerHandle | None = None
        self._restart_policy = RestartPolicy(
            # Never given up: without it a supervisor that is killed could leave workers.
            max_restarts=sys.maxsize,
            within_s=_LONGEST_PAUSE_S,
            backoff_s=_PAUSE_S,
            backoff_max_s=_LONGEST_PAUSE_S,
            random=random.random,
            first_at_once=True,
        )
        self._start()

    @property
    def pid(self) -> int | None:
        """None between two of them."""
        return None if self._process is None else self._process.pid

    def fileno(self) -> int | None:
        """The pipe to it; None between two of them."""
        if self._process is None:
            return None
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def add(self, group: int) -> None:
        """Note a group; its leader has already told the guardian, before it was exec'd."""
        self._groups.add(group)

    def remove(self, group: int) -> None:
        self._groups.discard(group)
        self._write(f"-{group}\n")

    def resend(self) -> None:
        """Say who is there and nobody else: somebody announced himself and never came."""
        self._write(f"={' '.join(map(str, sorted(self._groups)))}\n")

    def close(self) -> None:
        """End it: it kills what is still there, which should be nothing, and leaves."""
        if self._again is not None:
            self._again.cancel()
        process = self._detach()
        if process is None:
            return
        try:
            process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> None:
        self._again = None
        self._since = self._loop.time()
        try:
            process = _spawn_guardian(self._privileges)
        except OSError as error:
            self._start_again(f"cannot be started ({_reason(error)})", up_for_s=0.0)
            return
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError as error:
            # Its end would not be seen; it knows of nobody yet, and takes nobody with it.
            with process:
                process.kill()
            self._start_again(f"cannot be watched ({_reason(error)})", up_for_s=0.0)
            return
        self._process = process
        self._loop.add_reader(self._pidfd, self._died)
        self.resend()

    def _died(self) -> None:
        process = self._detach()
        assert process is not None
        self._start_again(f"ended ({process.wait()})", up_for_s=self._loop.time() - self._since)

    def _start_again(self, why: str, *, up_for_s: float) -> None:
        pause_s = self._restart_policy.exited(self._loop.time(), up_for_s)
        assert pause_s is not None
        _log.warning("the guardian process %s; starting another in %.1f s", why, pause_s)
        self._again = self._loop.call_later(pause_s, self._start)

    def _detach(self) -> subprocess.Popen[bytes] | None:
        """Let go of it: what watches it and leads to it is closed; the caller waits for it."""
        process, self._process = self._process, None
        if process is None:
            return None
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        return process

    def _write(self, line: str) -> None:
        fd = self.fileno()
        if fd is None:
            return
        with suppress(OSError):
            # EPIPE: it died, and its successor is told everything.
            os.write(fd, line.encode())


def _spawn_guardian(privileges: Privileges) -> subprocess.Popen[bytes]:
    """OSError; StartError if it cannot become who it has to be, or could do nothing then.

    As the first child, it finds out for all of them.
    """
    heard, saying = os.pipe()

    def before_exec() -> None:
        # Popen only tells that something happened here.
        try:
            privileges.take_effect()
        except OSError as error:
            os.write(saying, _reason(error).lower().encode())
            raise
        for path, mode in _NEEDED if privileges.identity is not None else ():
            if (by := closed(path, mode)) is not None:
                inside = "" if by == path else f", and {path} is in it"
                hint = "; a Python and an installation elsewhere, as in /opt, would do"
                os.write(saying, f"{by} is closed to it{inside}{hint}".encode())
                raise PermissionError

    try:
        # Unbuffered: a line that sits in our memory when we are killed protects nobody.
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-E", guardian.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            # Whoever is that user can read what it is given.
            env={},
            start_new_session=True,
            preexec_fn=before_exec,  # noqa: PLW1509
        )
    except subprocess.SubprocessError as error:
        os.close(saying)
        saying = -1
        why = os.read(heard, select.PIPE_BUF).decode() or str(error)
        raise StartError(f"user: cannot run anything as {privileges.name}: {why}") from None
    finally:
        os.close(heard)
        if saying >= 0:
            os.close(saying)
    assert process.stdin is not None
    # A guardian that does not read must not stop us; it reads all the time.
    os.set_blocking(process.stdin.fileno(), False)
    return process


def reap_strangers(ours: set[int]) -> None:
    """Reap what was left to us as process 1 of a container; elsewhere there is nobody."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in ours:
            return
        with suppress(ChildProcessError):
            os.waitpid(found.si_pid, os.WNOHANG)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
