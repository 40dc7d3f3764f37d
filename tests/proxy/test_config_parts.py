"""A configuration that was cut into parts is the same one again, and no part is long."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from penstock_proxy.config import Limits, ProxyConfig, ServiceConfig, Target
from penstock_proxy.config_parts import ReceivedParts, parts_of, parts_of_targets
from penstock_proxy.messages import SERVICE, TARGETS


def targets(count: int) -> tuple[Target, ...]:
    return tuple(Target(member=n, slot=n, address=f"10.0.0.1:{n + 1}") for n in range(count))


def service(name: str, members: int) -> ServiceConfig:
    limits = Limits(queue=len(name))
    return ServiceConfig(name=name, listeners=(3, 4), targets=targets(members), limits=limits)


def receive(parts: ReceivedParts, *messages: dict[str, Any]) -> None:
    for message in messages:
        if message["cmd"] == SERVICE:
            parts.add_service(message["service"])
        else:
            assert message["cmd"] == TARGETS
            parts.add_targets(message["targets"])


@pytest.mark.parametrize("members", [0, 1, 16, 17, 1000])
def test_what_arrives_is_what_was_sent(members: int) -> None:
    config = ProxyConfig(services=(service("a", members), service("b", 3), service("cc", members)))
    parts = ReceivedParts()
    for _ in range(2):
        receive(parts, *json.loads(json.dumps([*parts_of(config)])))
        assert parts.take_config() == config
    receive(parts, *parts_of_targets(targets(members)))
    assert parts.take_targets() == targets(members)
    assert parts.take_config() == ProxyConfig(services=())


def test_no_part_grows_with_the_number_of_services_or_members() -> None:
    def longest(services: int, members: int) -> int:
        config = ProxyConfig(services=tuple(service("x", members) for _ in range(services)))
        return max(len(json.dumps(part)) for part in parts_of(config))

    assert longest(100, 1000) == longest(1, 1000)
    assert longest(1, 1000) < 16 * 300


def test_what_is_wrong_with_one_part_is_wrong_with_the_whole_and_nothing_else() -> None:
    parts, config = ReceivedParts(), ProxyConfig(services=(service("a", 2),))
    sent = [*parts_of(config)]
    for wrong in ({"cmd": SERVICE, "service": {"name": "x"}}, {"cmd": TARGETS, "targets": [{}]}):
        receive(parts, wrong, *sent)
        with pytest.raises(ValidationError, match=r"listeners|member"):
            parts.take_config()
        receive(parts, *sent)
        assert parts.take_config() == config
    receive(parts, {"cmd": TARGETS, "targets": [{"member": "x"}]}, *parts_of_targets(targets(3)))
    with pytest.raises(ValidationError, match="member"):
        parts.take_targets()
    receive(parts, *parts_of_targets(targets(3)))
    assert parts.take_targets() == targets(3)
