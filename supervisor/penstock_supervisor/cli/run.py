"""`penstock run`: runs a supervisor in the foreground.

Options are keys of the configuration. They override the file's keys and are checked by the same
rules, so an error reads the same wherever it was made. The supervisor decides what runs and how
it ends; here each signal calls one of its methods.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

import click

from penstock_proxy.config import Balance
from penstock_supervisor import logging_setup
from penstock_supervisor.cli.options import CommandWithProgram, overrides
from penstock_supervisor.config import file_trust
from penstock_supervisor.config.environment import inherited_environment, lasting_path
from penstock_supervisor.config.loader import Config, load
from penstock_worker.telemetry.log_writer import LogWriter

if TYPE_CHECKING:
    from penstock_supervisor.supervisor import Supervisor

_POLICIES: Final[tuple[str, ...]] = get_args(Balance)
_MISSING: Final = {
    signal.SIGTTIN: "SIGTTIN: a worker cannot be added to a run yet",
    signal.SIGTTOU: "SIGTTOU: a worker cannot be removed from a run yet",
    signal.SIGUSR2: "SIGUSR2: the supervisor cannot be replaced in place yet",
}
"""Signals that other process managers know, and what they would ask for."""

_log = logging.getLogger("penstock.supervisor")


class _Origin(NamedTuple):
    """Where a configuration comes from, so that it can be read again."""

    file: Path | None
    options: Mapping[str, Any]

    def read(self) -> Config:
        """As at the start, from what is in the file now. ConfigError. Blocks."""
        config = load(self.file, self.options, again=True)
        self.warn(config)
        return config

    def warn(self, config: Config) -> None:
        """Log who else could change what root starts."""
        for line in () if self.file is None else file_trust.warnings(self.file, config):
            _log.warning("%s: %s", self.file, line)


class _Run(CommandWithProgram):
    """`run`, with a usage line of its own."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[APP | -- COMMAND… | --to ADDR… | -c FILE]", "[OPTIONS]"]


@click.command(cls=_Run)
@click.argument("app", nargs=-1)
@click.option(
    "--to",
    "upstreams",
    multiple=True,
    metavar="ADDR",
    help="An address that somebody else serves; again for more, or with commas. "
    '"ADDR weight=3" gets three turns.',
)
@click.option(
    "-c",
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Read a TOML file; options are written over it.",
)
@click.option(
    "-w", "--workers", metavar="N|auto", help="How many copies; auto is one per core.  [default: 2]"
)
@click.option(
    "-b",
    "--bind",
    "listen",
    metavar="ADDR",
    help="Where clients connect: host:port, [v6]:port or unix:/path.  [default: 127.0.0.1:8000]",
)
@click.option(
    "--scheme",
    metavar="SCHEME",
    help="How connections get to workers: ports, handoff, shared or reuseport.  [default: ports]",
)
@click.option(
    "--mode",
    metavar="MODE",
    help="http (request by request), tcp (any protocol) or udp.  [default: http]",
)
@click.option(
    "--balance",
    metavar="POLICY",
    help=f"{', '.join(_POLICIES[:-1])} or {_POLICIES[-1]}.  [default: {_POLICIES[0]}]",
)
@click.option(
    "--proxies",
    metavar="N|auto",
    help="How many processes stand before the workers; auto is one per core.  [default: 1]",
)
@click.option(
    "--run-dir",
    metavar="DIR",
    help='The directory of the control socket; "" for none.  [default: a private one]',
)
@click.option(
    "--user",
    metavar="NAME",
    help="As whom proxies and workers run, when started as root.  [default: as root]",
)
@click.option("--group", metavar="NAME", help="Their group.  [default: the user's]")
@click.option(
    "--admin",
    metavar="ADDR",
    help='/metrics, /healthz, /readyz and /status; "" for nowhere.  [default: 127.0.0.1:9464]',
)
@click.option(
    "--access-log", metavar="WHERE", help="stdout, off or the path of a file.  [default: stdout]"
)
@click.option("--access-log-format", metavar="FORMAT", help="json or combined.  [default: json]")
@click.option("-v", "--verbose", count=True, help="Say more on stderr.")
@click.option("-q", "--quiet", count=True, help="Say less; twice: errors only.")
@click.pass_context
def run(ctx: click.Context, /, file: Path | None, verbose: int, quiet: int, **options: Any) -> int:
    """Run copies of a program behind one port, in the foreground, until Ctrl-C.

    APP is module:attribute, an aiohttp Application, a function that makes one, or an ASGI
    application. COMMAND is any program; it has to listen on the port in PORT, or on the
    one written for {port} in its arguments. With nothing named, the demo application.

    \b
    penstock run
    penstock run mypkg.mod:app -w 4 -b 0.0.0.0:8000
    penstock run -w auto -- node server.js
    penstock run mypkg.mod:app --scheme handoff
    penstock run --to 127.0.0.1:9001 --to 127.0.0.1:9002
    penstock run -c configs/ports.toml

    TERM and INT: finish what is being served, then leave; again, or QUIT: at once. HUP reads the
    configuration anew and replaces workers without losing a request, as penstock reload does. USR1
    reopens the access log.
    """
    given = dict(overrides("run", options, ctx))
    config = load(file, given)
    origin = _Origin(None if file is None else lasting_path(file), given)
    with logging_setup.log_thread(verbose - quiet) as log:
        origin.warn(config)
        return asyncio.run(_run(config, origin, log, quiet=quiet > verbose))


async def _run(config: Config, origin: _Origin, log: LogWriter, *, quiet: bool) -> int:
    # Imported late: `penstock check`, and a configuration with errors, need none of it.
    from penstock_supervisor.cli import banner
    from penstock_supervisor.supervisor import StartError, Supervisor

    def started(supervisor: Supervisor) -> None:
        if not quiet:
            text = banner.text(config, supervisor.listening, supervisor.workers, supervisor.admin)
            log.offer(text.encode(errors="backslashreplace"))

    supervisor = Supervisor(
        config, environment=inherited_environment(), read_config=origin.read,
        config_file="" if origin.file is None else str(origin.file), on_started=started,
        stderr=log,
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    for number, act in _signal_actions(supervisor).items():
        loop.add_signal_handler(number, act)
    try:
        return await supervisor.run()
    except StartError as error:
        raise click.ClickException(str(error)) from error


def _signal_actions(supervisor: "Supervisor") -> dict[signal.Signals, Callable[[], object]]:
    """What each signal does. Every signal that somebody may send by mistake has an entry."""
    actions: dict[signal.Signals, Callable[[], object]] = {
        signal.SIGTERM: supervisor.stop,
        signal.SIGINT: supervisor.stop,
        signal.SIGQUIT: partial(supervisor.stop, now=True),
        signal.SIGUSR1: supervisor.reopen_logs,
        **{number: partial(_say_missing, name) for number, name in _MISSING.items()},
    }
    # With a terminal, HUP means that the terminal went away: stop, unless nohup ignores it.
    # Without one it is a request to replace the workers, as for nginx.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        actions[signal.SIGHUP] = supervisor.stop if os.isatty(0) else partial(_roll, supervisor)
    return actions


def _roll(supervisor: "Supervisor") -> None:
    # As of a request to the control socket: the log says who wanted the roll-out.
    _log.info("reload, asked for by HUP")
    supervisor.roll()


def _say_missing(what: str) -> None:
    _log.warning("%s, and nothing is changed", what)
