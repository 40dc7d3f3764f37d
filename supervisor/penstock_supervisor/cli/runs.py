"""Finds the run that a command is about, and talks to it over its control socket.

Owns the selection of the run: the one in `--run-dir`, in the run_dir of `-c`, or the only one of
this user. A socket is trusted only if its directory can be written by no other user, and if it is
answered by that directory's owner. Must not know what is asked for.
"""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from penstock_supervisor.config.config_file import run_dir_of
from penstock_supervisor.config.environment import ROOT_RUN_DIR, default_run_dirs
from penstock_supervisor.errors import StartError
from penstock_supervisor.kernel import procfs
from penstock_supervisor.kernel.peer_credentials import peer_credentials
from penstock_supervisor.listeners.control_socket import RunDir, UnsafeDirectoryError

_Decorator = Callable[[Callable[..., int]], Callable[..., int]]

NOT_RUNNING: Final = 3
_ASK_AS_ROOT: Final = f"; root has {ROOT_RUN_DIR}, which only root may look into"
_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.1
_POLLS_PER_CONNECT: Final = 20
"""Polls between two connects. Connects are rare, because a run that ends waits for each."""


class NotRunning(click.ClickException):
    exit_code = NOT_RUNNING


class Selection(NamedTuple):
    """Which runs are meant."""

    directories: tuple[Path, ...]
    is_explicit: bool
    """A directory or a file was named."""
    pid: int | None
    problem: str = ""
    """Why the file that was named cannot be read."""


def select(
    directory: Path | None, file: Path | None, pid: int | None, *, silent: bool = False
) -> Selection:
    """Only the run_dir of the file counts. It is read even if the file was broken since the run
    was started: whoever breaks a file has to be able to stop what runs with the old one. `silent`:
    what is wrong with it is told only if no run is found."""
    if directory is not None:
        return Selection((directory,), True, pid)
    if file is None:
        return Selection(default_run_dirs(), False, pid)
    configured, problem = run_dir_of(file)
    if problem and not silent:
        where = configured or "the directories of runs that have no run_dir"
        click.echo(f"penstock: {problem}; looking in {where}", err=True)
    if configured == "":
        raise click.ClickException(f'{file}: run_dir = "": such a run has no control socket')
    directories = (Path(configured),) if configured else default_run_dirs()
    return Selection(directories, True, pid, problem if silent else "")


class Answer(NamedTuple):
    status: int
    body: Any
    """The JSON. Of an error that is no JSON, {"error": text}."""

    @property
    def is_error(self) -> bool:
        return self.status >= HTTPStatus.BAD_REQUEST

    def error(self) -> click.ClickException:
        """What it says, as an error of the command."""
        why = self.body.get("error") if isinstance(self.body, dict) else None
        return click.ClickException(str(why or HTTPStatus(self.status).phrase))


class NoAnswer(click.ClickException):
    """The run is gone, or stuck."""


class Run:
    """A run that accepted a connection. Each request has a connection of its own."""

    def __init__(self, directory: RunDir, name: str, sock: socket.socket) -> None:
        self.pid = peer_credentials(sock).pid
        self._directory = directory
        self._name = name
        self._sock: socket.socket | None = sock
        """For the first request."""

    def request(self, method: str, path: str) -> Any:
        """Send the request and return the answer's JSON. ClickException: an error, or no answer."""
        answer = self.ask(method, path)
        if answer.is_error:
            raise answer.error()
        return answer.body

    def ask(
        self, method: str, path: str, body: object = None, timeout_s: float = _TIMEOUT_S
    ) -> Answer:
        """Send the request, with `body` as JSON. NoAnswer."""
        connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
        try:
            connection.sock = self._connect()
            connection.sock.settimeout(timeout_s)
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return Answer(response.status, _body(response))
        except (OSError, ValueError, http.client.HTTPException) as error:
            text = f"the run with pid {self.pid} does not answer ({error})"
            raise NoAnswer(text) from error
        finally:
            connection.close()

    def has_ended(self) -> bool:
        return self._directory.file_id(self._name) is None or self._directory.is_stale(self._name)

    def _connect(self) -> socket.socket:
        sock, self._sock = self._sock, None
        if sock is None:
            sock = self._directory.connect(self._name, _TIMEOUT_S)
            if peer_credentials(sock).pid != self.pid:
                sock.close()
                raise ConnectionRefusedError("another run has its place")
        return sock

    def wait(self) -> None:
        """Wait until the run has ended. Then it removes its socket.

        A run that is killed cannot remove it, but it refuses connections from then on.
        """
        for poll in count(1):
            if self._directory.file_id(self._name) is None:
                return
            if poll % _POLLS_PER_CONNECT == 0 and self._directory.is_stale(self._name):
                return
            time.sleep(_POLL_S)


def _body(response: http.client.HTTPResponse) -> Any:
    text = response.read()
    try:
        return json.loads(text)
    except ValueError:
        if response.status < HTTPStatus.BAD_REQUEST:
            raise
        return {"error": text.decode(errors="replace").strip()}


def _connected_runs(selection: Selection, stack: ExitStack) -> Iterator[Run]:
    for path in selection.directories:
        try:
            directory = stack.enter_context(RunDir(path, make=False))
        except FileNotFoundError:
            continue
        except (OSError, UnsafeDirectoryError) as error:
            if selection.is_explicit:
                why = f"{path}: {error.strerror}" if isinstance(error, OSError) else error
                raise click.ClickException(f"run_dir: {why}") from error
            continue
        for name in directory.names():
            with suppress(OSError):
                sock = stack.enter_context(directory.connect(name, _TIMEOUT_S))
                if peer_credentials(sock).uid == directory.owner:
                    yield Run(directory, name, sock)


def selected_runs(selection: Selection, stack: ExitStack) -> list[Run]:
    """All selected runs, at least one. NotRunning: there is none."""
    try:
        procfs.require_proc()
    except StartError as error:
        raise click.ClickException(str(error)) from None
    if runs := [
        run for run in _connected_runs(selection, stack) if selection.pid in (None, run.pid)
    ]:
        return runs
    directories = selection.directories
    which = f"no run with pid {selection.pid}" if selection.pid else "no run"
    hint = (
        ""
        if selection.is_explicit or ROOT_RUN_DIR in directories or not ROOT_RUN_DIR.exists()
        else _ASK_AS_ROOT
    )
    where = " or ".join(map(str, directories)) or "no directory"
    because = f"; {selection.problem}" if selection.problem else ""
    raise NotRunning(f"not running: {which} in {where}{hint}{because}")


def only_run(selection: Selection, stack: ExitStack) -> Run:
    runs = selected_runs(selection, stack)
    if len(runs) > 1:
        pids = ", ".join(str(run.pid) for run in runs)
        text = f"more than one is running: name one with --pid ({pids}), see penstock status"
        raise click.ClickException(text)
    return runs[0]


def options(*more: _Decorator) -> Callable[[Callable[..., int]], click.Command]:
    """The options that all of these commands have, and then `more`."""
    found: list[_Decorator] = [
        click.option(
            "--run-dir",
            "directory",
            metavar="DIR",
            type=click.Path(path_type=Path, readable=False),
            help="Where its control socket is.  [default: where a run of ours has it]",
        ),
        click.option(
            "-c",
            "--config",
            "file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="The file that it was started with, if that names a run_dir.",
        ),
        click.option("--pid", type=int, metavar="N", help="Which one, if there are several."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        *more,
    ]

    def command(function: Callable[..., int]) -> click.Command:
        for option in reversed(found):
            function = option(function)
        return click.command()(function)

    return command


NO_WAIT: Final = click.option("--no-wait", is_flag=True, help="Do not wait for the end.")
