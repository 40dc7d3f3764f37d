"""`penstock reload`: asks a run to read its configuration anew, and waits for the roll-out's end.

The exit status says whether the new version serves. Owns what is printed and when it is asked
again; the run decides everything else.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import click

from penstock_proxy.config import parse_duration
from penstock_supervisor.children.reported_text import set_in
from penstock_supervisor.cli import progress
from penstock_supervisor.cli.runs import NO_WAIT, NoAnswer, Run, only_run, options, select
from penstock_supervisor.config.loader import ConfigError
from penstock_supervisor.control import rollouts

_BEGIN_S: Final = 60.0
"""For a run to read files, look up names and open what is new."""
_WAIT_S: Final = 2.0
"""How long a run keeps us waiting for news. Then the time is shown anew."""
_ANSWER_S: Final = 10.0
_PAUSE_S: Final = 0.2
"""Between two questions, if the run does not keep us waiting."""
_BEGUN: Final = {
    (False, False): "has begun",
    (False, True): "is asked for",
    (True, False): "runs already, and does this as well",
    (True, True): "waits already, and does this as well",
}
"""Whether it is joined, and whether it waits for something."""
_WRONG: Final = 2
_INTERRUPTED: Final = 130
_BAD_REQUEST: Final = 400
_NOT_FOUND: Final = 404


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds. As everywhere else, a time has its unit."""
    if value is None:
        return None
    seconds = 0.0
    with suppress(ValueError):
        seconds = float(str(parse_duration(value)))
    if seconds <= 0:
        text = f'expected a time above 0 with its unit, such as "90s" or "5m", not "{value}"'
        raise click.BadParameter(text, ctx, param)
    return seconds


class _Wrong(click.ClickException):
    exit_code = _WRONG


class _RefusedLate(click.ClickException):
    """Found wrong when what is new was opened, before anything was changed."""

    exit_code = _WRONG


class _TimedOut(Exception):  # noqa: N818 — the roll-out is well
    """The roll-out has not ended in time, and goes on."""


@options(
    click.argument("services", metavar="[SERVICE]…", nargs=-1),
    click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
    NO_WAIT,
    click.option(
        "--timeout",
        "timeout_s",
        callback=_time,
        metavar="TIME",
        help='Wait for at most so long, such as "5m"; the roll-out goes on.',
    ),
)
def reload(
    directory: Path | None,
    file: Path | None,
    pid: int | None,
    *,
    as_json: bool,
    services: tuple[str, ...],
    dry_run: bool,
    no_wait: bool,
    timeout_s: float | None,
) -> int:
    """Read the configuration anew, and replace workers without losing a request: as HUP does.

    If nothing in the configuration has changed, all workers are replaced, one after the other: a
    deploy of new code. If it has changed, it is applied, and only those workers are replaced that
    need it. The workers of each SERVICE that is named are replaced in any case.

    A new worker has to be ready, healthy and in the rotation before an old one leaves. If one is
    not, the roll-out is aborted, and the old workers stay.

    \b
    penstock reload                  everything, and wait
    penstock reload web --timeout 5m
    penstock reload --dry-run        what would be done?

    Exit status: 0 the new version serves; 1 it does not, or not yet; 2 the configuration is broken,
    cannot be had (an address is taken), or a change needs a restart, and nothing is changed; 3
    nothing runs; 130 Ctrl-C while it waits, and the roll-out goes on.
    """
    if timeout_s is not None and (no_wait or dry_run):
        other = "--no-wait" if no_wait else "--dry-run"
        raise click.UsageError(f"--timeout and {other}: there is nothing to wait for")
    with ExitStack() as stack:
        order: dict[str, Any] = {"services": services, "dry_run": dry_run}
        if file is not None:
            order["file"] = str(file.absolute())
        try:
            # The run says itself what is wrong with the file.
            run = only_run(select(directory, file, pid, silent=True), stack)
            answer = run.ask("POST", "/reload", order, _BEGIN_S)
        except click.ClickException as error:
            return _not_asked(error, as_json=as_json)
        if answer.is_error:
            return _refused(answer.status, answer.body, answer.error(), as_json=as_json)
        number = answer.body["rollout"]
        if not as_json:
            _print_begin(answer.body)
        elif number is None or no_wait:
            click.echo(json.dumps(answer.body))
        if number is None or no_wait:
            return 0
        return _wait(run, answer.body, timeout_s, as_json=as_json)


def _not_asked(error: click.ClickException, *, as_json: bool) -> int:
    """No run has answered: told as the refusals of a run are."""
    if not as_json:
        raise error
    click.echo(json.dumps({"error": error.message, "problems": [error.message]}))
    return error.exit_code


def _refused(status: int, body: Any, error: click.ClickException, *, as_json: bool) -> int:
    """The problems, in words or as JSON. 404: of a SERVICE, and 409: not now."""
    is_wrong = status in (_BAD_REQUEST, _NOT_FOUND)
    problems = body.get("problems") if isinstance(body, dict) else None
    if problems and as_json:
        click.echo(json.dumps(body))
        return _WRONG if is_wrong else 1
    if problems and status == _BAD_REQUEST:
        raise ConfigError(tuple(map(str, problems)))
    raise _Wrong(error.message) if is_wrong else error


def _print_begin(answer: Any) -> None:
    for line in answer["changes"]:
        click.echo(line)
    if answer["rollout"] is None:
        click.echo("nothing is changed: this was a dry run")
    else:
        click.echo(f"roll-out {answer['rollout']} {_BEGUN[answer['joined'], answer['waits']]}")


def _wait(run: Run, begun: Any, timeout_s: float | None, *, as_json: bool) -> int:
    """Follow the roll-out to its end, and say how it went. `begun`: the run's answer."""
    number = begun["rollout"]
    goes_on = f"roll-out {number} goes on: see penstock status"
    try:
        rollout = _followed(run, begun, timeout_s, as_json=as_json)
    except KeyboardInterrupt:
        click.echo(f"penstock: no longer waiting; {goes_on}", err=True)
        return _INTERRUPTED
    except _TimedOut:
        raise click.ClickException(f"it has not ended after {timeout_s:g} s; {goes_on}") from None
    except NoAnswer as error:
        text = f"the run with pid {run.pid} has ended" if run.has_ended() else error.message
        raise click.ClickException(f"{text}, and roll-out {number} was under way") from None
    has_succeeded = rollout["result"] == rollouts.SUCCEEDED
    is_refused = rollout["result"] == rollouts.REFUSED
    if as_json:
        return 0 if has_succeeded else _WRONG if is_refused else 1
    if is_refused:
        raise _RefusedLate(_failure(rollout))
    for line in (*rollout["verdicts"], rollouts.requests(rollout)):
        click.echo(line)
    if not has_succeeded:
        raise click.ClickException(_failure(rollout))
    click.echo(rollouts.outcome(rollout))
    return 0


def _followed(run: Run, begun: Any, timeout_s: float | None, *, as_json: bool) -> Any:
    """The roll-out at its end. As JSON it is printed as it was at the last look, however the
    waiting ends. _TimedOut, NoAnswer."""
    rollout = begun
    try:
        with closing(progress.for_stdout(as_json=as_json)) as shown:
            for rollout in _follow(run, begun["rollout"], timeout_s):
                shown.show(rollout)
    finally:
        if as_json:
            click.echo(json.dumps(rollout))
    return rollout


def _follow(run: Run, number: int, timeout_s: float | None) -> Iterator[Any]:
    """The roll-out at each look, until its end. _TimedOut, NoAnswer."""
    deadline = None if timeout_s is None else monotonic() + timeout_s
    seen = ""
    while True:
        asked_at = monotonic()
        wait_s = _WAIT_S if deadline is None else max(0.0, min(_WAIT_S, deadline - asked_at))
        path = f"/rollouts/{number}?wait={wait_s:.3f}&seen={seen}"
        answer = run.ask("GET", path, timeout_s=wait_s + _ANSWER_S)
        if answer.is_error:
            raise answer.error()
        rollout = answer.body
        yield rollout
        if rollout["result"]:
            return
        now = monotonic()
        if deadline is not None and now >= deadline:
            raise _TimedOut
        if str(rollout["version"]) == seen and now < asked_at + _PAUSE_S:
            sleep(_PAUSE_S)
        seen = str(rollout["version"])


def _failure(rollout: rollouts.Rollout) -> str:
    """The result with its reason, and the detail set in below it."""
    return f"{rollouts.outcome(rollout)}{set_in(rollout['detail'])}"
