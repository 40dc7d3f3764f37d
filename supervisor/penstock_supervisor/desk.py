"""Where a run is talked to: opens the admin port and the control socket to whoever asks."""

from contextlib import AsyncExitStack
from typing import Protocol

from penstock_proxy.config import parse_address
from penstock_supervisor import admin, control, reception
from penstock_supervisor.observation import Observation
from penstock_supervisor.premises import Premises


class Run(control.Controls, Protocol):
    async def observe(self, deadline_s: float) -> Observation: ...


async def serve(stack: AsyncExitStack, premises: Premises, run: Run) -> None:
    """From now until the end of `stack`."""
    pages = admin.Pages(run.observe)
    if (port := premises.admin) is not None:
        name = parse_address(premises.config.admin).host
        app = admin.app(pages, port.socket, name)
        await stack.enter_async_context(reception.serve(port.socket, app))
    if premises.control is not None:
        app = control.app(pages, run)
        await stack.enter_async_context(reception.serve(premises.control.socket, app))
