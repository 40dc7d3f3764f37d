"""A name is looked up in the hosts file, then at name servers, then by the C library.

The name server is a real one, with UDP and TCP.

Covers `names/name_servers` and `names/answers`.
"""

import asyncio
import socket
import time
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import pytest
from tests.support.supervisor.name_server import NameServer

from penstock_proxy.net.address import Address
from penstock_supervisor import blocking
from penstock_supervisor.config.upstream_address import parse_upstream
from penstock_supervisor.names import hosts_file, lookup, name_servers
from penstock_supervisor.names.answers import (
    Found,
    LookupFailedError,
    LookupTimeoutError,
    NotFoundError,
)
from penstock_supervisor.names.lookup import LOCAL_TTL_S, Lookups


async def look_up(text: str, *servers: NameServer) -> Found:
    addresses = tuple(server.address for server in servers)
    return await Lookups(time.monotonic).look_up(parse_upstream(text), addresses)


def hosts(found: Found) -> list[str]:
    return sorted(one.address.host for one in found.endpoints)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody answers."""
    monkeypatch.setattr(name_servers, "ANSWER_S", 0.2)


@pytest.fixture
def less_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody answers, on a machine that may be busy."""
    monkeypatch.setattr(name_servers, "ANSWER_S", 2.0)


async def test_a_name_is_its_ipv4_addresses_and_others_only_without_one(server: NameServer) -> None:
    server.set("app.test", "A", "10.0.0.1", "10.0.0.2", ttl=7)
    server.set("app.test", "AAAA", "fd00::1", ttl=3)
    server.set("six.test", "AAAA", "fd00::2", ttl=4)
    found = await look_up("app.test:9000", server)
    assert (hosts(found), found.ttl_s) == (["10.0.0.1", "10.0.0.2"], 7)
    assert {(one.address.port, one.name) for one in found.endpoints} == {(9000, "app.test:9000")}
    assert hosts(await look_up("six.test:9000", server)) == ["fd00::2"]


async def test_all_addresses_are_those_of_both_families(server: NameServer) -> None:
    server.set("app.test", "A", "10.0.0.1", ttl=7)
    server.set("app.test", "AAAA", "fd00::1", ttl=3)
    found = await look_up("dns:app.test:9000", server)
    assert (hosts(found), found.ttl_s) == (["10.0.0.1", "fd00::1"], 3)
    assert not found.unanswered


async def test_a_family_that_is_not_answered_is_told(
    server: NameServer, less_patient: None
) -> None:
    server.set("app.test", "A", "10.0.0.1")
    server.say_nothing_about("app.test AAAA")
    found = await look_up("dns:app.test:9000", server)
    assert hosts(found) == ["10.0.0.1"]
    assert found.unanswered == {("app.test:9000", 6)}


async def test_an_alias_has_the_shortest_time_of_its_chain(server: NameServer) -> None:
    server.set("www.test", "CNAME", "app.test.", ttl=2)
    server.set("app.test", "A", "10.0.0.1", ttl=60)
    found = await look_up("www.test:80", server)
    assert (hosts(found), found.ttl_s) == (["10.0.0.1"], 2)


async def test_an_answer_that_is_too_long_for_a_datagram_comes_by_tcp(server: NameServer) -> None:
    server.set("app.test", "A", *(f"10.1.{n // 250}.{n % 250}" for n in range(1000)))
    assert len((await look_up("dns:app.test:80", server)).endpoints) == 1000
    assert server.over_tcp == 1


async def test_addresses_of_nobody_are_left_out(server: NameServer) -> None:
    server.set("app.test", "A", "0.0.0.0", "224.0.0.1", "10.0.0.1")
    server.set("none.test", "A", "0.0.0.0")
    assert hosts(await look_up("dns:app.test:80", server)) == ["10.0.0.1"]
    with pytest.raises(NotFoundError):
        await look_up("none.test:80", server)


@pytest.mark.parametrize("text", ["{}:80", "dns:{}:80", "dns+srv:{}"])
async def test_there_is_nothing_of_this_name(server: NameServer, text: str) -> None:
    server.set("empty.test", "TXT", "here")
    for name in ("nowhere.test", "empty.test"):
        with pytest.raises(NotFoundError):
            await look_up(text.format(name), server)


@pytest.mark.parametrize("text", ["a.test:80", "dns:a.test:80", "dns+srv:_x._tcp.a.test"])
async def test_who_cannot_say_is_a_failure_that_names_the_server(
    server: NameServer, text: str
) -> None:
    server.rcode = dns.rcode.SERVFAIL
    with pytest.raises(LookupFailedError) as failure:
        await look_up(text, server)
    assert str(failure.value) == f"the name server {server.address} says SERVFAIL"
    assert failure.value.result == "failed"


@pytest.mark.parametrize("text", ["a.test:80", "dns:a.test:80", "dns+srv:_x._tcp.a.test"])
async def test_silence_is_a_failure_in_time(server: NameServer, text: str, impatient: None) -> None:
    server.is_silent = True
    with pytest.raises(LookupTimeoutError, match="no name server has answered"):
        await look_up(text, server)


async def test_a_whole_look_up_has_an_end(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "LOOKUP_S", 0.1)
    server.is_silent = True
    with pytest.raises(LookupTimeoutError, match=r"within 0\.1 s"):
        await look_up("dns:app.test:80", server)


async def test_a_second_server_is_asked_if_the_first_is_away(server: NameServer) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
    server.set("app.test", "A", "10.0.0.1")
    lookups = Lookups(time.monotonic)
    found = await lookups.look_up(parse_upstream("app.test:80"), (address, server.address))
    assert hosts(found) == ["10.0.0.1"]


async def test_a_server_that_hangs_delays_no_other_name(server: NameServer) -> None:
    server.set("good.test", "A", "10.0.0.1")
    server.say_nothing_about("bad.test A")
    lookups, servers = Lookups(time.monotonic), (server.address,)
    bad = asyncio.ensure_future(lookups.look_up(parse_upstream("bad.test:80"), servers))
    found = await lookups.look_up(parse_upstream("good.test:80"), servers)
    assert hosts(found) == ["10.0.0.1"]
    assert not bad.done()
    bad.cancel()
    await asyncio.wait({bad})


async def test_a_service_is_its_targets_with_ports_and_weights(server: NameServer) -> None:
    service = "_http._tcp.app.test"
    server.set(service, "SRV", "1 10 9001 a.test.", "1 5 9002 b.test.", "2 9 9003 c.test.", ttl=9)
    server.set("a.test", "A", "10.0.0.1", ttl=4)
    server.set("b.test", "A", "10.0.0.2", ttl=60)
    found = await look_up(f"dns+srv:{service}", server)
    assert {(str(one.address), one.weight, one.name) for one in found.endpoints} == {
        ("10.0.0.1:9001", 10, "a.test:9001"),
        ("10.0.0.2:9002", 5, "b.test:9002"),
    }
    assert found.ttl_s == 4
    assert not server.asked["c.test A"]


async def test_a_target_that_is_not_answered_is_told_and_one_without_address_is_left_out(
    server: NameServer, less_patient: None
) -> None:
    records = ("1 1 80 a.test.", "1 1 80 b.test.", "1 1 80 gone.test.")
    server.set("_x._tcp.test", "SRV", *records)
    server.set("a.test", "A", "10.0.0.1")
    server.say_nothing_about("b.test A")
    found = await look_up("dns+srv:_x._tcp.test", server)
    assert hosts(found) == ["10.0.0.1"]
    assert found.unanswered == {("b.test:80", 4), ("b.test:80", 6)}


async def test_a_service_without_a_target_that_is_there_is_nothing(server: NameServer) -> None:
    server.set("_x._tcp.test", "SRV", "0 0 0 .")
    with pytest.raises(NotFoundError, match="no SRV record"):
        await look_up("dns+srv:_x._tcp.test", server)
    server.set("_x._tcp.test", "SRV", "1 1 80 gone.test.")
    with pytest.raises(NotFoundError):
        await look_up("dns+srv:_x._tcp.test", server)


async def test_the_hosts_file_comes_first(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = "fd00::5 app.test\n10.0.0.5 app.test\nfd00::6 six.test\n"
    monkeypatch.setattr(hosts_file, "read", lambda: table)
    server.set("app.test", "A", "10.0.0.1")
    found = await look_up("app.test:80", server)
    assert (hosts(found), found.ttl_s) == (["10.0.0.5"], LOCAL_TTL_S)
    assert hosts(await look_up("dns:app.test:80", server)) == ["10.0.0.5", "fd00::5"]
    assert hosts(await look_up("six.test:80", server)) == ["fd00::6"]
    assert not server.asked


async def test_the_library_is_asked_where_the_others_know_nothing(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, Any] = {"printer.local": "10.0.0.7"}

    def getaddrinfo(host: str, *_: object, **__: object) -> Any:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], 0))] * 2

    configured = name_servers.configured
    monkeypatch.setattr(name_servers, "configured", lambda _: configured([server.address]))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for text in ("printer.local:80", "dns:printer.local:80"):
        found = await look_up(text)
        assert (hosts(found), found.ttl_s) == (["10.0.0.7"], LOCAL_TTL_S)
    with pytest.raises(NotFoundError):
        await look_up("nowhere.local:80")
    # Who cannot say has not said that there is nothing.
    server.rcode = dns.rcode.SERVFAIL
    with pytest.raises(LookupFailedError, match="SERVFAIL"):
        await look_up("printer.local:80")
    monkeypatch.setattr(name_servers, "configured", lambda _: None)
    assert hosts(await look_up("printer.local:80")) == ["10.0.0.7"]
    with pytest.raises(LookupFailedError, match="no name server"):
        await look_up("dns+srv:_x._tcp.printer.local")


async def test_the_library_is_not_asked_if_servers_are_configured(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(NotFoundError):
        await look_up("nowhere.test:80", server)


async def test_a_machine_that_cannot_be_asked_is_a_failure(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "MOST", 0)
    with pytest.raises(LookupFailedError, match="0 earlier calls"):
        await look_up("app.test:80", server)


async def test_a_name_that_the_dns_cannot_have_is_a_failure(server: NameServer) -> None:
    for name in ("a..test", "x" * 70, "x." * 200):
        with pytest.raises(LookupFailedError):
            await look_up(f"{name}:80", server)


async def test_what_is_no_answer_to_the_question_is_not_believed(server: NameServer) -> None:
    forged = dns.message.make_response(dns.message.make_query("app.test", "A"))
    forged.answer.append(dns.rrset.from_text("app.test.", 9, "IN", "A", "10.6.6.6"))
    other = dns.message.make_response(dns.message.make_query("other.test", "A"))
    server.nonsense = [b"", b"x", b"\xff" * 512, forged.to_wire(), other.to_wire()]
    server.set("app.test", "A", "10.0.0.1")
    assert hosts(await look_up("app.test:80", server)) == ["10.0.0.1"]
    assert hosts(await look_up("dns:app.test:80", server)) == ["10.0.0.1"]


async def test_nonsense_alone_is_a_failure_in_time(server: NameServer, impatient: None) -> None:
    server.nonsense, server.is_silent = [b"", b"x", b"\xc0\x0c" * 200], True
    with pytest.raises(LookupFailedError):
        await look_up("app.test:80", server)


async def test_a_chain_of_aliases_without_an_end_is_a_failure(
    server: NameServer, impatient: None
) -> None:
    server.loops = True
    with pytest.raises(LookupFailedError):
        await look_up("app.test:80", server)


async def test_a_port_is_that_of_the_name(server: NameServer) -> None:
    server.set("app.test", "A", "10.0.0.1")
    found = await look_up("dns:app.test:81", server)
    assert found.endpoints[0].address == Address("10.0.0.1", 81)
