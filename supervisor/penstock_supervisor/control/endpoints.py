"""Serves the admin port and the control socket of a run."""

from contextlib import AsyncExitStack
from typing import Protocol

from penstock_proxy.net.address import parse_address
from penstock_supervisor.control import admin, api, http_server
from penstock_supervisor.rollout.resources import Resources
from penstock_supervisor.snapshot import Snapshot


class Run(api.RunControl, Protocol):
    async def take_snapshot(self, deadline_s: float) -> Snapshot: ...


async def serve(stack: AsyncExitStack, resources: Resources, run: Run) -> None:
    """Serve from now until the end of `stack`."""
    pages = admin.Pages(run.take_snapshot)
    if (listener := resources.admin) is not None:
        name = parse_address(resources.config.admin).host
        app = admin.app(pages, listener.socket, name)
        await stack.enter_async_context(http_server.serve(listener.socket, app))
    if resources.control is not None:
        app = api.app(pages, run)
        await stack.enter_async_context(http_server.serve(resources.control.socket, app))
