"""What is asked of the proxies is asked of all, and answered when all have, or cannot any more.

Proxies and workers only note what they are told; the loop does what is due when a test says so.
Links are real, because what is left open of one is lost for everybody.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.children.slots import Slots
from penstock_supervisor.config.model import Service
from penstock_supervisor.process.handoff_link import HandoffLink
from penstock_supervisor.rotation.rotation import Rotation

WEB = ("web", 0)


class Proxy:
    def __init__(self, slot: int) -> None:
        self.plan = SimpleNamespace(slot=slot, role="proxy", service="")
        self.state = State.UP
        self.at_rest = False
        self.has_channel = True
        self.pid = 1
        self.has_room = True
        """Descriptors for what it is sent."""
        self.got: list[dict[str, Any]] = []

    def send(
        self,
        message: dict[str, Any],
        handle: object = None,
        on_sent: Callable[[bool], None] | None = None,
    ) -> bool:
        if self.has_channel and (self.has_room or not handle):
            self.got.append({**message, "handle": handle} if handle else message)
        if on_sent is not None:
            on_sent(self.has_channel and self.has_room)
        return self.has_channel

    def heard(self, command: str) -> list[dict[str, Any]]:
        return [message for message in self.got if message["cmd"] == command]


class Worker:
    def __init__(self, links: int = 0) -> None:
        self.plan = SimpleNamespace(service="web", slot=0, role="worker", address="127.0.0.1:1")
        self.state = State.UP
        self.links = tuple(HandoffLink.pair() for _ in range(links))

    def take_links(self) -> tuple[HandoffLink, ...]:
        links, self.links = self.links, ()
        return links


class Timer:
    def __init__(self, todo: Callable[[], None]) -> None:
        self.todo: Callable[[], None] | None = todo

    def cancel(self) -> None:
        self.todo = None


class Loop:
    def __init__(self) -> None:
        self._due: list[Timer] = []

    def call_later(self, _: float, todo: Callable[..., None], *arguments: Any) -> Timer:
        self._due.append(Timer(lambda: todo(*arguments)))
        return self._due[-1]

    def call_soon(self, todo: Callable[..., None], *arguments: Any) -> None:
        self.call_later(0, todo, *arguments)

    def pass_time(self) -> None:
        """Everything that waits is due."""
        due, self._due = self._due, []
        for timer in due:
            if timer.todo is not None:
                timer.todo()


class Stage:
    def __init__(self, scheme: str, links: int) -> None:
        service = Service.model_validate(
            {"name": "web", "listen": "127.0.0.1:0", "app": "a:b", "scheme": scheme, "workers": 1}
        )
        self.slots, self.loop = Slots(), Loop()
        self.proxies = [Proxy(slot) for slot in range(2)]
        cast("list[Any]", self.slots.proxies).extend(self.proxies)
        self.worker = Worker(links)
        self.slots.current[WEB] = cast("Any", self.worker)
        self.turns: list[tuple[Any, str]] = []
        self.rotation = Rotation(
            cast("Any", self.loop),
            (service,),
            self.slots,
            cast("Any", None),
            lambda slot, state: self.turns.append((slot, state)),
        )
        self.released: list[str] = []

    def drain(self, name: str = "then") -> None:
        self.rotation.drain(cast("Any", self.worker), lambda: self.released.append(name))

    def says(self, proxy: int, command: str, **more: Any) -> None:
        assert self.rotation.heard(cast("Any", self.proxies[proxy]), {"cmd": command, **more})

    def view(self, proxy: int, state: str) -> None:
        self.says(proxy, "rotation", service="web", slot=0, state=state, reason="said so")

    def dies(self, slot: int) -> None:
        """Its process is gone; the channel is closed a moment later, as it really is."""
        self.proxies[slot].state = State.BACKOFF
        self.rotation.proxy_gone(cast("Any", self.proxies[slot]))
        self.proxies[slot].has_channel = False
        self.slots.covered.add(slot)

    def close(self) -> None:
        self.rotation.close()
        for link in self.worker.links:
            link.close()


@pytest.fixture
def ports() -> Iterator[Stage]:
    stage = Stage("ports", 0)
    yield stage
    stage.close()


@pytest.fixture
def handoff() -> Iterator[Stage]:
    stage = Stage("handoff", 2)
    yield stage
    stage.close()


def test_a_worker_is_told_to_stop_when_every_proxy_has_answered(ports: Stage) -> None:
    ports.drain()
    (first,), (second,) = (proxy.heard("drain_worker") for proxy in ports.proxies)
    ports.says(0, "worker_drained", seq=first["seq"])
    ports.says(0, "worker_drained", seq=first["seq"])
    assert ports.released == [], "the same one twice is one"
    ports.says(1, "worker_drained", seq=second["seq"])
    assert ports.released == ["then"]
    ports.loop.pass_time()
    assert ports.released == ["then"], "once"


def test_a_proxy_that_dies_while_it_is_asked_has_answered(ports: Stage) -> None:
    ports.drain()
    ports.says(1, "worker_drained", seq=ports.proxies[1].heard("drain_worker")[0]["seq"])
    ports.dies(0)
    assert ports.released == ["then"]


def test_one_that_is_away_is_not_asked_and_nobody_waits_for_it(ports: Stage) -> None:
    ports.dies(0)
    ports.drain()
    assert not ports.proxies[0].heard("drain_worker")
    ports.says(1, "worker_drained", seq=ports.proxies[1].heard("drain_worker")[0]["seq"])
    assert ports.released == ["then"]


def test_with_no_proxy_there_nobody_picks_anybody(ports: Stage) -> None:
    ports.dies(0)
    ports.dies(1)
    ports.drain()
    ports.loop.pass_time()
    assert ports.released == ["then"]


def test_one_that_does_not_answer_is_waited_for_and_not_for_ever(ports: Stage) -> None:
    ports.drain()
    ports.says(0, "worker_drained", seq=ports.proxies[0].heard("drain_worker")[0]["seq"])
    assert ports.released == []
    ports.loop.pass_time()
    assert ports.released == ["then"]


def test_nonsense_answers_nothing(ports: Stage) -> None:
    ports.drain()
    for number in (None, "1", 99, [1]):
        ports.says(0, "worker_drained", seq=number)
        ports.says(0, "unlinked", link=number)
    assert ports.released == []
    assert not ports.rotation.heard(cast("Any", ports.proxies[0]), {"cmd": "unheard of"})


def test_it_has_entered_when_it_has_for_all_and_left_when_it_has_for_one(ports: Stage) -> None:
    ports.view(0, "up")
    assert not ports.rotation.is_up(WEB)
    assert ports.rotation.is_up_anywhere(WEB)
    assert ports.rotation.serving() == set()
    ports.view(1, "up")
    assert ports.rotation.is_up(WEB)
    assert ports.rotation.serving() == {"web"}
    ports.view(0, "down")
    ports.view(1, "down")
    ports.view(1, "up")
    ports.view(0, "up")
    assert ports.turns == [(WEB, "up"), (WEB, "down"), (WEB, "up")]


def test_the_view_of_a_proxy_that_is_away_is_not_waited_for(ports: Stage) -> None:
    ports.view(0, "up")
    ports.dies(1)
    assert ports.rotation.is_up(WEB)
    assert ports.rotation.serving() == {"web"}
    ports.dies(0)
    assert not ports.rotation.is_up(WEB)
    assert ports.rotation.serving() == set()


def test_what_was_said_of_a_process_that_is_gone_does_not_count(ports: Stage) -> None:
    ports.view(0, "up")
    ports.view(1, "up")
    ports.rotation.leave(cast("Any", ports.worker))
    ports.worker.state = State.BACKOFF
    ports.view(1, "up")
    assert not ports.rotation.is_up_anywhere(WEB)


def test_each_proxy_is_sent_its_own_link_and_joined_by_it(handoff: Stage) -> None:
    child, links = cast("Any", handoff.worker), handoff.worker.links
    handoff.rotation.spawned(child)
    handoff.rotation.join(child)
    for proxy, link in zip(handoff.proxies, links, strict=True):
        assert [one["handle"] for one in proxy.heard("link")] == [link.proxy, link.worker]
        assert [one["link"] for one in proxy.heard("join")] == [link.number]


def test_a_link_is_kept_until_its_proxy_has_taken_back_what_is_in_it(handoff: Stage) -> None:
    links = handoff.worker.links
    handoff.rotation.gone(cast("Any", handoff.worker))
    assert [proxy.heard("unlink")[0]["link"] for proxy in handoff.proxies] == [
        link.number for link in links
    ]
    handoff.says(0, "unlinked", link=links[1].number)
    assert links[1].proxy.fileno() >= 0, "it is not the one that was asked"
    for slot, link in enumerate(links):
        handoff.says(slot, "unlinked", link=link.number)
    assert [link.proxy.fileno() for link in links] == [-1, -1]
    assert [link.worker.fileno() for link in links] == [-1, -1]


def test_what_a_proxy_died_over_is_taken_back_by_another(handoff: Stage) -> None:
    first, second = handoff.worker.links
    handoff.rotation.gone(cast("Any", handoff.worker))
    handoff.dies(0)
    heir = handoff.proxies[1]
    assert [one["handle"] for one in heir.heard("link")] == [first.proxy, first.worker]
    assert [one["link"] for one in heir.heard("unlink")] == [second.number, first.number]
    handoff.says(1, "unlinked", link=first.number)
    assert first.proxy.fileno() == -1


def test_with_no_proxy_there_it_waits_for_the_next(handoff: Stage) -> None:
    links = handoff.worker.links
    handoff.dies(0)
    handoff.dies(1)
    handoff.rotation.gone(cast("Any", handoff.worker))
    assert all(link.proxy.fileno() >= 0 for link in links)
    handoff.proxies[1] = handoff.slots.proxies[1] = cast("Any", Proxy(1))
    handoff.rotation.proxy_spawned(cast("Any", handoff.proxies[1]), [])
    assert [one["link"] for one in handoff.proxies[1].heard("unlink")] == [
        link.number for link in links
    ]


def test_a_new_proxy_is_told_of_every_link_and_of_who_has_joined(handoff: Stage) -> None:
    handoff.rotation.join(cast("Any", handoff.worker))
    handoff.view(0, "up")
    handoff.proxies[0] = handoff.slots.proxies[0] = cast("Any", Proxy(0))
    handoff.rotation.proxy_spawned(cast("Any", handoff.proxies[0]), [])
    assert [one["end"] for one in handoff.proxies[0].heard("link")] == ["proxy", "worker"]
    (joined,) = handoff.proxies[0].heard("join")
    assert joined["link"] == handoff.worker.links[0].number
    assert not handoff.rotation.is_up_anywhere(WEB), "it has not checked anybody yet"


def test_a_link_comes_late_to_a_proxy_that_had_no_descriptor_for_it(handoff: Stage) -> None:
    worker = cast("Any", handoff.worker)
    late, other = handoff.proxies
    late.has_room = False
    handoff.rotation.spawned(worker)
    handoff.rotation.join(worker)
    handoff.loop.pass_time()
    assert [len(proxy.heard("link")) for proxy in handoff.proxies] == [0, 2]
    late.has_room = True
    handoff.loop.pass_time()
    assert [message["end"] for message in late.heard("link")] == ["proxy", "worker"]
    # It could do nothing with what it was told before.
    assert late.got[-1]["cmd"] == "join"
    assert len(other.heard("join")) == 1
    handoff.loop.pass_time()
    assert len(late.heard("link")) == 2


@pytest.mark.parametrize("end", ["its worker has ended", "the proxy is another process"])
def test_a_link_that_nobody_needs_any_more_is_not_sent_again(handoff: Stage, end: str) -> None:
    late = handoff.proxies[0]
    late.has_room = False
    handoff.rotation.spawned(cast("Any", handoff.worker))
    if end == "its worker has ended":
        handoff.rotation.gone(cast("Any", handoff.worker))
    else:
        late.pid += 1
    late.has_room = True
    handoff.loop.pass_time()
    assert not late.heard("link")


def test_at_the_end_nothing_is_left_open(handoff: Stage) -> None:
    links = handoff.worker.links
    handoff.rotation.gone(cast("Any", handoff.worker))
    handoff.rotation.close()
    assert all(sock.fileno() == -1 for link in links for sock in (link.proxy, link.worker))
