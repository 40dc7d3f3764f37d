"""`penstock status`, `reload` and `stop`: verbs that talk to a run over its control socket.

Owns which run is meant (the one in `--run-dir`, in that of `-c`, or the only one of this
user), and how its answers are shown. A socket is believed only if it is in a directory that
nobody else can write to, and answered by that directory's owner.
"""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from penstock_supervisor.config import default_run_dirs, load
from penstock_supervisor.control import peer
from penstock_supervisor.run_dir import RefusedError, RunDir

NOT_RUNNING: Final = 3
_PATIENCE_S: Final = 10.0
_LOOK_S: Final = 0.1
_RARELY: Final = 20
"""Looks between two connects, which a run that ends has to wait for."""


class NotRunning(click.ClickException):
    exit_code = NOT_RUNNING


class _Meant(NamedTuple):
    """What the options say about which run is meant."""

    directory: Path | None
    file: Path | None
    pid: int | None

    def directories(self) -> tuple[Path, ...]:
        if self.directory is not None:
            return (self.directory,)
        named = load(self.file, {}).run_dir if self.file else None
        return default_run_dirs() if named is None else (Path(named),)

    @property
    def is_sure(self) -> bool:
        return self.directory is not None or self.file is not None


class _Run:
    """One run that answers, and the only connection to it, which is for one request."""

    def __init__(self, directory: RunDir, name: str, sock: socket.socket) -> None:
        self.pid = peer(sock).pid
        self._directory = directory
        self._name = name
        self._sock = sock

    def ask(self, method: str, path: str) -> Any:
        """The answer's JSON. ClickException: it says no, or nothing."""
        connection = http.client.HTTPConnection("localhost", timeout=_PATIENCE_S)
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
        """Until it is over: it takes its name away. One that is killed cannot, but refuses."""
        for look in count(1):
            if self._directory.identity(self._name) is None:
                return
            if look % _RARELY == 0 and self._directory.is_dead(self._name):
                return
            time.sleep(_LOOK_S)


def _found(meant: _Meant, stack: ExitStack) -> Iterator[_Run]:
    for path in meant.directories():
        try:
            directory = stack.enter_context(RunDir(path, make=False))
        except FileNotFoundError:
            continue
        except (OSError, RefusedError) as error:
            if meant.is_sure:
                why = error.strerror if isinstance(error, OSError) else error
                raise click.ClickException(f"run_dir: {why}") from error
            continue
        for name in directory.names():
            with suppress(OSError):
                sock = stack.enter_context(directory.connect(name, _PATIENCE_S))
                if peer(sock).uid == directory.owner:
                    yield _Run(directory, name, sock)


def _the_run(meant: _Meant, stack: ExitStack) -> _Run:
    runs = [run for run in _found(meant, stack) if meant.pid in (None, run.pid)]
    if not runs:
        where = " or ".join(map(str, meant.directories()))
        which = f"no run with pid {meant.pid}" if meant.pid else "no run"
        raise NotRunning(f"not running: {which} in {where or 'no directory'}")
    if len(runs) > 1:
        pids = ", ".join(str(run.pid) for run in runs)
        raise click.ClickException(f"more than one is running: name one with --pid ({pids})")
    return runs[0]


def _options(*, waits: bool = False) -> Callable[[Callable[..., int]], click.Command]:
    """What all of these verbs have."""
    options = [
        click.option(
            "--run-dir",
            "directory",
            metavar="DIR",
            type=click.Path(path_type=Path),
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
        return click.command()(function)

    return command


@_options()
def status(directory: Path | None, file: Path | None, pid: int | None, *, as_json: bool) -> int:
    """Show what runs: services, workers, and whether they serve.

    Exit status 3 if nothing runs.
    """
    with ExitStack() as stack:
        found = _the_run(_Meant(directory, file, pid), stack).ask("GET", "/status")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(_lines(found)))
    return 0


@_options()
def reload(directory: Path | None, file: Path | None, pid: int | None, *, as_json: bool) -> int:
    """Replace all workers, one after the other, without losing a request: as HUP does.

    Returns when that has begun. Exit status 3 if nothing runs.
    """
    with ExitStack() as stack:
        answer = _the_run(_Meant(directory, file, pid), stack).ask("POST", "/reload")
    _say(answer, as_json=as_json)
    return 0


@_options(waits=True)
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
        run = _the_run(_Meant(directory, file, pid), stack)
        answer = run.ask("POST", "/stop?now=1" if now else "/stop")
        _say(answer, as_json=as_json)
        if not no_wait:
            run.wait()
    return 0


def _say(answer: Mapping[str, Any], *, as_json: bool) -> None:
    click.echo(json.dumps(answer) if as_json else f"pid {answer['pid']}: {answer['done']}")


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    state = "stopping" if found["stopping"] else "ready" if found["ready"] else "not ready"
    yield f"penstock {found['version']}, pid {found['pid']}, up {found['uptime']:.0f} s, {state}"
    yield from _table([_row(f"front/{front['slot']}", front) for front in found["fronts"]])
    for name, service in found["services"].items():
        yield f"{name} on {service['listen']} ({service['scheme']}, {service['mode']})"
        yield from _table([_row(f"{name}/{one['slot']}", one) for one in service["workers"]])


def _row(name: str, child: Mapping[str, Any]) -> tuple[str, ...]:
    # An upstream has no process of ours; a front is in no rotation.
    process = "" if child.get("pid") is None else f"pid {child['pid']}"
    restarts = sum((child.get("restarts") or {}).values())
    return (
        name,
        child.get("state") or "",
        child.get("standing") or ("covered by the others" if child.get("covered") else ""),
        process,
        child.get("address") or "",
        f"{restarts} restart{'s' * (restarts != 1)}" if restarts else "",
    )


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width)
        yield f"  {'  '.join(cells)}".rstrip()
