"""A run without processes: it records what it is told, and its roll-outs are what a test puts."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from time import monotonic
from typing import Any

from penstock_supervisor.children.events import Events
from penstock_supervisor.control import admin, api, http_server
from penstock_supervisor.errors import NotNowError
from penstock_supervisor.listeners.control_socket import ControlSocket
from penstock_supervisor.rollout.records import RolloutRecords
from penstock_supervisor.snapshot import ReloadAnswer, RolloutView, Snapshot, StepView


def step(slot: int, state: str = "waiting", **changes: Any) -> StepView:
    values: dict[str, Any] = {
        "service": "web", "action": "replace", "old_pid": 100 + slot, "new_pid": None,
        "reason": "", **changes,
    }  # fmt: skip
    return StepView(slot=slot, state=state, **values)


def rollout(number: int = 1, *steps: StepView, **changes: Any) -> RolloutView:
    values: dict[str, Any] = {
        "state": "rolling", "result": "", "reason": "", "detail": "",
        "changes": ("web: 2 workers are replaced",), "started_at": 1e9, "duration_s": 0.0,
        "requests": 10, "failed": 0, "superseded_by": None, **changes,
    }  # fmt: skip
    if values["result"]:
        values["state"] = "ended"
    return RolloutView(number=number, steps=steps, **values)


class FakeRun:
    """`ready` is whether it can do what it is asked now."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.ready = True
        self.config_file = ""
        self.records = RolloutRecords(Events(), monotonic, lambda: 1e9)
        self.answer = ReloadAnswer(1, False, ("web: 2 workers are replaced",))
        self.refusal: Exception | None = None
        """What a reload raises."""
        self.on_reload: Callable[[], object] = lambda: None

    def stop(self, *, now: bool = False) -> None:
        self.calls.append(("stop", now))

    def reopen_logs(self) -> None:
        self.calls.append("reopen")

    def replace(self, service: str, slot: int) -> None:
        if (service, slot) != ("web", 0):
            raise KeyError(service)
        self.calls.append(("replace", service, slot))
        if not self.ready:
            raise NotNowError("not while it starts or stops")

    def signal(self, service: str, slot: int, number: signal.Signals) -> bool:
        if (service, slot) != ("web", 0):
            raise KeyError(service)
        self.calls.append((number, service, slot))
        return self.ready

    async def reload(
        self, services: tuple[str, ...] = (), *, dry_run: bool = False
    ) -> ReloadAnswer:
        self.calls.append(("reload", services, dry_run))
        if self.refusal is not None:
            raise self.refusal
        if dry_run:
            return self.answer._replace(rollout=None)
        self.on_reload()
        return self.answer

    def rollouts(self) -> tuple[RolloutView, ...]:
        return self.records.views()

    async def rollout_changed(self) -> None:
        await self.records.changed()


@asynccontextmanager
async def served(folder: Path, run: FakeRun, snapshot: Snapshot) -> AsyncIterator[ControlSocket]:
    """Its control socket, in `run` of that folder."""

    async def take_snapshot(_: float) -> Snapshot:
        return snapshot

    with closing(ControlSocket(folder / "run")) as sock:
        async with http_server.serve(sock.socket, api.app(admin.Pages(take_snapshot), run)):
            yield sock
