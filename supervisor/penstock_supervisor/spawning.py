"""From a plan to a running process: what it inherits, made before it and owned by us after.

Owns the order in which that has to happen, so that whatever goes wrong on the way leaves no
descriptor behind: channel and link are made, their far ends go to numbers that nothing else
wants, the process is started, and our copies of the far ends are closed.
"""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from penstock_supervisor.above import Surroundings
from penstock_supervisor.links import Link
from penstock_supervisor.privileges import AS_WE_ARE
from penstock_supervisor.processes import Exit, Process, SpawnError
from penstock_supervisor.program import Program, high
from penstock_supervisor.schemes import ChildPlan
from penstock_worker import channel, contract


class Spawned(NamedTuple):
    """A process, and our ends of what leads to it."""

    process: Process
    channel: socket.socket
    links: tuple[Link, ...]


def spawn(
    plan: ChildPlan,
    passed: tuple[int, ...],
    around: Surroundings,
    on_exit: Callable[[Exit], None],
) -> Spawned:
    """Start it with `passed` as its listening sockets. SpawnError if that cannot be."""
    with ExitStack() as ours, ExitStack() as theirs:
        try:
            mine, links, given = _ends(plan, ours, theirs)
        except OSError as error:
            why = f"no channel and no links can be made for it: {error.strerror}"
            raise SpawnError("workers", why, passing=True) from None
        environment = {**plan.environment, contract.CHANNEL_FD: str(given[0])}
        if links:
            environment[contract.LINK_FD] = ",".join(map(str, given[1:]))
        program = Program(
            plan.argv,
            environment,
            plan.directory,
            (*plan.inherited, *given),
            captured=plan.role != "front",
            listen=passed,
            names=plan.service,
            privileges=plan.privileges or AS_WE_ARE,
        )
        process = Process(program, around.loop, around.guardian, on_exit)
        ours.pop_all()
    return Spawned(process, mine, links)


def _ends(
    plan: ChildPlan, ours: ExitStack, theirs: ExitStack
) -> tuple[socket.socket, tuple[Link, ...], list[int]]:
    """Our end of its channel, its links, and the numbers of what it inherits of both."""
    mine, far = channel.pair()
    ours.callback(mine.close)
    with far:
        given = [high(far.fileno())]
    theirs.callback(os.close, given[0])
    links: list[Link] = []
    for _ in range(plan.links):
        links.append(Link.made())
        ours.callback(links[-1].close)
        given.append(high(links[-1].worker.fileno()))
        theirs.callback(os.close, given[-1])
    return mine, tuple(links), given
