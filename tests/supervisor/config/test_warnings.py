"""A valid configuration gets a warning only for root and for an admin port that others reach."""

from typing import Any

import pytest

from penstock_supervisor.config import warnings
from penstock_supervisor.config.model import Config, Service


def warned_keys(uid: int, **keys: Any) -> list[str]:
    """The keys with a warning."""
    config = Config(services=(), **keys)
    return [line.partition(":")[0] for line in warnings.check(config, uid)]


def test_root_gets_a_warning_unless_a_user_is_given() -> None:
    assert warned_keys(0) == ["user"]
    assert warned_keys(0, user="www-data") == []
    assert warned_keys(0, user="root") == []
    assert warned_keys(1000) == []


@pytest.mark.parametrize(
    ("admin", "is_open"),
    [
        ("127.0.0.1:9464", False),
        ("127.8.8.8:9464", False),
        ("localhost:9464", False),
        ("[::1]:9464", False),
        ("unix:/run/admin", False),
        ("", False),
        ("0.0.0.0:9464", True),
        ("[::]:9464", True),
        ("10.0.0.1:9464", True),
        ("example.org:9464", True),
    ],
)
def test_an_admin_port_that_others_can_reach_is_a_warning(admin: str, is_open: bool) -> None:
    assert warned_keys(1000, admin=admin) == ["admin"] * is_open


@pytest.mark.parametrize(
    ("ports", "in_place"),
    [("8101-8103", 3), ("8101-8105", 1), ("8101-8106", 0), (None, 0)],
)
def test_workers_without_a_second_port_are_a_warning(ports: str | None, in_place: int) -> None:
    service = {"name": "web", "listen": "127.0.0.1:1", "app": "a:b", "workers": 3}
    web = Service.model_validate({**service, "worker_ports": ports})
    lines = [*warnings.check(Config(services=(web,)), 1000)]
    assert len(lines) == bool(in_place)
    assert all(f"{in_place} of 3 workers are replaced in place" in line for line in lines)
