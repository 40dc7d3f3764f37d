"""Explains in one line, for the author of a program, why its worker is not ready, or has ended."""

from signal import SIGKILL
from typing import Final

from penstock_supervisor.children import readiness
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.kernel.listening_processes import describe_holder
from penstock_supervisor.listeners.worker_ports import is_free
from penstock_supervisor.process.spawn import Exit, SpawnError

_FOREGROUND: Final = 'a server has to run in the foreground here, as nginx does with "daemon off;"'


def not_started(plan: ChildPlan, error: BaseException) -> str:
    """Why it has no process: the key of the configuration that is at fault, and what is wrong."""
    key = error.key if isinstance(error, SpawnError) else "listen"
    return f"{plan.config_table}.{key}: {error}" if plan.config_table else f"{plan.name}: {error}"


def missed_deadline(plan: ChildPlan, pid: int | None, inherited_inodes: tuple[int, ...]) -> str:
    """What the process did instead of getting ready in time. `inherited_inodes` are those of the
    sockets that it was given."""
    within = f"within {plan.start_s:g} s"
    if plan.runs_our_code:
        return f"{plan.name}: not ready {within}"
    if plan.inherits_listener:
        failure = "did not take the socket that it was given as descriptor 3 (LISTEN_FDS)"
        remedy = "use LISTEN_FDS or {fd}"
    elif plan.socket is not None:
        failure, remedy = f"nothing answered on {plan.socket}", "use PENSTOCK_SOCKET or {socket}"
    elif plan.address is not None and pid and readiness.is_held_by_other(plan.address, pid):
        holder = describe_holder(plan.address.port)
        return f"{plan.name}: not ready {within}: {holder} listens on {plan.address}, and not it"
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
    if plan.runs_our_code or plan.address is None or plan.socket is not None:
        return ""
    addresses = _addresses(pid, ())
    if not addresses or str(plan.address) in addresses:
        return ""
    return f"{plan.name} listens on {' and '.join(addresses)} — it must use PORT or {{port}}"


def exit_hint(plan: ChildPlan, status: int | None, was_ready: bool) -> tuple[str, bool]:
    """What is probably wrong with a program that has ended without an error, as the end of a
    line, or empty; and whether another start would end likewise."""
    port = 0 if plan.address is None else plan.address.port
    if status != 0 or plan.runs_our_code:
        return "", False
    if port and not is_free(port):
        where = f"where {describe_holder(port)} listens on {plan.address}"
        return f": it went into the background, {where}; {_FOREGROUND}", True
    return ("" if was_ready else f"; {_FOREGROUND}"), False


def killed(end: Exit, because: str) -> str:
    """Who killed it, to follow "was killed by SIGKILL"; empty for any other end. `because`: why it
    was killed from here; empty: it was not."""
    if end.signal != SIGKILL:
        return ""
    return f", as {because}" if because else ", and not from here (out of memory?)"


def _addresses(pid: int | None, ignored_inodes: tuple[int, ...]) -> tuple[str, ...]:
    return () if pid is None else readiness.listening_addresses(pid, *ignored_inodes)
