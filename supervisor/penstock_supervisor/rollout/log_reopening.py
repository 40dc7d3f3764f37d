"""Access logs are opened again, after a rotation of their files.

Owns who is told, and that the files belong to whoever writes them before. Must not know how a log
is opened.
"""

import logging

from penstock_proxy.messages import REOPEN
from penstock_supervisor import blocking
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.rollout.preparation import READ_S
from penstock_supervisor.rollout.proxies import Proxies
from penstock_supervisor.rollout.resources import Resources
from penstock_worker import contract

_log = logging.getLogger("penstock.supervisor")


async def reopen(resources: Resources, proxies: Proxies, slots: Slots) -> None:
    """Have proxies and workers open theirs again."""
    # In a thread: the disk of a log may be slow, or a network's.
    try:
        await blocking.within(READ_S, "logs", resources.hand_over_logs)
    except blocking.BlockedError as error:
        _log.warning("the access logs may not be given to the user: %s", error)
    proxies.send_to_all({"cmd": REOPEN})
    for child in slots.workers():
        if contract.ACCESS_LOG in child.plan.environment:
            child.send({"cmd": contract.REOPEN})
