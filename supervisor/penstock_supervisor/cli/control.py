"""`penstock status` and `stop`: commands that use the control socket of a run.

`runs` finds the run, and `status_table` shows one. `reload` has a file of its own.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from penstock_supervisor.cli import status_table
from penstock_supervisor.cli.runs import NO_WAIT, only_run, options, select, selected_runs


@options()
def status(directory: Path | None, file: Path | None, pid: int | None, *, as_json: bool) -> int:
    """Show what runs: services, workers, and whether they serve.

    Of each run, if there are several. Exit status 3 if nothing runs.
    """
    with ExitStack() as stack:
        for run in selected_runs(select(directory, file, pid), stack):
            answer = run.request("GET", "/status")
            lines = [json.dumps(answer, indent=2)] if as_json else status_table.lines(answer)
            click.echo("\n".join(lines))
    return 0


@options(
    click.option("--now", is_flag=True, help="Do not finish what is being served."),
    NO_WAIT,
)
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
        run = only_run(select(directory, file, pid), stack)
        answer = run.request("POST", "/stop?now=1" if now else "/stop")
        _print(answer, as_json=as_json)
        if not no_wait:
            run.wait()
    return 0


def _print(answer: Mapping[str, Any], *, as_json: bool) -> None:
    click.echo(json.dumps(answer) if as_json else f"pid {answer['pid']}: {answer['done']}")
