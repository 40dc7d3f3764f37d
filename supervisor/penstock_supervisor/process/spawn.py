"""Starts, signals and reaps processes.

Owns the kernel's side of a child: its pid, its process group, its pipes and its exit. It does
not know why a child is started, or what follows from its exit. Only this module and the one that
starts the guardian use subprocess.

Every child leads a session and a process group of its own. So a Ctrl-C in the terminal reaches
only the supervisor, and what a child started is found when the child has ended (`remaining_group`).
If the supervisor dies, PR_SET_PDEATHSIG kills the child, and the guardian kills what the child
started. The event loop watches a pidfd for the exit: SIGCHLD has one handler for the whole
process, and signals can be lost.
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
from signal import Signals
from typing import Final, Literal, NamedTuple

from penstock_supervisor.config.file_access import why_no_directory
from penstock_supervisor.kernel import process_groups
from penstock_supervisor.process import child_signals, rlimits
from penstock_supervisor.process.reaper import Guardian
from penstock_supervisor.process.remaining_group import RemainingGroup
from penstock_supervisor.process.socket_activation import (
    ExecSpec,
    exec_with_sockets,
    reserve_numbers,
)

_PR_SET_PDEATHSIG: Final = 1
# Loaded before any fork, because imports and symbol lookups are not safe between fork and exec.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Of descriptors, memory or processes."""


class SpawnError(Exception):
    """The process could not be started. `key` is the key of the configuration that is at fault."""

    def __init__(self, key: str, text: str, *, temporary: bool = False) -> None:
        """`temporary`: the supervisor lacks something now; the program is not at fault."""
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
        """A text that follows the name of a child, as in "web/0 exited with status 1"."""
        return f"exited with {self}" if self.signal is None else f"was killed by {self}"


class Process:
    """One running child. The loop calls `on_exit` once, after the child was reaped."""

    def __init__(
        self,
        spec: ExecSpec,
        loop: AbstractEventLoop,
        guardian: Guardian,
        on_exit: Callable[[Exit], None],
        on_group_end: Callable[[], None] = lambda: None,
    ) -> None:
        """SpawnError: there is no such program, or it cannot be executed.

        `on_group_end` is called after `on_exit`, if what the child had started lived longer.
        """
        self._spec = spec
        self._loop = loop
        self._guardian = guardian
        self._on_exit = on_exit
        self._on_group_end = on_group_end
        self._deadline: float | None = None
        """When the time ends that it was given to stop."""
        self._group_has_signal = False
        self._remaining: RemainingGroup | None = None
        self._popen = _popen(spec, guardian)
        guardian.add(self.pid)
        self.stdout = None if self._popen.stdout is None else _detach_fd(self._popen.stdout)
        assert self._popen.stderr is not None
        self.stderr = _detach_fd(self._popen.stderr)
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pidfd, self._on_pidfd_readable)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def has_remaining_group(self) -> bool:
        """It has ended, and something that it had started has not."""
        return self._remaining is not None

    def use_settings(
        self, stop_signal: Signals, stop_to: Literal["leader", "group"], stop_s: float
    ) -> None:
        """From now on it is asked to end in this way."""
        self._spec = self._spec._replace(stop_signal=stop_signal, stop_to=stop_to, stop_s=stop_s)

    def stop(self, within_s: float) -> None:
        """Ask it to end. What it started has until the same deadline, and is then killed."""
        self._deadline = self._loop.time() + within_s
        if self._spec.stop_to == "leader":
            self.signal_leader(self._spec.stop_signal)
        else:
            self._group_has_signal = True
            self.signal(self._spec.stop_signal)

    def signal(self, number: Signals) -> None:
        """Signal the whole group."""
        if self._popen.returncode is None:
            # Until it is reaped, no other process can have its pid.
            with suppress(OSError):
                os.killpg(self.pid, number)

    def signal_leader(self, number: int) -> None:
        """Signal the child alone, and not what it started."""
        if self._popen.returncode is None:
            with suppress(OSError):
                os.kill(self.pid, number)

    def shorten_group(self, within_s: float) -> None:
        """What is left of its group, now or when it has ended, has no longer than this."""
        deadline = self._loop.time() + within_s
        if self._remaining is not None:
            self._remaining.shorten(deadline)
        elif self._deadline is not None:
            self._deadline = min(self._deadline, deadline)

    def kill_group(self) -> None:
        """Kill what is left of its group, after its exit."""
        if self._remaining is not None:
            self._remaining.kill()

    def _on_pidfd_readable(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._popen.wait()
        if process_groups.exists(self.pid):
            deadline = self._deadline
            self._remaining = RemainingGroup(
                self._loop,
                self.pid,
                self._spec.name,
                self._loop.time() + self._spec.stop_s if deadline is None else deadline,
                self._group_ended,
                None if self._group_has_signal else signal.SIGTERM,
            )
        else:
            self._guardian.remove(self.pid)
        self._on_exit(Exit(code, None) if code >= 0 else Exit(None, -code))

    def _group_ended(self) -> None:
        self._remaining = None
        self._guardian.remove(self.pid)
        self._on_group_end()


def _detach_fd(pipe: object) -> int:
    """The descriptor of Popen's file object, which itself would block and buffer."""
    fd = os.dup(pipe.fileno())  # type: ignore[attr-defined]
    pipe.close()  # type: ignore[attr-defined]
    os.set_blocking(fd, False)
    return fd


def _popen(spec: ExecSpec, guardian: Guardian) -> subprocess.Popen[bytes]:
    parent, guardian_fd = os.getpid(), guardian.fileno()

    def before_exec() -> None:
        # SIGPIPE is ignored until the write to the guardian.
        child_signals.reset(ignored={signal.SIGPIPE}, blocked=spec.blocked_signals)
        rlimits.restore()
        spec.privileges.apply()
        # After it, because a change of user clears the death signal.
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have died before the line above.
        if os.getppid() != parent:
            os._exit(1)
        # The child announces its group first of all, so that the guardian always knows it.
        # Without a guardian, or if it does not read, the parent will tell the next one.
        if guardian_fd is not None:
            with suppress(BrokenPipeError, BlockingIOError):
                os.write(guardian_fd, b"+%d\n" % os.getpid())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if spec.listen:
            exec_with_sockets(spec)

    try:
        with reserve_numbers(spec.listen), child_signals.all_blocked():
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
                # The death signal is sent when the parent *thread* ends, so this must run in
                # the thread that lives longest.
                preexec_fn=before_exec,  # noqa: PLW1509
            )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        guardian.resend()
        raise _spawn_error(spec, error) from error


def _spawn_error(spec: ExecSpec, error: Exception) -> SpawnError:
    if (at_fault := _faulty_directory(spec.directory, error)) is not None:
        return at_fault
    if isinstance(error, subprocess.SubprocessError):
        return SpawnError("user", f"cannot run as {spec.privileges.name}")
    name = f'"{spec.argv[0]}"'
    if isinstance(error, FileNotFoundError):
        if error.filename == os.devnull:
            return SpawnError("command", f"{os.devnull}: {_reason(error)}")
        # A script with a missing interpreter fails with the same error as a missing script.
        if "/" in spec.argv[0] and Path(spec.directory or ".", spec.argv[0]).exists():
            return SpawnError("command", f"{name}: the interpreter in its first line is missing")
        return SpawnError("command", f"{name}: no such program")
    if isinstance(error, PermissionError):
        for_user = f" for {spec.privileges.name}" if spec.privileges.identity else ""
        return SpawnError("command", f"{name}: not executable{for_user} (permission denied)")
    if isinstance(error, OSError) and error.errno == errno.ENOEXEC:
        return SpawnError("command", f"{name}: not a program (no #! line?)")
    temporary = isinstance(error, OSError) and error.errno in _SHORTAGES
    return SpawnError("command", f"{name}: {_reason(error)}", temporary=temporary)


def _faulty_directory(directory: str | None, error: Exception) -> SpawnError | None:
    """The error if the working directory is at fault."""
    if directory is None:
        if _has_working_directory():
            return None
        return SpawnError("directory", "the directory that the run was started in is deleted")
    if why := why_no_directory(directory):
        return SpawnError("directory", f'"{directory}": {why}')
    if isinstance(error, OSError) and error.filename == directory:
        return SpawnError("directory", f'"{directory}": {_reason(error)}')
    return None


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
