"""Processes: made, signalled, waited for. The only user of subprocess.

Owns what the kernel knows of a child: its pid, its group, its pipes, its end. It does not
know why a child is started or what follows from its exit.

Every child leads a session and process group of its own, so that a signal reaches all that
it started and a Ctrl-C in the terminal reaches only us. It dies with us: by
PR_SET_PDEATHSIG itself, by the guardian what it started. An exit is seen through a pidfd in
the event loop: SIGCHLD is one handler for a whole process and can be lost; a pidfd cannot.
"""

import ctypes
import errno
import logging
import os
import random
import select
import signal
import subprocess
import sys
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import penstock_proxy
import penstock_worker
from penstock_supervisor import guardian, limits
from penstock_supervisor.errors import StartError
from penstock_supervisor.privileges import AS_WE_ARE, Privileges, closed
from penstock_supervisor.program import Program, places_taken, take_places
from penstock_supervisor.restarts import Restarts

_PR_SET_PDEATHSIG: Final = 1
_NEEDED: Final = (
    (Path(sys.executable).resolve(), os.X_OK),
    *(
        (Path(one.__file__ or "").resolve(), os.R_OK)
        for one in (os, penstock_proxy, penstock_worker)
    ),
)
"""What fronts and workers are made of. It may be in somebody's home, and closed to others."""
_FAREWELL_S: Final = 5.0
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
# Loaded before any fork: between fork and exec nothing may be imported or looked up.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_log = logging.getLogger(__name__)


_LACKING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Descriptors, memory, processes."""


class SpawnError(Exception):
    """The process could not be made. `key` is the configuration's word for the culprit."""

    def __init__(self, key: str, text: str, *, passing: bool = False) -> None:
        """`passing`: it is ourselves who lack something now, and the program is not to blame."""
        super().__init__(text)
        self.key = key
        self.passing = passing


class Exit(NamedTuple):
    """How a process ended."""

    status: int | None
    signal: int | None

    def __str__(self) -> str:
        if self.signal is None:
            return f"status {self.status}"
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"

    @property
    def described(self) -> str:
        """As the rest of "web/0 ..."."""
        return f"exited with {self}" if self.signal is None else f"was killed by {self}"


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
        self._restarts = Restarts(
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

    def came(self, group: int) -> None:
        """Note a group; its leader has already told the guardian, before it was exec'd."""
        self._groups.add(group)

    def went(self, group: int) -> None:
        self._groups.discard(group)
        self._say(f"-{group}\n")

    def repeat(self) -> None:
        """Say who is there and nobody else: somebody announced himself and never came."""
        self._say(f"={' '.join(map(str, sorted(self._groups)))}\n")

    def close(self) -> None:
        """End it: it kills what is still there, which should be nothing, and leaves."""
        if self._again is not None:
            self._again.cancel()
        process = self._parted()
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
            process = _guardian(self._privileges)
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
        self.repeat()

    def _died(self) -> None:
        process = self._parted()
        assert process is not None
        self._start_again(f"ended ({process.wait()})", up_for_s=self._loop.time() - self._since)

    def _start_again(self, why: str, *, up_for_s: float) -> None:
        pause_s = self._restarts.exited(self._loop.time(), up_for_s)
        assert pause_s is not None
        _log.warning("the guardian process %s; starting another in %.1f s", why, pause_s)
        self._again = self._loop.call_later(pause_s, self._start)

    def _parted(self) -> subprocess.Popen[bytes] | None:
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

    def _say(self, line: str) -> None:
        fd = self.fileno()
        if fd is None:
            return
        with suppress(OSError):
            # EPIPE: it died, and its successor is told everything.
            os.write(fd, line.encode())


def _guardian(privileges: Privileges) -> subprocess.Popen[bytes]:
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


class Process:
    """One running child. `on_exit` is called once, from the loop, after it was reaped."""

    def __init__(
        self,
        program: Program,
        loop: AbstractEventLoop,
        guardian_: Guardian,
        on_exit: Callable[[Exit], None],
    ) -> None:
        """SpawnError if there is no such program, or it cannot be run."""
        self._loop = loop
        self._guardian = guardian_
        self._on_exit = on_exit
        self._popen = _popen(program, guardian_)
        guardian_.came(self.pid)
        self.stdout = None if self._popen.stdout is None else _adopted(self._popen.stdout)
        assert self._popen.stderr is not None
        self.stderr = _adopted(self._popen.stderr)
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pidfd, self._exited)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group."""
        if self._popen.returncode is None:
            # Until it is reaped its number belongs to nobody else.
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        # What is left of its group goes with it, and before it is reaped: afterwards the
        # number could be somebody else's.
        self.signal(signal.SIGKILL)
        self._guardian.went(self.pid)
        code = self._popen.wait()
        self._on_exit(Exit(code, None) if code >= 0 else Exit(None, -code))


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


def _adopted(pipe: object) -> int:
    """Take the descriptor out of Popen's file object, which would block and buffer."""
    fd = os.dup(pipe.fileno())  # type: ignore[attr-defined]
    pipe.close()  # type: ignore[attr-defined]
    os.set_blocking(fd, False)
    return fd


def _popen(program: Program, guardian_: Guardian) -> subprocess.Popen[bytes]:
    parent, telling = os.getpid(), guardian_.fileno()

    def before_exec() -> None:
        limits.give_back()
        program.privileges.take_effect()
        # After it: a change of user forgets the signal.
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have died before the line above.
        if os.getppid() != parent:
            os._exit(1)
        # The group's first act, so that there is no moment in which nobody knows of it.
        # Without a guardian the parent knows, and tells the next one; Popen has undone our
        # ignoring of SIGPIPE, which would kill us here.
        if telling is not None:
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            with suppress(BrokenPipeError):
                os.write(telling, b"+%d\n" % os.getpid())
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if program.listen:
            take_places(program)

    try:
        with places_taken(program.listen):
            return subprocess.Popen(
                program.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if program.captured else None,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=program.directory,
                env=dict(program.environment),
                pass_fds=(*program.inherited, *program.listen),
                start_new_session=True,
                # The death signal is a thread's: this must run in the thread that lives longest.
                preexec_fn=before_exec,  # noqa: PLW1509
            )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        guardian_.repeat()
        raise _explained(program, error) from error


def _explained(program: Program, error: Exception) -> SpawnError:
    directory = program.directory
    if directory is not None and not Path(directory).is_dir():
        return SpawnError("directory", f'"{directory}": no such directory')
    if directory is not None and isinstance(error, OSError) and error.filename == directory:
        return SpawnError("directory", f'"{directory}": {_reason(error)}')
    if isinstance(error, subprocess.SubprocessError):
        return SpawnError("user", f"cannot run as {program.privileges.name}")
    name = f'"{program.argv[0]}"'
    if isinstance(error, FileNotFoundError):
        # A script whose interpreter is missing says the same as a missing script.
        if "/" in program.argv[0] and Path(directory or ".", program.argv[0]).exists():
            return SpawnError("command", f"{name}: the interpreter in its first line is missing")
        return SpawnError("command", f"{name}: no such program")
    if isinstance(error, PermissionError):
        whose = f" for {program.privileges.name}" if program.privileges.identity else ""
        return SpawnError("command", f"{name}: not executable{whose} (permission denied)")
    if isinstance(error, OSError) and error.errno == errno.ENOEXEC:
        return SpawnError("command", f"{name}: not a program (no #! line?)")
    passing = isinstance(error, OSError) and error.errno in _LACKING
    return SpawnError("command", f"{name}: {_reason(error)}", passing=passing)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
