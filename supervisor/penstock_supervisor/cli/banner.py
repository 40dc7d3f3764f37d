"""What `penstock run` prints when everything is up: what listens where, and what to open.

On stderr, as everything that is not output of the service itself. Colours only where a
terminal reads along, which rich finds out; in a file it is plain lines.
"""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from penstock_supervisor.cli.describe import doing
from penstock_supervisor.config.loader import Config

PAGES = ("/metrics", "/status", "/healthz", "/readyz")


def show(
    config: Config,
    listening: Mapping[str, str],
    workers: Mapping[str, Sequence[str]],
    admin: str,
    console: Console | None = None,
) -> None:
    """Print it. `listening` and `workers` are addresses by service, as they really are.

    The configuration may have said port 0, or nothing about the workers' ports at all.
    """
    console = console or Console(stderr=True, highlight=False)
    for service in config.services:
        address = listening.get(service.name, service.listen)
        if service.mode == "http" and not address.startswith("unix:"):
            address = f"{'https' if service.tls.files else 'http'}://{address}"
        line = Text.assemble((service.name, "bold"), " on ", (address, "bold cyan"))
        console.print(line.append(f", {doing(service, config.proxies)}"), soft_wrap=True)
        for slot, worker in enumerate(workers.get(service.name, ())):
            console.print(Text(f"  {service.name}/{slot} on {worker}", "dim"), soft_wrap=True)
    if admin.startswith("unix:"):
        console.print(Text(f"admin on {admin}: {' '.join(PAGES)}"), soft_wrap=True)
    elif admin:
        pages = f"http://{admin}/ {' '.join(PAGES)}"
        console.print(Text.assemble(("admin", "bold"), " on ", pages), soft_wrap=True)
    console.print(Text("Ctrl-C to stop", "dim"))
