"""A roll-out does what all who have asked for it want, whoever came first."""

from typing import Any

import pytest

from penstock_supervisor.config.changes import compare
from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.rollout.rollout import Rollout
from penstock_supervisor.rollout.rollout_state import RolloutEvent

SERVICES = tuple(
    Service(name=name, listen=f"127.0.0.1:{port}", app="a:b")
    for name, port in (("web", 1), ("api", 2))
)
CONFIG = Config(services=SERVICES)


def made(names: tuple[str, ...] = (), slots: tuple[Any, ...] = ()) -> Rollout:
    return Rollout(1, CONFIG, names, slots, time_of_day=1e9)


def replaced(rollout: Rollout) -> set[str]:
    """The services whose workers are replaced if nothing in the configuration has changed."""
    names = compare(CONFIG, CONFIG).replaced(rollout.names) if rollout.is_reload else frozenset()
    return set(names)


@pytest.mark.parametrize(
    ("first", "second", "services", "slots"),
    [
        (((), ()), (("web",), ()), {"web", "api"}, set()),
        ((("web",), ()), ((), ()), {"web", "api"}, set()),
        ((("web",), ()), (("api",), ()), {"web", "api"}, set()),
        (((), (("web", 0),)), ((), ()), {"web", "api"}, {("web", 0)}),
        (((), ()), ((), (("web", 0),)), {"web", "api"}, {("web", 0)}),
        (((), (("web", 0),)), (("api",), ()), {"api"}, {("web", 0)}),
        (((), (("web", 0),)), ((), (("api", 1),)), set(), {("web", 0), ("api", 1)}),
    ],
)
def test_who_joins_gets_all_that_was_asked_for(
    first: tuple[Any, Any], second: tuple[Any, Any], services: set[str], slots: set[Any]
) -> None:
    rollout = made(*first)
    rollout.join(*second)
    assert (replaced(rollout), rollout.slots) == (services, slots)


def test_one_for_a_single_worker_brings_no_configuration_into_force() -> None:
    rollout = made(slots=(("web", 0),))
    assert not rollout.is_reload
    rollout.join((), ())
    assert rollout.is_reload


def superseding(other: Rollout, config: Config) -> set[str]:
    """The services whose workers are replaced by a reload that supersedes `other`."""
    rollout = Rollout(2, config, (), (), time_of_day=1e9)
    rollout.take_over(other)
    return set(compare(CONFIG, config).replaced(rollout.names))


def test_a_deploy_of_code_that_is_superseded_is_done_by_the_one_that_follows() -> None:
    web = SERVICES[0].model_copy(update={"balance": "random"})
    changed = Config(services=(web, SERVICES[1]))
    deploy = made()
    deploy.is_deploy = True
    assert superseding(deploy, changed) == {"web", "api"}
    assert superseding(made(("api",)), changed) == {"api"}
    # What it was to do beside was of its own configuration.
    assert superseding(made(), changed) == set()


def test_a_worker_that_was_to_be_replaced_is_replaced_by_the_one_that_follows() -> None:
    rollout = Rollout(2, Config(services=SERVICES[:1]), (), (), time_of_day=1e9)
    rollout.take_over(made(slots=(("web", 1), ("api", 0))))
    assert rollout.slots == {("web", 1)}
    assert rollout.is_reload


def test_what_begins_by_itself_reads_nothing_anew_so_no_reload_joins_it_then() -> None:
    rest = made(("web",))
    rest.cause = "workers of two versions are left"
    assert not rest.reads_anew
    assert rest.can_take((), ())
    rest.handle(RolloutEvent.BEGIN)
    assert not rest.can_take((), ())
    assert rest.can_take((), (("web", 0),)), "that reads nothing either"


def test_what_was_to_begin_by_itself_reads_all_anew_for_who_has_joined() -> None:
    rest = made(("web",))
    rest.cause = "workers of two versions are left"
    rest.join((), ())
    assert rest.reads_anew
