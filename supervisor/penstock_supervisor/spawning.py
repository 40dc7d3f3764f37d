"""From a plan to a running process: what it inherits, made before it and owned by us after.

Owns the order in which that has to happen, so that whatever goes wrong on the way leaves no
descriptor behind: channel and link are made, their far ends go to numbers that nothing else
wants, the process is started, and our copies of the far ends are closed.
"""

import os
import socket
from collections.abc import Callable
from typing import NamedTuple

from penstock_supervisor.above import Surroundings
from penstock_supervisor.links import Link
from penstock_supervisor.privileges import AS_WE_ARE
from penstock_supervisor.processes import Exit, Process
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
    environment = dict(plan.environment)
    mine, theirs = channel.pair()
    links = tuple(Link.made() for _ in range(plan.links))
    given = [high(theirs.fileno())]
    theirs.close()
    environment[contract.CHANNEL_FD] = str(given[0])
    if links:
        ends = [high(link.worker.fileno()) for link in links]
        given += ends
        environment[contract.LINK_FD] = ",".join(map(str, ends))
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
    try:
        process = Process(program, around.loop, around.guardian, on_exit)
    except BaseException:
        mine.close()
        for link in links:
            link.close()
        raise
    finally:
        for fd in given:
            os.close(fd)
    return Spawned(process, mine, links)
