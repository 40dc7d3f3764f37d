"""`penstock compare`: every scheme with one program, under one load, in one table.

Reads options as `run` does, checks before measuring everything that could fail afterwards (the
files for results, the library for the page), and shows the result. `compare.plan` decides what
is measured; `compare.report.table` and `compare.charts.page` how it is shown.
"""

import asyncio
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from penstock_proxy.net.address import parse_address
from penstock_supervisor import logging_setup
from penstock_supervisor.cli.options import CommandWithProgram, overrides
from penstock_supervisor.config.loader import DEMO, Config, ConfigError, Service, load

if TYPE_CHECKING:
    from penstock_supervisor.compare.report.result import Comparison
    from penstock_supervisor.compare.run import ComparisonSpec
    from penstock_supervisor.compare.specification import Request

_INTERRUPTED: Final = 130
_ARGUMENTS: Final = "penstock.arguments"
"""In a context: the arguments of the command line."""
_PLOTLY: Final = 'compare --html needs plotly: pip install "penstock-lb[report]"'
_ASGI_DEMO: Final = "penstock_worker.demo:asgi"
"""What is compared with peers that serve ASGI only, if no program is named."""
_FILE: Final = click.Path(path_type=Path)


class _Compare(CommandWithProgram):
    """Keeps the command line, because the result contains it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[APP | -- COMMAND… | -c FILE]", "[--to ADDR…] [OPTIONS]"]


@click.command(cls=_Compare)
@click.argument("app", nargs=-1)
@click.option("-c", "--config", "file", metavar="FILE", type=_FILE, help="Read a TOML file.")
@click.option(
    "--to",
    "others",
    multiple=True,
    metavar="ADDR",
    help="Measure an address that somebody else serves as well; again for more, or with commas.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME",
    help="Measure a known stack as well, with the same program: uvicorn, gunicorn, granian, "
    "node-cluster, command, or one of them behind nginx+ or haproxy+; again for more.",
)
@click.option(
    "--show-peer", metavar="NAME", help="Print how a peer is set up for the program, and exit."
)
@click.option(
    "-w",
    "--workers",
    metavar="N|auto|LIST",
    help="How many copies; auto is one per core; 1,2,4 shows how each scheme scales.  [default: 2]",
)
@click.option(
    "--proxies", metavar="N|auto", help="How many proxies, where there is any.  [default: 1]"
)
@click.option(
    "--schemes",
    metavar="LIST",
    help="Only these of ports/http, ports/http/tcp (its workers are reached over TCP), ports/tcp, "
    "handoff, shared and reuseport, with commas.",
)
@click.option("--quick", is_flag=True, help="Take less than a minute; the default is a few.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    metavar="N",
    help="Measure N times; the default is as often as the differences need.",
)
@click.option(
    "--load",
    "generator",
    type=click.Choice(["auto", "own", "wrk"]),
    default="auto",
    help="What makes the load: ours, or wrk where it can; auto is wrk if there is one.",
)
@click.option("--verify", is_flag=True, help="Hold our load generator against wrk, and say both.")
@click.option("--log", "access_log", is_flag=True, help="Have all subjects write an access log.")
@click.option("--path", metavar="/PATH", default="/", help="What is asked for.  [default: /]")
@click.option("--json", "json_file", metavar="FILE", type=_FILE, help="Write the figures.")
@click.option("--html", "html_file", metavar="FILE", type=_FILE, help="Write a page with charts.")
@click.option(
    "--baseline", metavar="FILE", type=_FILE, help="Compare with what --json wrote earlier."
)
@click.option("-v", "--verbose", count=True, help="Say more on stderr.")
@click.option("-q", "--quiet", count=True, help="Say less: no progress.")
@click.pass_context
def compare(ctx: click.Context, /, **options: Any) -> int:
    """Run a program under every scheme, under the same load, and show which is best at what.

    APP and COMMAND are as with penstock run; with nothing named, the demo application. Each
    scheme gets a free port on 127.0.0.1, and all of them take turns.

    \b
    penstock compare --quick
    penstock compare mypkg.mod:app -w 4 --html report.html
    penstock compare -c configs/ports.toml --json today.json --baseline yesterday.json
    penstock compare --schemes ports,shared -- node server.js
    penstock compare mypkg.mod:app --peer nginx+uvicorn,gunicorn
    penstock compare mypkg.mod:app --to 127.0.0.1:8080

    Ctrl-C ends early, and shows what was measured so far. Exit status 130 then.
    """
    html, baseline_file = options["html_file"], options["baseline"]
    names = _peer_names(options)
    workers, notes = _worker_counts(options["workers"])
    options["workers"] = str(workers[-1]) if workers else options["workers"]
    given = dict(overrides("compare", _config_options(options), ctx))
    config = load(options["file"], given)
    service = _only_service(config)
    if names and service.app == DEMO["app"] and "app" not in given:
        service = service.model_copy(update={"app": _ASGI_DEMO})
    if options["show_peer"]:
        return _show_peer(names[0], service, config.proxies, options)
    _check_path(options["path"], service)
    for option, path in (("--json", options["json_file"]), ("--html", html)):
        _check_writable(option, path)
    if html is not None and importlib.util.find_spec("plotly") is None:
        raise click.ClickException(_PLOTLY)
    baseline = None if baseline_file is None else _load_baseline(baseline_file)
    logging_setup.set_up(options["verbose"] - options["quiet"] - 1)
    # Imported late: `penstock --help`, and a command line with errors, need none of it.
    from penstock_supervisor.compare.specification import Request

    with _socket_directory(service) as directory:
        command = join(("penstock", "compare", *ctx.meta[_ARGUMENTS]))
        request = Request(
            service=service,
            proxies=config.proxies,
            peers=names,
            others=_addresses(options["others"]),
            schemes=options["schemes"] or "",
            scaled_workers=workers[:-1],
            generator=options["generator"],
            path=options["path"],
            quick=options["quick"],
            rounds=options["rounds"],
            verify=options["verify"],
            access_log=options["access_log"],
            directory=directory,
            command=command,
            notes=notes,
            verbose=options["verbose"] > 0,
        )
        spec = _spec(request)
        comparison = _measure(spec, quiet=options["quiet"] > options["verbose"])
    _show(comparison, baseline, options["json_file"], html)
    return _INTERRUPTED if comparison.interrupted else 0


def _config_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are keys of the configuration. `--to` names subjects, not upstreams."""
    keys = ("app", "workers", "proxies")
    return {**{key: options[key] for key in keys}, "upstreams": ()}


def _only_service(config: Config) -> Service:
    """The service that is measured. ConfigError."""
    if len(config.services) != 1:
        names = ", ".join(service.name for service in config.services)
        raise ConfigError((f"compare measures a file with one service, and this one has {names}",))
    (service,) = config.services
    if service.mode == "udp":
        raise ConfigError(('compare asks over HTTP, and cannot measure mode = "udp"',))
    return service


@contextmanager
def _socket_directory(service: Service) -> Iterator[str]:
    """A temporary directory for the subjects' unix sockets; "" if they listen on TCP.

    It is made here, because a subject that is killed could not remove it.
    """
    if not parse_address(service.listen).path:
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
        yield directory


def _check_path(path: str, service: Service) -> None:
    """Check the path of requests by the rule for paths in a configuration. ConfigError."""
    health = type(service.health)
    try:
        health.model_validate({"path": path})
    except ValueError:
        text = f'--path: expected a path that starts with "/" and has no spaces, not "{path}"'
        raise ConfigError((text,)) from None


def _addresses(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses of `--to`. ConfigError."""
    addresses: dict[str, None] = {}
    for text in (part.strip() for each in texts for part in each.split(",")):
        try:
            address = parse_address(text)
        except ValueError as error:
            raise ConfigError((f'--to: {error}, not "{text}"',)) from None
        if not address.path and not address.port:
            raise ConfigError((f'--to: expected a port to connect to, not "{text}"',))
        addresses[str(address)] = None
    return tuple(addresses)


def _check_writable(option: str, path: Path | None) -> None:
    """Check it now, and not after minutes of measuring. ConfigError."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError((f'{option}: expected a file in a directory that exists, not "{path}"',))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError((f"{option}: {path}: permission denied",))


def _load_baseline(path: Path) -> Any:
    from penstock_supervisor.compare.report import baseline

    try:
        return baseline.load(path)
    except ValueError as error:
        raise ConfigError((f"--baseline: {error}",)) from None


def _spec(request: "Request") -> "ComparisonSpec":
    from penstock_supervisor.compare import specification

    try:
        return specification.make(request)
    except specification.ProgramMissingError as error:
        raise click.ClickException(str(error)) from None


def _peer_names(options: dict[str, Any]) -> tuple[str, ...]:
    """The peers of --peer, or the one of --show-peer. ConfigError."""
    shown = options["show_peer"]
    texts = (shown,) if shown else options["peers"]
    if not texts:
        return ()
    from penstock_supervisor.compare.peers import catalog

    try:
        return catalog.parse_names(texts)
    except ValueError as error:
        raise ConfigError((f"--{'show-peer' if shown else 'peer'}: {error}",)) from None


def _show_peer(name: str, service: Service, proxies: int, options: dict[str, Any]) -> int:
    """Print its files and commands. ConfigError."""
    from penstock_supervisor.compare.peers import choice
    from penstock_supervisor.compare.peers.recipe import RecipeError

    try:
        setting = choice.example(service, proxies, access_log=options["access_log"])
        click.echo(choice.show(name, setting), nl=False)
    except RecipeError as error:
        raise ConfigError((f"--show-peer: {error}",)) from None
    return 0


def _worker_counts(text: str | None) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The numbers of a list such as "1,2,4" in order, and why some are left out. ConfigError.

    Nothing for anything that is no list.
    """
    if text is None or "," not in text:
        return (), ()
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError((f'--workers: expected numbers with commas, not "{text}"',)) from None
    if counts[0] < 1:
        raise ConfigError((f"--workers: expected at least 1, not {counts[0]}",))
    cores = max(counts[0], len(os.sched_getaffinity(0)))
    notes = (f"{n} workers are not measured: {cores} cores" for n in counts if n > cores)
    return tuple(n for n in counts if n <= cores), tuple(notes)


class _ProgressBar:
    """Shows what is measured now, and about how long the rest takes."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def begin(self, least_s: float, most_s: float) -> None:
        self._progress.update(self._task, total=most_s)
        text = f"This takes about {_duration(least_s, most_s)}: rounds go on until they tell the "
        text += "subjects apart. Ctrl-C shows what was measured so far."
        self._progress.console.print(text, soft_wrap=True)

    def describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def advance(self, seconds: float) -> None:
        self._progress.advance(self._task, seconds)


def _duration(least_s: float, most_s: float) -> str:
    """ "40 to 57 seconds", "3 to 4 minutes" """
    unit, factor = ("seconds", 1.0) if most_s < 100 else ("minutes", 60.0)
    least, most = round(least_s / factor), round(most_s / factor)
    return f"{least} to {most} {unit}" if least < most else f"{most} {unit}"


def _measure(spec: "ComparisonSpec", *, quiet: bool) -> "Comparison":
    from penstock_supervisor.compare.run import CompareError
    from penstock_supervisor.compare.run import compare as run_comparison

    console = Console(stderr=True, quiet=quiet, highlight=False)
    for note in spec.notes:
        console.print(note, markup=False, soft_wrap=True)
    columns = (BarColumn(), TextColumn("{task.description}", markup=False), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            return asyncio.run(run_comparison(spec, _ProgressBar(progress)))
    except CompareError as error:
        raise click.ClickException(str(error)) from None


def _show(
    comparison: "Comparison", baseline: Any, json_file: Path | None, html_file: Path | None
) -> None:
    from penstock_supervisor.compare.charts import terminal
    from penstock_supervisor.compare.report import table

    console = Console(highlight=False)
    console.print(terminal.render(comparison, console.width))
    console.print(table.render(comparison, baseline, console.width))
    with _report_write_errors("--json", json_file):
        if json_file is not None:
            json_file.write_text(comparison.model_dump_json(indent=2) + "\n")
    with _report_write_errors("--html", html_file):
        if html_file is not None:
            # Imported only here: it needs plotly, which is an extra.
            from penstock_supervisor.compare.charts import page

            page.write(comparison, baseline, html_file)


@contextmanager
def _report_write_errors(option: str, path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"{option}: {path}: {error.strerror}") from None
