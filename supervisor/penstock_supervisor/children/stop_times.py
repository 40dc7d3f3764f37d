"""How the time of a stop is divided, and what a child is told of it.

Owns the shares: how long what is open may take, and what is left of the time for the end itself.
The proxies cut first, so their clients are told by the proxy and not by the end of a worker.
Workers cut a little later, clean up, and are killed at the end of the time.

    0 ─────────────── requests finish ──────────── proxies cut ─ workers cut, clean up ─ killed

Must not know when a stop begins, or who is told. No I/O, no clock.
"""

from typing import Any, Final

from penstock_proxy.messages import DRAIN
from penstock_supervisor.children.plan import ChildPlan
from penstock_worker import contract

AT_ONCE_S: Final = 1.0
"""For a child that has to leave at once: to cut what is open, and to clean up."""
_PROXY_SHARE: Final = 0.1
_PROXY_LEAST_S: Final = 2.0
_WORKER_SHARE: Final = 0.05
_WORKER_LEAST_S: Final = 1.0
"""Of a short time at most a half and a quarter are kept for the end."""


def in_words(seconds: float) -> str:
    """Of a time that may be the rest of another one: to a tenth of a second."""
    return f"{round(seconds, 1) or seconds:g} s"


def proxy_finish_s(stop_s: float) -> float:
    """Seconds that what is open at a proxy may take, of `stop_s` in all."""
    return stop_s - _proxy_end_s(stop_s)


def worker_finish_s(stop_s: float) -> float:
    """Seconds that what is open at a worker may take, of `stop_s` in all."""
    return stop_s - _worker_end_s(stop_s)


def worker_stop_s(stop_s: float) -> float:
    """Seconds after which a worker behind a proxy is told to leave, even if the proxy has not
    finished: after the proxy's cut, and before its own."""
    return stop_s - (_proxy_end_s(stop_s) + _worker_end_s(stop_s)) / 2


def stop_message(plan: ChildPlan, stop_s: float, *, at_once: bool) -> dict[str, Any]:
    """What a child is told that is killed in `stop_s` seconds. `at_once`: it cuts what is open,
    and waits for nothing."""
    if plan.role != "proxy":
        finish_s = 0.0 if at_once else worker_finish_s(stop_s)
        return {"cmd": contract.STOP, "finish": finish_s, "within": stop_s}
    finish = {
        name: 0.0 if at_once else proxy_finish_s(min(seconds, stop_s))
        for name, seconds in plan.service_stop_s.items()
    }
    return {"cmd": DRAIN, "finish": finish, "within": stop_s - _proxy_end_s(stop_s) / 2}


def _proxy_end_s(stop_s: float) -> float:
    return min(max(_PROXY_LEAST_S, stop_s * _PROXY_SHARE), stop_s / 2)


def _worker_end_s(stop_s: float) -> float:
    return min(max(_WORKER_LEAST_S, stop_s * _WORKER_SHARE), stop_s / 4)
