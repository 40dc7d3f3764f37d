"""Every proxy is asked, and a request is complete when each has answered or ended.

Proxies and workers are fakes that record their messages. The loop is a fake whose timers run
when a test wants it. Links are real, so that descriptors left open are found.

Covers `process/handoff_link`, `rotation/fd_delivery` and `rotation/handoff_links`.
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
from penstock_worker import contract

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
    def __init__(self, links: int = 0) -> None:
        self.plan = SimpleNamespace(service="web", slot=0, role="worker", address="127.0.0.1:1")
        self.state = State.UP
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
        self.slots.current[WEB] = cast("Any", self.worker)
        self.changes: list[tuple[Any, str]] = []
        self.rotation = Rotation(
            cast("Any", self.loop),
            (service,),
            self.slots,
            cast("Any", None),
            lambda slot, state: self.changes.append((slot, state)),
            lambda *check: self.checks.append(check),
        )
        self.checks: list[tuple[Any, int, bool]] = []
        self.drained: list[str] = []

    def drain(self, name: str = "drained") -> None:
        self.rotation.drain(cast("Any", self.worker), lambda: self.drained.append(name))

    def send(self, proxy: int, command: str, **more: Any) -> None:
        assert self.rotation.handle_message(
            cast("Any", self.proxies[proxy]), {"cmd": command, **more}
        )

    def report(self, proxy: int, state: str) -> None:
        self.send(proxy, "rotation", service="web", slot=0, state=state, reason="said so")

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


@pytest.fixture
def ports() -> Iterator[Harness]:
    harness = Harness("ports", 0)
    yield harness
    harness.close()


@pytest.fixture
def handoff() -> Iterator[Harness]:
    harness = Harness("handoff", 2)
    yield harness
    harness.close()


def test_a_worker_is_stopped_when_every_proxy_has_answered(ports: Harness) -> None:
    ports.drain()
    (first,), (second,) = (proxy.received("drain_worker") for proxy in ports.proxies)
    assert 0 < first["finish"] < 30.0
    ports.send(0, "worker_drained", seq=first["seq"])
    ports.send(0, "worker_drained", seq=first["seq"])
    assert ports.drained == [], "two answers of one proxy count as one"
    ports.send(1, "worker_drained", seq=second["seq"])
    assert ports.drained == ["drained"]
    ports.loop.pass_time()
    assert ports.drained == ["drained"], "once"


def test_a_proxy_that_dies_before_its_answer_counts_as_answered(ports: Harness) -> None:
    ports.drain()
    ports.send(1, "worker_drained", seq=ports.proxies[1].received("drain_worker")[0]["seq"])
    ports.proxy_dies(0)
    assert ports.drained == ["drained"]


def test_a_proxy_that_is_down_is_not_asked_and_not_waited_for(ports: Harness) -> None:
    ports.proxy_dies(0)
    ports.drain()
    assert not ports.proxies[0].received("drain_worker")
    ports.send(1, "worker_drained", seq=ports.proxies[1].received("drain_worker")[0]["seq"])
    assert ports.drained == ["drained"]


def test_without_any_proxy_a_drain_is_answered_at_once(ports: Harness) -> None:
    ports.proxy_dies(0)
    ports.proxy_dies(1)
    ports.drain()
    ports.loop.pass_time()
    assert ports.drained == ["drained"]


def test_the_wait_for_a_proxy_that_does_not_answer_is_limited(ports: Harness) -> None:
    ports.drain()
    ports.send(0, "worker_drained", seq=ports.proxies[0].received("drain_worker")[0]["seq"])
    assert ports.drained == []
    ports.loop.pass_time()
    assert ports.drained == ["drained"]


def test_a_proxy_that_is_full_has_workers_asked_for_room(handoff: Harness) -> None:
    asked: list[Any] = []
    worker = cast("Any", handoff.worker)
    worker.plan.runs_our_code = True
    worker.send = asked.append
    handoff.send(0, "crowded", service="web", count=3)
    assert asked == [{"cmd": contract.MAKE_ROOM, "count": 3}]
    handoff.rotation.hold(worker, "it does not answer")
    handoff.send(0, "crowded", service="web", count=3)
    assert len(asked) == 1


def test_an_answer_without_a_valid_number_is_ignored(ports: Harness) -> None:
    ports.drain()
    for number in (None, "1", 99, [1]):
        ports.send(0, "worker_drained", seq=number)
        ports.send(0, "unlinked", link=number)
    assert ports.drained == []
    assert not ports.rotation.handle_message(cast("Any", ports.proxies[0]), {"cmd": "unknown"})


def test_a_worker_is_up_when_up_at_every_proxy_and_down_when_down_at_one(ports: Harness) -> None:
    ports.report(0, "up")
    assert not ports.rotation.is_up(WEB)
    assert ports.rotation.is_up_anywhere(WEB)
    assert ports.rotation.services_up() == set()
    ports.report(1, "up")
    assert ports.rotation.is_up(WEB)
    assert ports.rotation.services_up() == {"web"}
    ports.report(0, "down")
    ports.report(1, "down")
    ports.report(1, "up")
    ports.report(0, "up")
    assert ports.changes == [(WEB, "up"), (WEB, "down"), (WEB, "up")]


def test_the_view_of_a_proxy_that_is_down_is_not_waited_for(ports: Harness) -> None:
    ports.report(0, "up")
    ports.proxy_dies(1)
    assert ports.rotation.is_up(WEB)
    assert ports.rotation.services_up() == {"web"}
    ports.proxy_dies(0)
    assert not ports.rotation.is_up(WEB)
    assert ports.rotation.services_up() == set()


def test_a_late_report_on_a_process_that_is_gone_does_not_count(ports: Harness) -> None:
    ports.report(0, "up")
    ports.report(1, "up")
    ports.rotation.leave(cast("Any", ports.worker))
    ports.worker.state = State.BACKOFF
    ports.report(1, "up")
    assert not ports.rotation.is_up_anywhere(WEB)


def test_each_proxy_is_sent_its_own_link_and_joined_by_it(handoff: Harness) -> None:
    child, links = cast("Any", handoff.worker), handoff.worker.links
    handoff.rotation.worker_spawned(child)
    handoff.rotation.join(child)
    for proxy, link in zip(handoff.proxies, links, strict=True):
        assert [one["handle"] for one in proxy.received("link")] == [link.proxy, link.worker]
        assert [one["link"] for one in proxy.received("join")] == [link.number]


def test_a_link_is_kept_until_its_proxy_has_reclaimed_its_connections(handoff: Harness) -> None:
    links = handoff.worker.links
    handoff.rotation.worker_exited(cast("Any", handoff.worker))
    assert [proxy.received("unlink")[0]["link"] for proxy in handoff.proxies] == [
        link.number for link in links
    ]
    handoff.send(0, "unlinked", link=links[1].number)
    assert links[1].proxy.fileno() >= 0, "this proxy was not asked about that link"
    for slot, link in enumerate(links):
        handoff.send(slot, "unlinked", link=link.number)
    assert [link.proxy.fileno() for link in links] == [-1, -1]
    assert [link.worker.fileno() for link in links] == [-1, -1]


def test_a_link_whose_proxy_ended_is_reclaimed_by_another_proxy(handoff: Harness) -> None:
    first, second = handoff.worker.links
    handoff.rotation.worker_exited(cast("Any", handoff.worker))
    handoff.proxy_dies(0)
    other = handoff.proxies[1]
    assert [one["handle"] for one in other.received("link")] == [first.proxy, first.worker]
    assert [one["link"] for one in other.received("unlink")] == [second.number, first.number]
    handoff.send(1, "unlinked", link=first.number)
    assert first.proxy.fileno() == -1


def test_without_any_proxy_a_link_is_reclaimed_by_the_next_one(handoff: Harness) -> None:
    links = handoff.worker.links
    handoff.proxy_dies(0)
    handoff.proxy_dies(1)
    handoff.rotation.worker_exited(cast("Any", handoff.worker))
    assert all(link.proxy.fileno() >= 0 for link in links)
    handoff.proxies[1] = handoff.slots.proxies[1] = cast("Any", Proxy(1))
    handoff.rotation.proxy_spawned(cast("Any", handoff.proxies[1]), [])
    assert [one["link"] for one in handoff.proxies[1].received("unlink")] == [
        link.number for link in links
    ]


def test_a_new_proxy_is_sent_every_link_and_the_workers_that_have_joined(handoff: Harness) -> None:
    handoff.rotation.join(cast("Any", handoff.worker))
    handoff.report(0, "up")
    handoff.proxies[0] = handoff.slots.proxies[0] = cast("Any", Proxy(0))
    handoff.rotation.proxy_spawned(cast("Any", handoff.proxies[0]), [])
    assert [one["end"] for one in handoff.proxies[0].received("link")] == ["proxy", "worker"]
    (joined,) = handoff.proxies[0].received("join")
    assert joined["link"] == handoff.worker.links[0].number
    assert not handoff.rotation.is_up_anywhere(WEB), "it has not checked any worker yet"


def test_a_proxy_that_had_no_descriptor_for_a_link_gets_it_later(handoff: Harness) -> None:
    worker = cast("Any", handoff.worker)
    late, other = handoff.proxies
    late.has_room = False
    handoff.rotation.worker_spawned(worker)
    handoff.rotation.join(worker)
    handoff.loop.pass_time()
    assert [len(proxy.received("link")) for proxy in handoff.proxies] == [0, 2]
    late.has_room = True
    handoff.loop.pass_time()
    assert [message["end"] for message in late.received("link")] == ["proxy", "worker"]
    # Without the link it could do nothing with the first JOIN.
    assert late.messages[-1]["cmd"] == "join"
    assert len(other.received("join")) == 1
    handoff.loop.pass_time()
    assert len(late.received("link")) == 2


@pytest.mark.parametrize("end", ["its worker has ended", "the proxy is another process"])
def test_a_link_that_is_no_longer_needed_is_not_sent_again(handoff: Harness, end: str) -> None:
    late = handoff.proxies[0]
    late.has_room = False
    handoff.rotation.worker_spawned(cast("Any", handoff.worker))
    if end == "its worker has ended":
        handoff.rotation.worker_exited(cast("Any", handoff.worker))
    else:
        late.pid += 1
    late.has_room = True
    handoff.loop.pass_time()
    assert not late.received("link")


def test_closing_the_rotation_leaves_no_descriptor_open(handoff: Harness) -> None:
    links = handoff.worker.links
    handoff.rotation.worker_exited(cast("Any", handoff.worker))
    handoff.rotation.close()
    assert all(sock.fileno() == -1 for link in links for sock in (link.proxy, link.worker))


# Workers that may hang


@pytest.mark.parametrize("kind", ["ports", "handoff"])
def test_every_proxy_is_told_to_hold_a_worker_and_to_let_it_go(
    kind: str, request: pytest.FixtureRequest
) -> None:
    harness: Harness = request.getfixturevalue(kind)
    worker = cast("Any", harness.worker)
    harness.rotation.join(worker)
    harness.rotation.hold(worker, "does not answer")
    assert [proxy.received("hold")[0]["reason"] for proxy in harness.proxies] == (
        ["does not answer"] * 2
    )
    harness.rotation.release(worker)
    assert [len(proxy.received("release")) for proxy in harness.proxies] == [1, 1]


def test_a_new_proxy_is_told_after_everything_else_whom_to_hold(handoff: Harness) -> None:
    worker = cast("Any", handoff.worker)
    handoff.rotation.join(worker)
    handoff.rotation.hold(worker, "does not answer")
    proxy = handoff.proxies[0]
    proxy.messages.clear()
    handoff.rotation.proxy_spawned(cast("Any", proxy), [])
    assert [message["cmd"] for message in proxy.messages] == ["link", "link", "join", "hold"]


@pytest.mark.parametrize("what", ["join", "leave", "drain"])
def test_a_new_process_is_not_held_for_the_one_before(ports: Harness, what: str) -> None:
    worker = cast("Any", ports.worker)
    ports.rotation.join(worker)
    ports.rotation.hold(worker, "does not answer")
    if what == "drain":
        ports.drain()
    else:
        getattr(ports.rotation, what)(worker)
    ports.proxies[0].messages.clear()
    ports.rotation.proxy_spawned(cast("Any", ports.proxies[0]), [])
    assert not ports.proxies[0].received("hold")


def test_checks_that_nobody_answered_are_passed_on_and_nonsense_is_not(ports: Harness) -> None:
    ports.send(1, "checked", service="web", slot=0, answered=False)
    ports.send(1, "checked", service="web", slot="0", answered=False)
    assert ports.checks == [(WEB, 1, False)]


def test_a_worker_passes_its_checks_if_its_traffic_alone_is_bad(ports: Harness) -> None:
    ports.rotation.join(cast("Any", ports.worker))
    ports.report(0, "ejected")
    ports.report(1, "down")
    assert ports.rotation.is_ready_anywhere(WEB)
    ports.report(0, "down")
    assert not ports.rotation.is_ready_anywhere(WEB)


@pytest.mark.parametrize("state", ["absent", "checking", "down"])
def test_the_log_has_the_words_for_people(state: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    harness = Harness("shared", 0)
    harness.rotation.worker_changed("web", 0, state, "process is gone")
    assert caplog.messages == ["web/0 is down: process is gone"]
