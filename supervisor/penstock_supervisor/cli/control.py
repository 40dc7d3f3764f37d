"""`penstock status`, `reload` and `stop`: commands that use the control socket of a run.

Owns the selection of the run: the one in `--run-dir`, in the run_dir of `-c`, or the only one of
this user. `status_table` shows a run. A socket is trusted only if its directory can be written by
no other user, and if it is answered by that directory's owner.
"""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from penstock_supervisor.cli import status_table
from penstock_supervisor.config.loader import ROOT_RUN_DIR, default_run_dirs, run_dir_of
from penstock_supervisor.control.api import peer_credentials
from penstock_supervisor.errors import StartError
from penstock_supervisor.kernel import procfs
from penstock_supervisor.listeners.control_socket import RunDir, UnsafeDirectoryError

NOT_RUNNING: Final = 3
_ASK_AS_ROOT: Final = f"; root has {ROOT_RUN_DIR}, which only root may look into"
_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.1
_POLLS_PER_CONNECT: Final = 20
"""Polls between two connects. Connects are rare, because a run that ends waits for each."""


class NotRunning(click.ClickException):
    exit_code = NOT_RUNNING


class _Selection(NamedTuple):
    """Which runs are meant."""

    directories: tuple[Path, ...]
    is_explicit: bool
    """A directory or a file was named."""
    pid: int | None


def _select(directory: Path | None, file: Path | None, pid: int | None) -> _Selection:
    """Only the run_dir of the file counts. It is read even if the file was broken since the run
    was started: whoever breaks a file has to be able to stop what runs with the old one."""
    if directory is not None:
        return _Selection((directory,), True, pid)
    if file is None:
        return _Selection(default_run_dirs(), False, pid)
    configured, problem = run_dir_of(file)
    if problem:
        where = configured or "the directories of runs that have no run_dir"
        click.echo(f"penstock: {problem}; looking in {where}", err=True)
    if configured == "":
        raise click.ClickException(f'{file}: run_dir = "": such a run has no control socket')
    return _Selection((Path(configured),) if configured else default_run_dirs(), True, pid)


class _Run:
    """A run that accepted a connection. The connection is for one request."""

    def __init__(self, directory: RunDir, name: str, sock: socket.socket) -> None:
        self.pid = peer_credentials(sock).pid
        self._directory = directory
        self._name = name
        self._sock = sock

    def request(self, method: str, path: str) -> Any:
        """Send the request and return the answer's JSON. ClickException: an error, or no answer."""
        connection = http.client.HTTPConnection("localhost", timeout=_TIMEOUT_S)
        connection.sock = self._sock
        try:
            connection.request(method, path)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            text = f"the run with pid {self.pid} does not answer ({error})"
            raise click.ClickException(text) from error
        finally:
            connection.close()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            why = answer.get("error") if isinstance(answer, dict) else None
            raise click.ClickException(str(why or response.reason))
        return answer

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


def _connected_runs(selection: _Selection, stack: ExitStack) -> Iterator[_Run]:
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
                    yield _Run(directory, name, sock)


def _selected_runs(selection: _Selection, stack: ExitStack) -> list[_Run]:
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
    raise NotRunning(f"not running: {which} in {where}{hint}")


def _only_run(selection: _Selection, stack: ExitStack) -> _Run:
    runs = _selected_runs(selection, stack)
    if len(runs) > 1:
        pids = ", ".join(str(run.pid) for run in runs)
        text = f"more than one is running: name one with --pid ({pids}), see penstock status"
        raise click.ClickException(text)
    return runs[0]


def _options(
    short_help: str, *, waits: bool = False
) -> Callable[[Callable[..., int]], click.Command]:
    """The options that all of these commands have."""
    options = [
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
    ]
    if waits:
        options += [
            click.option("--now", is_flag=True, help="Do not finish what is being served."),
            click.option("--no-wait", is_flag=True, help="Do not wait for the end."),
        ]

    def command(function: Callable[..., int]) -> click.Command:
        for option in reversed(options):
            function = option(function)
        return click.command(short_help=short_help)(function)

    return command


@_options("Show what runs, and whether it serves.")
def status(directory: Path | None, file: Path | None, pid: int | None, *, as_json: bool) -> int:
    """Show what runs: services, workers, and whether they serve.

    Of each run, if there are several. Exit status 3 if nothing runs.
    """
    with ExitStack() as stack:
        for run in _selected_runs(_select(directory, file, pid), stack):
            answer = run.request("GET", "/status")
            lines = [json.dumps(answer, indent=2)] if as_json else status_table.lines(answer)
            click.echo("\n".join(lines))
    return 0


@_options("Replace all workers, one after the other, losing nothing.")
def reload(directory: Path | None, file: Path | None, pid: int | None, *, as_json: bool) -> int:
    """Replace all workers, one after the other, without losing a request: as HUP does.

    Returns when that has begun. Exit status 3 if nothing runs.
    """
    with ExitStack() as stack:
        run = _only_run(_select(directory, file, pid), stack)
        answer = run.request("POST", "/reload")
    _print(answer, as_json=as_json)
    return 0


@_options("Finish what is being served, and leave.", waits=True)
def stop(
    directory: Path | None,
    file: Path | None,
    pid: int | None,
    *,
    as_json: bool,
    now: bool,
    no_wait: bool,
) -> int:
    """Finish what is being served, end the workers, and leave: as TERM does.

    Returns when it is over. Exit status 3 if nothing runs.
    """
    with ExitStack() as stack:
        run = _only_run(_select(directory, file, pid), stack)
        answer = run.request("POST", "/stop?now=1" if now else "/stop")
        _print(answer, as_json=as_json)
        if not no_wait:
            run.wait()
    return 0


def _print(answer: Mapping[str, Any], *, as_json: bool) -> None:
    click.echo(json.dumps(answer) if as_json else f"pid {answer['pid']}: {answer['done']}")
