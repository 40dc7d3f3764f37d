"""Processes: made, signalled, waited for. But for the guardian's, the only user of subprocess.

Owns what the kernel knows of a child: its pid, its group, its pipes, its end. It does not
know why a child is started or what follows from its exit.

Every child leads a session and process group of its own, so that a signal reaches all that
it started and a Ctrl-C in the terminal reaches only us. It dies with us: by
PR_SET_PDEATHSIG itself, by the guardian what it started. An exit is seen through a pidfd in
the event loop: SIGCHLD is one handler for a whole process and can be lost; a pidfd cannot.
"""

import ctypes
import errno
import os
import signal
import subprocess
from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from penstock_supervisor.process import rlimits
from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.process.socket_activation import (
    ExecSpec,
    exec_with_sockets,
    reserve_numbers,
)

_PR_SET_PDEATHSIG: Final = 1
# Loaded before any fork: between fork and exec nothing may be imported or looked up.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Descriptors, memory, processes."""


class SpawnError(Exception):
    """The process could not be made. `key` is the configuration's word for the culprit."""

    def __init__(self, key: str, text: str, *, temporary: bool = False) -> None:
        """`temporary`: it is ourselves who lack something now, and the program is not to blame."""
        super().__init__(text)
        self.key = key
        self.temporary = temporary


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


class Process:
    """One running child. `on_exit` is called once, from the loop, after it was reaped."""

    def __init__(
        self,
        spec: ExecSpec,
        loop: AbstractEventLoop,
        guardian: Guardian,
        on_exit: Callable[[Exit], None],
    ) -> None:
        """SpawnError if there is no such program, or it cannot be run."""
        self._loop = loop
        self._guardian = guardian
        self._on_exit = on_exit
        self._popen = _popen(spec, guardian)
        guardian.add(self.pid)
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
        self._guardian.remove(self.pid)
        code = self._popen.wait()
        self._on_exit(Exit(code, None) if code >= 0 else Exit(None, -code))


def _adopted(pipe: object) -> int:
    """Take the descriptor out of Popen's file object, which would block and buffer."""
    fd = os.dup(pipe.fileno())  # type: ignore[attr-defined]
    pipe.close()  # type: ignore[attr-defined]
    os.set_blocking(fd, False)
    return fd


def _popen(spec: ExecSpec, guardian: Guardian) -> subprocess.Popen[bytes]:
    parent, telling = os.getpid(), guardian.fileno()

    def before_exec() -> None:
        rlimits.restore()
        spec.privileges.take_effect()
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
        if spec.listen:
            exec_with_sockets(spec)

    try:
        with reserve_numbers(spec.listen):
            return subprocess.Popen(
                spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if spec.captured else None,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=spec.directory,
                env=dict(spec.environment),
                pass_fds=(*spec.inherited, *spec.listen),
                start_new_session=True,
                # The death signal is a thread's: this must run in the thread that lives longest.
                preexec_fn=before_exec,  # noqa: PLW1509
            )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        guardian.resend()
        raise _explained(spec, error) from error


def _explained(spec: ExecSpec, error: Exception) -> SpawnError:
    directory = spec.directory
    if directory is not None and not Path(directory).is_dir():
        return SpawnError("directory", f'"{directory}": no such directory')
    if directory is not None and isinstance(error, OSError) and error.filename == directory:
        return SpawnError("directory", f'"{directory}": {_reason(error)}')
    if isinstance(error, subprocess.SubprocessError):
        return SpawnError("user", f"cannot run as {spec.privileges.name}")
    name = f'"{spec.argv[0]}"'
    if isinstance(error, FileNotFoundError):
        # A script whose interpreter is missing says the same as a missing script.
        if "/" in spec.argv[0] and Path(directory or ".", spec.argv[0]).exists():
            return SpawnError("command", f"{name}: the interpreter in its first line is missing")
        return SpawnError("command", f"{name}: no such program")
    if isinstance(error, PermissionError):
        whose = f" for {spec.privileges.name}" if spec.privileges.identity else ""
        return SpawnError("command", f"{name}: not executable{whose} (permission denied)")
    if isinstance(error, OSError) and error.errno == errno.ENOEXEC:
        return SpawnError("command", f"{name}: not a program (no #! line?)")
    temporary = isinstance(error, OSError) and error.errno in _SHORTAGES
    return SpawnError("command", f"{name}: {_reason(error)}", temporary=temporary)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
