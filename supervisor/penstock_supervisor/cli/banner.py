"""What `penstock run` prints when everything is up: what listens where, the admin pages, and
which build it is.

It goes to stderr, as everything that is not output of the programs. Rich uses colours if stderr
is a terminal, and plain lines otherwise.
"""

import sys
from collections.abc import Mapping, Sequence
from io import StringIO

from rich.console import Console
from rich.text import Text

from penstock_supervisor import release
from penstock_supervisor.cli.describe import describe_service
from penstock_supervisor.config.loader import Config

PAGES = ("/metrics", "/status", "/healthz", "/readyz")


def text(
    config: Config,
    listening: Mapping[str, str],
    workers: Mapping[str, Sequence[str]],
    admin: str,
) -> str:
    """What `show` would print to stderr, for whoever writes there."""
    # Not `Console.capture`, which writes to the stream all the same.
    file = StringIO()
    is_terminal = True if sys.stderr.isatty() else None
    console = Console(file=file, force_terminal=is_terminal, highlight=False)
    show(config, listening, workers, admin, console)
    return file.getvalue()


def show(
    config: Config,
    listening: Mapping[str, str],
    workers: Mapping[str, Sequence[str]],
    admin: str,
    console: Console | None = None,
) -> None:
    """Print it. `listening` and `workers` are the actual addresses, by service.

    The configuration may have port 0, or no ports of workers at all.
    """
    console = console or Console(stderr=True, highlight=False)
    for service in config.services:
        address = listening.get(service.name, service.listen)
        if service.mode == "http" and not address.startswith("unix:"):
            address = f"{'https' if service.tls.files else 'http'}://{address}"
        line = Text.assemble((service.name, "bold"), " on ", (address, "bold cyan"))
        console.print(line.append(f", {describe_service(service, config.proxies)}"), soft_wrap=True)
        for slot, worker in enumerate(workers.get(service.name, ())):
            console.print(Text(f"  {service.name}/{slot} on {worker}", "dim"), soft_wrap=True)
    if admin.startswith("unix:"):
        console.print(Text(f"admin on {admin}: {' '.join(PAGES)}"), soft_wrap=True)
    elif admin:
        pages = f"http://{admin}/ {' '.join(PAGES)}"
        console.print(Text.assemble(("admin", "bold"), " on ", pages), soft_wrap=True)
    console.print(Text(release.describe(), "dim"), soft_wrap=True)
    console.print(Text("Ctrl-C to stop", "dim"))
