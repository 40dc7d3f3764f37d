"""Where a run is talked to: opens the admin port and the control socket to whoever asks."""

from contextlib import AsyncExitStack
from typing import Protocol

from penstock_proxy.net.address import parse_address
from penstock_supervisor.control import admin, api, http_server
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.snapshot import Snapshot


class Run(api.Controls, Protocol):
    async def take_snapshot(self, deadline_s: float) -> Snapshot: ...


async def serve(stack: AsyncExitStack, resources: Resources, run: Run) -> None:
    """From now until the end of `stack`."""
    pages = admin.Pages(run.take_snapshot)
    if (port := resources.admin) is not None:
        name = parse_address(resources.config.admin).host
        app = admin.app(pages, port.socket, name)
        await stack.enter_async_context(http_server.serve(port.socket, app))
    if resources.control is not None:
        app = api.app(pages, run)
        await stack.enter_async_context(http_server.serve(resources.control.socket, app))
