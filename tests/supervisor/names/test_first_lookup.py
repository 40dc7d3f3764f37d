"""Before a run starts all names are looked up, and a plain one that is not found is an error."""

import asyncio
import time

import dns.rcode
import pytest
from tests.support.supervisor.name_server import NameServer

from penstock_proxy.net.address import Address
from penstock_supervisor.config.model import Config, Dns, Service, Upstream
from penstock_supervisor.errors import StartError
from penstock_supervisor.names import name_servers
from penstock_supervisor.names.first_lookup import Endpoints, look_up_all
from penstock_supervisor.names.lookup import Lookups
from penstock_supervisor.supervisor import Supervisor


def service(*addresses: str, name: str = "web") -> Service:
    upstreams = tuple(Upstream(address=address) for address in addresses)
    return Service(name=name, listen="127.0.0.1:0", upstreams=upstreams)


async def look_up(server: NameServer, *services: Service) -> dict[str, Endpoints]:
    return await look_up_all(Lookups(time.monotonic), services, (server.address,))


async def test_a_name_is_looked_up_and_addresses_stay(server: NameServer) -> None:
    server.set("app.test", "A", "10.0.0.1", "10.0.0.2")
    texts = ("app.test:81", "[::1]:82", "unix:/tmp/x", "dns:app.test:83", "localhost:84")
    found = (await look_up(server, service(*texts)))["web"]
    assert list(found) == list(texts)
    assert len(found["app.test:81"]) == 1
    assert [one.address for one in found["[::1]:82"]] == [Address("::1", 82)]
    assert [one.address for one in found["unix:/tmp/x"]] == [Address(path="/tmp/x")]
    assert len(found["dns:app.test:83"]) == 2
    assert [str(one.address) for one in found["localhost:84"]] == ["127.0.0.1:84"]


async def test_a_service_without_upstreams_has_nothing_to_look_up(server: NameServer) -> None:
    app = Service(name="web", listen="127.0.0.1:0", app="a:b")
    assert await look_up(server, app) == {}


async def test_all_plain_names_that_are_not_found_are_told(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_servers, "ANSWER_S", 0.2)
    server.say_nothing_about("away.test A")
    services = service("a.test:1", "away.test:2", "b.test:3"), service("a.test:1", name="api")
    with pytest.raises(StartError) as refused:
        await look_up(server, *services)
    assert str(refused.value) == (
        "service.web.upstreams: a.test:1, b.test:3: unknown host; "
        "service.web.upstreams: away.test:2: no name server has answered within 0.2 s; "
        "service.api.upstreams: a.test:1: unknown host"
    )
    server.rcode = dns.rcode.REFUSED
    with pytest.raises(StartError, match=r"a\.test:1: it cannot be looked up: .* says REFUSED"):
        await look_up(server, service("a.test:1"))


async def test_a_name_for_any_number_of_servers_may_stand_for_none(server: NameServer) -> None:
    texts = ("dns:a.test:1", "dns+srv:_x._tcp.test")
    assert await look_up(server, service(*texts)) == {"web": dict.fromkeys(texts, ())}
    server.rcode = dns.rcode.SERVFAIL
    assert await look_up(server, service(*texts)) == {"web": dict.fromkeys(texts, ())}


async def test_what_is_watched_already_is_not_looked_up(server: NameServer) -> None:
    server.set("b.test", "A", "10.0.0.1")
    web = service("a.test:1", "b.test:2")
    found = await look_up_all(
        Lookups(time.monotonic), [web], (server.address,), lambda *one: one == ("web", "a.test:1")
    )
    assert list(found["web"]) == ["b.test:2"]
    assert not server.asked["a.test A"]


async def test_many_names_are_looked_up_side_by_side(server: NameServer) -> None:
    names = [f"n{number}.test" for number in range(200)]
    for name in names:
        server.set(name, "A", "10.0.0.1")
    found = await look_up(server, service(*(f"{name}:1" for name in names)))
    assert len(found["web"]) == 200


async def test_a_stop_is_heard_while_a_name_server_does_not_answer(server: NameServer) -> None:
    server.is_silent = True
    config = Config(
        admin="", run_dir="", services=(service("db.test:80"),), dns=Dns(servers=(server.address,))
    )
    supervisor = Supervisor(config, environment={})
    run = asyncio.ensure_future(supervisor.run())
    async with asyncio.timeout(60):
        while not server.asked:  # noqa: ASYNC110 — nothing sets an event for us
            await asyncio.sleep(0.01)
        supervisor.stop()
        assert await run == 0
