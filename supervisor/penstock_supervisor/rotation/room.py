"""A proxy that is full asks for room, and the workers that have its clients make it.

Owns: which workers are asked, and for how many each. Under `handoff` a proxy has passed its
clients' connections on, and cannot tell which are idle. Must not know: when somebody waits (the
proxy says so, `CROWDED`), nor which connections a worker ends. Nothing is kept: as long as
somebody waits, the proxy says it again. No I/O of its own, no clock.
"""

from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

from penstock_supervisor.children.child import Child
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.plan import MemberKey
from penstock_supervisor.children.slots import member_key
from penstock_worker.contract import MAKE_ROOM

_MAX_COUNT: Final = 1024
"""What one message can ask for, whatever a proxy says."""


def ask_for_room(
    workers: Iterable[Child], message: Mapping[str, Any], held: Container[MemberKey]
) -> None:
    """Pass a CROWDED on to the service's workers, in equal parts.

    `workers`: all processes, because those that replace others have clients, too. Those in `held`
    do not answer: they could end nothing, and would have a queue of such messages when they answer
    again.
    """
    service, count = message.get("service"), message.get("count")
    if not isinstance(service, str) or not isinstance(count, int) or count < 1:
        return
    asked = [
        child
        for child in workers
        if child.plan.service == service
        and member_key(child) not in held
        and child.state is State.UP
        and child.plan.runs_our_code
    ]
    if asked:
        # Rounded up: with fewer places than workers nobody knows who has an idle one.
        each = -(-min(count, _MAX_COUNT) // len(asked))
        for child in asked:
            child.send({"cmd": MAKE_ROOM, "count": each})
