"""Why a worker is not ready, in one line for the person who wrote its program."""

from penstock_supervisor.children import readiness
from penstock_supervisor.children.plan import ChildPlan


def missed_deadline(plan: ChildPlan, pid: int | None, passed: tuple[int, ...]) -> str:
    """It had its time: say what it did instead. `passed` are inodes of the sockets it got."""
    name = f"{plan.service or plan.role}/{plan.slot}"
    if plan.ours:
        return f"{name}: not ready within {plan.start_s:g} s"
    if plan.listens:
        what = "did not take the socket that it was given as descriptor 3 (LISTEN_FDS)"
        text, must = f"{name}: {what} within {plan.start_s:g} s", "use LISTEN_FDS or {fd}"
    else:
        text = f"{name}: nothing answered on {plan.address} within {plan.start_s:g} s"
        must = "use PORT or {port}"
    found = _listens(pid, passed)
    if not found:
        return f"{text}; its process listens nowhere{' else' if plan.listens else ''}"
    return f"{text}; its process listens on {' and '.join(found)} — it must {must}"


def wrong_address(plan: ChildPlan, pid: int | None) -> str:
    """Where a program listens that was told to use another port, or nothing."""
    if plan.ours or plan.address is None:
        return ""
    found = _listens(pid, ())
    if not found or str(plan.address) in found:
        return ""
    return f"{plan.name} listens on {' and '.join(found)} — it must use PORT or {{port}}"


def _listens(pid: int | None, passed: tuple[int, ...]) -> tuple[str, ...]:
    return () if pid is None else readiness.where_it_listens(pid, *passed)
