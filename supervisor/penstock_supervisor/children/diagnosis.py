"""Explains in one line, for the author of a program, why its worker is not ready."""

from penstock_supervisor.children import readiness
from penstock_supervisor.children.plan import ChildPlan


def missed_deadline(plan: ChildPlan, pid: int | None, inherited_inodes: tuple[int, ...]) -> str:
    """What the process did instead of getting ready in time. `inherited_inodes` are those of the
    sockets that it was given."""
    within = f"within {plan.start_s:g} s"
    if plan.runs_our_code:
        return f"{plan.name}: not ready {within}"
    if plan.inherits_listener:
        failure = "did not take the socket that it was given as descriptor 3 (LISTEN_FDS)"
        remedy = "use LISTEN_FDS or {fd}"
    else:
        failure = f"nothing answered on {plan.address}"
        remedy = "use PORT or {port}"
    text = f"{plan.name}: {failure} {within}"
    addresses = _addresses(pid, inherited_inodes)
    if not addresses:
        return f"{text}; its process listens nowhere{' else' if plan.inherits_listener else ''}"
    return f"{text}; its process listens on {' and '.join(addresses)} — it must {remedy}"


def wrong_address(plan: ChildPlan, pid: int | None) -> str:
    """A message if a program listens, but not on its port; else empty."""
    if plan.runs_our_code or plan.address is None:
        return ""
    addresses = _addresses(pid, ())
    if not addresses or str(plan.address) in addresses:
        return ""
    return f"{plan.name} listens on {' and '.join(addresses)} — it must use PORT or {{port}}"


def _addresses(pid: int | None, ignored_inodes: tuple[int, ...]) -> tuple[str, ...]:
    return () if pid is None else readiness.listening_addresses(pid, *ignored_inodes)
