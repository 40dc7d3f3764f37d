"""The shares of proxies add up to the bound, and every proxy gets something."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_proxy.config import Health
from penstock_supervisor.config.model import Service
from penstock_supervisor.config.per_proxy import DIVIDED, keys_for_proxy, share, too_small


def service(**keys: object) -> Service:
    return Service.model_validate({"name": "web", "listen": "127.0.0.1:0", "app": "a:b", **keys})


@given(st.integers(0, 1 << 30), st.integers(1, 64))
def test_shares_add_up_and_differ_by_one_at_most(total: int, proxies: int) -> None:
    shares = [share(total, proxies, number) for number in range(proxies)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True), "what is left over is the first ones'"


def test_a_proxy_gets_its_share_and_everything_else_unchanged() -> None:
    web = service(
        max_connections=5, handoff_window=16, limits={"queue": 3, "handshakes": 9, "head": "8KiB"}
    )
    first, second = (keys_for_proxy(web, 2, number) for number in range(2))
    assert [keys["max_connections"] for keys in (first, second)] == [3, 2]
    assert [keys["limits"].queue for keys in (first, second)] == [2, 1]
    assert [keys["limits"].handshakes for keys in (first, second)] == [5, 4]
    assert [keys["handoff_window"] for keys in (first, second)] == [8, 8]
    assert first["limits"].head == second["limits"].head == 8192
    assert first["ejection"] == web.ejection


def test_a_proxy_is_not_sent_what_the_supervisor_does_for_health() -> None:
    web = service(health={"interval": "5s", "restart_after": "9s"})
    assert keys_for_proxy(web, 1, 0)["health"] == Health(interval=5.0)


def test_a_ratio_of_a_divided_bound_is_not_divided_again() -> None:
    part = service(limits={"connections_per_client": "50%"})
    number = service(limits={"connections_per_client": 5})
    keys = [keys_for_proxy(one, 2, 1)["limits"].connections_per_client for one in (part, number)]
    assert keys == [0.5, 2]
    assert list(too_small(part, 64)) == []


def test_a_single_proxy_gets_everything_unchanged() -> None:
    web = service(max_connections=5, limits={"queue": 3})
    keys = keys_for_proxy(web, 1, 0)
    assert keys == {**{key: getattr(web, key) for key in keys}, "health": Health()}


def test_no_bound_is_no_bound_for_every_proxy() -> None:
    keys = keys_for_proxy(service(max_connections=0, limits={"queue": 0}), 3, 2)
    assert keys["max_connections"] == keys["limits"].queue == 0


def test_every_proxy_may_pass_at_least_one_connection() -> None:
    assert keys_for_proxy(service(scheme="handoff", handoff_window=1), 8, 7)["handoff_window"] == 1


def test_a_bound_that_is_too_small_to_divide_is_named() -> None:
    web = service(max_connections=3, limits={"queue": 1})
    assert list(too_small(web, 1)) == []
    assert list(too_small(web, 2)) == [("limits", "queue")]
    assert list(too_small(web, 4)) == [("max_connections",), ("limits", "queue")]
    assert set(too_small(web, 4)) <= {key for key, _ in DIVIDED}


def test_the_divided_keys_are_those_that_are_marked() -> None:
    assert {".".join(key): mark.least for key, mark in DIVIDED} == {
        "max_connections": 0,
        "handoff_window": 1,
        "limits.queue": 0,
        "limits.per_worker": 0,
        "limits.queue_per_worker": 0,
        "limits.handshakes": 0,
        "limits.connections_per_client": 0,
    }
