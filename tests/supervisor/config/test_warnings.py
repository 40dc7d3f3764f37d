"""A valid configuration gets a warning only for root and for an admin port that others reach."""

from typing import Any

import pytest

from penstock_supervisor.config import warnings
from penstock_supervisor.config.model import Config


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
