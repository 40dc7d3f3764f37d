"""Keeps the guardian process running, and reaps orphans as process 1 of a container.

Owns the guardian process (`guardian` is its program), which kills what a dead supervisor leaves
behind, and the ids of all process groups of the run. It does not know what the groups are, and
does not start them.

See docs/decisions/0013-guardian-process.md.
"""

import logging
import os
import random
import select
import signal
import subprocess
import sys
from asyncio import AbstractEventLoop, TimerHandle
from contextlib import suppress
from pathlib import Path
from typing import Final

import penstock_proxy
import penstock_worker
from penstock_supervisor.errors import StartError
from penstock_supervisor.process import child_signals, guardian
from penstock_supervisor.process.privileges import UNCHANGED, Privileges, inaccessible_part
from penstock_supervisor.process.restart_policy import RestartPolicy

_REQUIRED_FILES: Final = (
    (Path(sys.executable).resolve(), os.X_OK),
    *(
        (Path(one.__file__ or "").resolve(), os.R_OK)
        for one in (os, penstock_proxy, penstock_worker)
    ),
)
"""Files that proxies and workers need. They may be in a home directory that others cannot enter."""
_IGNORED: Final = child_signals.HARMLESS | {signal.SIGINT, signal.SIGTERM, signal.SIGPIPE}
"""Signals that a mistake may send to the guardian. It must live until we have ended."""
_EXIT_TIMEOUT_S: Final = 1.0
"""It has nothing left to do then. One that is stopped is killed: it is not to hold our own end."""
_BACKOFF_S: Final = 0.1
_BACKOFF_MAX_S: Final = 10.0

_log = logging.getLogger("penstock.supervisor")


class Guardian:
    """Our side of the guardian process, and the ids of all process groups that exist.

    The guardian is only needed when the supervisor dies, so a run goes on without it. If it
    ends, it is started again, as often as necessary, and gets all ids again.
    """

    def __init__(self, loop: AbstractEventLoop, privileges: Privileges = UNCHANGED) -> None:
        """The guardian has the children's privileges, because it has to kill only them.

        StartError: it cannot run with these privileges.
        """
        self._loop = loop
        self._privileges = privileges
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._started_at = 0.0
        self._restart_timer: TimerHandle | None = None
        self._restart_policy = RestartPolicy(
            # Never give up: without a guardian a killed supervisor could leave workers behind.
            max_restarts=sys.maxsize,
            within_s=_BACKOFF_MAX_S,
            backoff_s=_BACKOFF_S,
            backoff_max_s=_BACKOFF_MAX_S,
            random=random.random,
            first_at_once=True,
        )
        self._start()

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        return None if self._process is None else self._process.pid

    def fileno(self) -> int | None:
        """The pipe to it; None while it is not running."""
        if self._process is None:
            return None
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def add(self, group: int) -> None:
        """Remember a group. Its leader has announced it to the guardian itself, before exec."""
        self._groups.add(group)

    def remove(self, group: int) -> None:
        self._groups.discard(group)
        self._write(f"-{group}\n")

    def resend(self) -> None:
        """Send all ids again, which removes a group that was announced but did not start."""
        self._write(f"={' '.join(map(str, sorted(self._groups)))}\n")

    def close(self) -> None:
        """End the guardian, which kills groups that are left. There should be none."""
        if self._restart_timer is not None:
            self._restart_timer.cancel()
        process = self._detach()
        if process is None:
            return
        try:
            process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> None:
        self._restart_timer = None
        self._started_at = self._loop.time()
        try:
            process = _spawn_guardian(self._privileges)
        except OSError as error:
            self._schedule_restart(f"cannot be started ({_reason(error)})", up_for_s=0.0)
            return
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError as error:
            # Its exit could not be noticed. It has no ids yet, so killing it kills no child.
            with process:
                process.kill()
            self._schedule_restart(f"cannot be watched ({_reason(error)})", up_for_s=0.0)
            return
        self._process = process
        self._loop.add_reader(self._pidfd, self._on_exit)
        self.resend()

    def _on_exit(self) -> None:
        process = self._detach()
        assert process is not None
        self._schedule_restart(
            f"ended ({process.wait()})", up_for_s=self._loop.time() - self._started_at
        )

    def _schedule_restart(self, why: str, *, up_for_s: float) -> None:
        wait_s = self._restart_policy.exited(self._loop.time(), up_for_s)
        assert wait_s is not None
        _log.warning("the guardian process %s; starting another in %.1f s", why, wait_s)
        self._restart_timer = self._loop.call_later(wait_s, self._start)

    def _detach(self) -> subprocess.Popen[bytes] | None:
        """Close its pidfd and its pipe, and return the process; the caller waits for it."""
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
        try:
            os.write(fd, line.encode())
        except BlockingIOError:
            # It does not read, so it is stopped or stuck. The next one gets all ids.
            assert self._process is not None
            self._process.kill()
        except OSError:
            # EPIPE: it died.
            return


def _spawn_guardian(privileges: Privileges) -> subprocess.Popen[bytes]:
    """Start the guardian. OSError: a shortage. StartError: the privileges cannot be dropped, or
    the files that children need are not accessible with them.

    It is the first child, so it checks this for all children.
    """
    error_read, error_write = os.pipe()

    def before_exec() -> None:
        child_signals.reset(ignored=_IGNORED)
        # Popen reports only that this function failed, so the reason goes through a pipe.
        try:
            privileges.apply()
        except OSError as error:
            os.write(error_write, _reason(error).lower().encode())
            raise
        for path, mode in _REQUIRED_FILES if privileges.identity is not None else ():
            if (blocked_at := inaccessible_part(path, mode)) is not None:
                inside = "" if blocked_at == path else f", and {path} is in it"
                hint = "; a Python and an installation elsewhere, as in /opt, would do"
                os.write(error_write, f"{blocked_at} is closed to it{inside}{hint}".encode())
                raise PermissionError

    try:
        with child_signals.all_blocked():
            # Unbuffered: a line in our memory would be lost when we are killed.
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-E", guardian.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                # Empty, because every process of that user can read it.
                env={},
                start_new_session=True,
                preexec_fn=before_exec,  # noqa: PLW1509
            )
    except subprocess.SubprocessError as error:
        os.close(error_write)
        error_write = -1
        why = os.read(error_read, select.PIPE_BUF).decode() or str(error)
        raise StartError(f"user: cannot run anything as {privileges.name}: {why}") from None
    finally:
        os.close(error_read)
        if error_write >= 0:
            os.close(error_write)
    assert process.stdin is not None
    # A guardian that does not read must not block us.
    os.set_blocking(process.stdin.fileno(), False)
    return process


def reap_orphans(ours: set[int]) -> None:
    """Reap processes that the kernel gave to us as process 1 of a container.

    `ours` are the pids of children, which are reaped elsewhere.
    """
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in ours:
            return
        with suppress(ChildProcessError):
            os.waitpid(ended.si_pid, os.WNOHANG)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
