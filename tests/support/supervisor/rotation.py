"""A rotation between proxies and workers that are fakes and record their messages.

The loop is a fake whose timers run when a test wants it. Links are real, so that descriptors left
open are found.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.config.model import Service
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_supervisor.rotation.rotation import Rotation

WEB = ("web", 5)
"""The worker, as a member of the rotation; its slot is 0."""


class Proxy:
    def __init__(self, slot: int) -> None:
        self.plan = SimpleNamespace(slot=slot, role="proxy", service="")
        self.state = State.UP
        self.at_rest = False
        self.has_channel = True
        self.pid = 1
        self.has_room = True
        """Descriptors for what it is sent."""
        self.messages: list[dict[str, Any]] = []

    def send(
        self,
        message: dict[str, Any],
        handle: object = None,
        on_sent: Callable[[bool], None] | None = None,
    ) -> bool:
        if self.has_channel and (self.has_room or not handle):
            self.messages.append({**message, "handle": handle} if handle else message)
        if on_sent is not None:
            on_sent(self.has_channel and self.has_room)
        return self.has_channel

    def received(self, command: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["cmd"] == command]


class Worker:
    def __init__(self, links: int = 0, number: int = WEB[1]) -> None:
        self.plan = SimpleNamespace(
            service="web",
            slot=0,
            role="worker",
            address="127.0.0.1:1",
            health=None,
            reached_at="127.0.0.1:1",
        )
        self.name, self.number, self.pid = "web/0", number, 100 + number
        self.state = State.UP
        self.speaks_protocol = True
        self.stop_s = 30.0
        self.links = tuple(HandoffLink.pair() for _ in range(links))

    def take_links(self) -> tuple[HandoffLink, ...]:
        links, self.links = self.links, ()
        return links


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    def __init__(self) -> None:
        self._due: list[Timer] = []

    def call_later(self, _: float, callback: Callable[..., None], *arguments: Any) -> Timer:
        self._due.append(Timer(lambda: callback(*arguments)))
        return self._due[-1]

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self.call_later(0, callback, *arguments)

    def pass_time(self) -> None:
        """Run every timer that waits."""
        due, self._due = self._due, []
        for timer in due:
            if timer.callback is not None:
                timer.callback()


class Harness:
    def __init__(self, scheme: str, links: int) -> None:
        service = Service.model_validate(
            {"name": "web", "listen": "127.0.0.1:0", "app": "a:b", "scheme": scheme, "workers": 1}
        )
        self.slots, self.loop = Slots(), Loop()
        self.proxies = [Proxy(slot) for slot in range(2)]
        cast("list[Any]", self.slots.proxies).extend(self.proxies)
        self.worker = Worker(links)
        self.slots.add(cast("Any", self.worker))
        self.changes: list[tuple[int, str]] = []
        self.rotation = Rotation(
            cast("Any", self.loop),
            {service.name: service},
            self.slots,
            cast("Any", SimpleNamespace(add=lambda *_: None)),
            lambda child, state: self.changes.append((cast("Any", child).number, state)),
            lambda child, by, answered: self.checks.append((child.number, by, answered)),
        )
        self.checks: list[tuple[int, int, bool]] = []
        self.rotation.add(cast("Any", self.worker))
        self.drained: list[str] = []

    def drain(self, name: str = "drained") -> None:
        self.rotation.drain(cast("Any", self.worker), lambda: self.drained.append(name))

    def send(self, proxy: int, command: str, **more: Any) -> None:
        assert self.rotation.handle_message(
            cast("Any", self.proxies[proxy]), {"cmd": command, **more}
        )

    def report(self, proxy: int, state: str, member: int = WEB[1]) -> None:
        self.send(proxy, "rotation", service="web", member=member, state=state, reason="said so")

    def is_up(self) -> bool:
        return self.rotation.is_up(cast("Any", self.worker))

    def add_successor(self, links: int = 0) -> Any:
        """A process beside the worker, in the same slot, that is ready and has joined."""
        successor = cast("Any", Worker(links, WEB[1] + 1))
        self.slots.add_successor(successor)
        self.rotation.add(successor)
        self.rotation.worker_spawned(successor)
        self.rotation.join(successor)
        return successor

    def proxy_dies(self, slot: int) -> None:
        """Its process is gone; the channel is closed a moment later, as it really is."""
        self.proxies[slot].state = State.BACKOFF
        self.rotation.proxy_exited(cast("Any", self.proxies[slot]))
        self.proxies[slot].has_channel = False
        self.slots.covered.add(slot)

    def close(self) -> None:
        self.rotation.close()
        for link in self.worker.links:
            link.close()
