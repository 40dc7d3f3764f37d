"""Why a program has ended although nothing was wrong with it, in words for its author."""

import os
import socket
from typing import Any

import pytest

from penstock_proxy.net.address import Address
from penstock_supervisor.children import diagnosis
from penstock_supervisor.children.plan import ChildPlan
from penstock_supervisor.config.model import Restart


def plan(**changes: Any) -> ChildPlan:
    return ChildPlan(**{
        "role": "worker", "service": "web", "slot": 0, "argv": ("x",), "environment": {},
        "runs_our_code": False, "start_s": 1, "stop_s": 1, "restart": Restart(),
        "address": Address("127.0.0.1", 1), **changes,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "status", "was_ready"),
    [({}, 1, False), ({}, None, False), ({}, 0, True), ({"runs_our_code": True}, 0, False)],
)
def test_most_ends_need_no_hint(
    changes: dict[str, Any], status: int | None, was_ready: bool
) -> None:
    assert diagnosis.exit_hint(plan(**changes), status, was_ready) == ("", False)


def test_an_end_without_an_error_before_it_was_ready_has_a_hint() -> None:
    hint, useless = diagnosis.exit_hint(plan(), 0, False)
    assert hint.startswith("; a server has to run in the foreground")
    assert not useless


@pytest.mark.parametrize("was_ready", [True, False])
def test_a_server_that_was_left_is_named_and_another_start_is_useless(was_ready: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as left:
        address = Address("127.0.0.1", left.getsockname()[1])
        hint, useless = diagnosis.exit_hint(plan(address=address), 0, was_ready)
    assert hint.startswith(": it went into the background, where ")
    assert f"(pid {os.getpid()}) listens on {address}" in hint
    assert useless
