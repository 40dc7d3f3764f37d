"""How many descriptors a configuration needs, and a change of it."""

from typing import Any

from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.rollout.descriptors import descriptors_needed, needed_for_change


def config(proxies: int = 1, **services: Any) -> Config:
    made = [
        Service.model_validate({"name": name, "listen": "127.0.0.1:0", "app": "a:b", **keys})
        for name, keys in services.items()
    ]
    return Config(services=tuple(made), proxies=proxies)


def test_every_worker_counts_and_under_handoff_its_links_to_every_proxy() -> None:
    few, many = config(web={"workers": 100}), config(web={"workers": 200})
    assert descriptors_needed(many) - descriptors_needed(few) == 100 * 5
    ports = config(proxies=4, web={"workers": 100})
    handoff = config(proxies=4, web={"workers": 100, "scheme": "handoff"})
    assert descriptors_needed(handoff) - descriptors_needed(ports) == 100 * 8


def test_upstreams_are_no_children() -> None:
    upstreams = ["127.0.0.1:9"] * 400
    small = config(web={"app": None, "upstreams": upstreams, "workers": 400})
    assert descriptors_needed(small) == descriptors_needed(config(web={"workers": 1}))


def test_names_of_upstreams_need_some_for_questions() -> None:
    fixed = config(web={"app": None, "upstreams": ["127.0.0.1:9"]})
    named = config(web={"app": None, "upstreams": ["127.0.0.1:9", "dns:app.internal:9"]})
    many = config(proxies=2, web={"workers": 400})
    more = config(proxies=2, web={"workers": 400}, api={"app": None, "upstreams": ["a.b:9"]})
    assert needed_for_change(fixed, named) >= needed_for_change(fixed, fixed)
    assert descriptors_needed(more) - descriptors_needed(many) > 60


def test_a_change_needs_what_goes_and_what_comes() -> None:
    old = config(web={"workers": 100}, old={"workers": 50})
    new = config(web={"workers": 20}, new={"workers": 50})
    assert needed_for_change(old, new) >= descriptors_needed(old) + 50 * 5
    assert needed_for_change(new, old) >= descriptors_needed(old) + 50 * 5


def test_a_change_that_changes_nothing_needs_hardly_more() -> None:
    one = config(web={"workers": 100})
    assert needed_for_change(one, one) <= descriptors_needed(one) + 2
