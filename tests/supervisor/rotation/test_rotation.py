"""Every proxy is asked, and a request is complete when each has answered or ended.

Covers `process/handoff_link` and `rotation/drains`.
Covers `rotation/fd_delivery`, `rotation/handoff_links` and `rotation/places`.
"""

from collections.abc import Iterator
from typing import Any, cast

import pytest
from tests.support.supervisor.rotation import WEB, Harness, Proxy, Worker

from penstock_proxy.config import Health
from penstock_supervisor.children.lifecycle import State
from penstock_supervisor.rotation.holds import HoldCause
from penstock_worker import contract


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
    assert not ports.is_up()
    assert ports.rotation.is_up_anywhere(WEB)
    assert ports.rotation.services_up() == set()
    ports.report(1, "up")
    assert ports.is_up()
    assert ports.rotation.services_up() == {"web"}
    ports.report(0, "down")
    ports.report(1, "down")
    ports.report(1, "up")
    ports.report(0, "up")
    assert ports.changes == [(5, "up"), (5, "down"), (5, "up")]


def test_the_view_of_a_proxy_that_is_down_is_not_waited_for(ports: Harness) -> None:
    ports.report(0, "up")
    ports.proxy_dies(1)
    assert ports.is_up()
    assert ports.rotation.services_up() == {"web"}
    ports.proxy_dies(0)
    assert not ports.is_up()
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


def test_of_a_service_that_is_gone_no_link_is_kept_and_no_proxy_is_told(handoff: Harness) -> None:
    links = handoff.worker.links
    handoff.proxy_dies(0)
    handoff.proxy_dies(1)
    handoff.rotation.worker_exited(cast("Any", handoff.worker))
    handoff.rotation.remove(cast("Any", handoff.worker))
    cast("dict[str, Any]", handoff.rotation._services).clear()
    assert handoff.rotation.targets() == {}, "its workers may end later than its proxies"
    handoff.rotation.forget("web")
    assert {end.fileno() for link in links for end in (link.proxy, link.worker)} == {-1}
    handoff.proxies[1] = handoff.slots.proxies[1] = cast("Any", Proxy(1))
    handoff.rotation.proxy_spawned(cast("Any", handoff.proxies[1]), [])
    assert handoff.proxies[1].messages == []


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


def test_who_answers_again_stays_held_while_its_successor_is_compared(ports: Harness) -> None:
    worker = cast("Any", ports.worker)
    ports.rotation.join(worker)
    ports.rotation.hold(worker, "compared", HoldCause.COMPARED)
    ports.rotation.hold(worker, "does not answer")
    ports.rotation.release(worker)
    assert not ports.proxies[0].received("release")
    ports.rotation.release(worker, HoldCause.COMPARED)
    assert len(ports.proxies[0].received("release")) == 1


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


def confirms(harness: Harness, proxy: int, seq: object, member: object = 5) -> None:
    harness.send(proxy, "confirmed", service="web", member=member, seq=seq)


def test_a_worker_is_confirmed_when_every_proxy_has_found_it_well_once_more(
    ports: Harness,
) -> None:
    worker, woken = cast("Any", ports.worker), []
    ports.rotation.join(worker)
    for proxy in (0, 1):
        ports.report(proxy, "up")
    assert not ports.rotation.is_confirmed(worker), "nobody was asked"
    ports.rotation.confirm(worker, lambda: woken.append("woken"))
    (asked,) = ports.proxies[1].received("confirm")
    assert asked["member"] == 5
    confirms(ports, 0, asked["seq"])
    for nonsense in ("1", None, asked["seq"] + 1, [asked["seq"]]):
        confirms(ports, 1, nonsense)
    confirms(ports, 1, asked["seq"], member="5")
    assert not ports.rotation.is_confirmed(worker)
    confirms(ports, 1, asked["seq"])
    assert ports.rotation.is_confirmed(worker)
    assert woken == ["woken"] * 2
    ports.report(1, "down")
    assert not ports.rotation.is_confirmed(worker), "it has fallen since"


def test_a_proxy_that_starts_meanwhile_is_asked_for_its_confirmation(ports: Harness) -> None:
    worker, proxy = cast("Any", ports.worker), ports.proxies[1]
    ports.rotation.join(worker)
    ports.rotation.confirm(worker, lambda: None)
    (asked,) = proxy.received("confirm")
    for number in (0, 1):
        confirms(ports, number, asked["seq"])
    proxy.messages.clear()
    ports.rotation.proxy_spawned(cast("Any", proxy), [("web", 5)])
    ports.report(0, "up")
    assert proxy.received("confirm") == [asked]
    assert ports.is_up()
    assert not ports.rotation.is_confirmed(worker)
    confirms(ports, 1, asked["seq"])
    assert ports.rotation.is_confirmed(worker)


def test_every_proxy_is_told_how_a_worker_is_checked_that_keeps_its_checks(ports: Harness) -> None:
    own = Health(path="/before")
    successor = cast("Any", Worker(number=WEB[1] + 1))
    successor.plan.health = own
    ports.slots.add_successor(successor)
    ports.rotation.add(successor)
    told = [message.get("health") for message in ports.proxies[0].received("add_member")]
    assert told == [None, own.model_dump(mode="json")]
    assert [target.health for target in ports.rotation.targets()["web"]] == [None, own]


def test_a_bad_check_that_was_asked_for_is_told(ports: Harness) -> None:
    woken: list[str] = []
    ports.rotation.join(cast("Any", ports.worker))
    ports.rotation.ask(WEB, lambda: woken.append("woken"))
    (asked,) = ports.proxies[1].received("confirm")
    answer = {"service": "web", "member": 5, "seq": asked["seq"]}
    ports.send(0, "confirmed", **answer)
    ports.send(1, "confirmed", **answer, reason="HTTP 404")
    assert woken == ["woken"] * 2
    assert (ports.rotation.is_asked(WEB), ports.rotation.why_denied(WEB)) == (True, "HTTP 404")
    ports.rotation.leave(cast("Any", ports.worker))
    assert (ports.rotation.is_asked(WEB), ports.rotation.why_denied(WEB)) == (False, "")


@pytest.mark.parametrize("what", ["leave", "drain", "remove"])
def test_nobody_is_asked_about_a_worker_that_goes(ports: Harness, what: str) -> None:
    worker, proxy = cast("Any", ports.worker), ports.proxies[0]
    ports.rotation.join(worker)
    ports.rotation.confirm(worker, lambda: None)
    if what == "drain":
        ports.drain()
    else:
        getattr(ports.rotation, what)(worker)
    proxy.messages.clear()
    ports.rotation.proxy_spawned(cast("Any", proxy), [])
    assert not proxy.received("confirm")


@pytest.mark.parametrize("late", [False, True])
def test_a_process_that_is_started_again_joins_held_as_its_slot_is(
    ports: Harness, handoff: Harness, *, late: bool
) -> None:
    for harness in (ports, handoff):
        worker, proxy = cast("Any", harness.worker), harness.proxies[1]
        if not late:
            harness.rotation.join(worker)
        harness.rotation.hold(worker, "is compared", HoldCause.COMPARED)
        harness.rotation.leave(worker)
        proxy.messages.clear()
        harness.rotation.join(worker)
        assert [one["held"] for one in proxy.received("join")] == ["is compared"]
        harness.rotation.release(worker, HoldCause.COMPARED)
        proxy.messages.clear()
        harness.rotation.join(worker)
        assert [one.get("held") for one in proxy.received("join")] == [None]


def test_checks_that_nobody_answered_are_passed_on_and_nonsense_is_not(ports: Harness) -> None:
    ports.send(1, "checked", service="web", member=5, answered=False)
    ports.send(1, "checked", service="web", member="5", answered=False)
    ports.send(1, "checked", service="web", member=6, answered=False)
    ports.send(1, "checked", service="gone", member=5, answered=False)
    assert ports.checks == [(5, 1, False)]


def test_a_worker_passes_its_checks_if_its_traffic_alone_is_bad(ports: Harness) -> None:
    ports.rotation.join(cast("Any", ports.worker))
    ports.report(0, "ejected")
    ports.report(1, "down")
    worker = cast("Any", ports.worker)
    assert ports.rotation.take_ready_anywhere(worker)
    ports.report(0, "down")
    assert not ports.rotation.take_ready_anywhere(worker)


def test_what_everybody_had_is_kept_of_a_worker_that_is_ejected(ports: Harness) -> None:
    ports.rotation.join(cast("Any", ports.worker))
    worker, seen = cast("Any", ports.worker), {"service": "web", "member": 5, "state": "ejected"}
    ports.report(1, "up")
    ports.send(0, "rotation", **seen, recent=[[5, 5, 5], [6, 0, 9]])
    assert list(map(tuple, ports.rotation.ejection(worker) or ())) == [(5, 5, 5), (6, 0, 9)]
    ports.send(0, "rotation", **seen, recent="nonsense")
    assert ports.rotation.ejection(worker) == []
    ports.report(0, "down")
    assert ports.rotation.ejection(worker) is None


@pytest.mark.parametrize("state", ["absent", "checking", "down"])
def test_the_log_has_the_words_for_people(state: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    harness = Harness("shared", 0)
    harness.rotation.worker_changed(WEB, state, "process is gone")
    assert caplog.messages == ["web/0 is down: process is gone"]


def test_the_log_does_not_take_a_canarys_old_process_for_a_faulty_one(
    ports: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    worker = cast("Any", ports.worker)
    ports.rotation.join(worker)
    ports.rotation.hold(worker, "said so", HoldCause.COMPARED)
    ports.report(1, "down")
    ports.rotation.hold(worker, "said so")
    ports.report(1, "down")
    assert caplog.messages == [
        "web/0 is held at proxy/1: said so", "web/0 is down at proxy/1: said so",
    ]  # fmt: skip
