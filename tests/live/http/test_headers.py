"""Workers get correct forwarding fields, and only trusted proxies can set them."""

import json
from functools import partial
from typing import TYPE_CHECKING

from tests.support.live.heads import OK, always, fields_of, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Launch, Penstock, Worker
    from tests.support.live.wire import Wire


def test_hop_by_hop_fields_are_not_forwarded(penstock: "Penstock", origin: "Worker") -> None:
    seen: list[bytes] = []
    reply = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Mine\r\nX-Mine: 1\r\n"
        b"Keep-Alive: timeout=5\r\nX-Kept: 1\r\n\r\nok"
    )
    wire = penstock("--to", origin(always(reply, seen)).address).connect()
    answer = wire.ask(
        request(
            "/", "Connection: X-Private, keep-alive", "X-Private: 1", "Keep-Alive: timeout=9",
            "Proxy-Authorization: Basic eDp5", "Proxy: http://evil", "TE: gzip", "X-Kept: 2",
        )
    )  # fmt: skip
    assert {name for name, _ in answer.fields} == {b"Content-Length", b"X-Kept", b"Date"}
    assert set(fields_of(seen[0])) == {
        "host", "x-kept", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host",
        "x-forwarded-port", "x-request-id", "via",
    }  # fmt: skip


CLAIMS = (
    "X-Forwarded-For: 10.1.1.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: bank.example",
    "Forwarded: for=10.1.1.1", "X-Real-IP: 10.1.1.1", "X_Forwarded_For: 10.1.1.1",
    "X-Request-ID: chosen-by-client",
)  # fmt: skip


def test_forwarding_fields_of_an_untrusted_client_are_replaced(
    penstock: "Penstock", origin: "Worker"
) -> None:
    seen: list[bytes] = []
    run = penstock("--to", origin(always(OK, seen)).address)
    run.connect().ask(request("/", *CLAIMS))
    fields = fields_of(seen[0])
    assert fields.pop("x-request-id") != "chosen-by-client"
    assert fields == {
        "host": "example.org",
        "via": "1.1 penstock",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "http",
        "x-forwarded-host": "example.org",
        "x-forwarded-port": str(run.address()[1]),
    }


def test_forwarding_fields_of_a_trusted_proxy_are_kept_and_continued(
    penstock: "Penstock", origin: "Worker"
) -> None:
    seen: list[bytes] = []
    run = penstock("--to", origin(always(OK, seen)).address, trusted_proxies=["127.0.0.0/8"])
    run.connect().ask(request("/", *CLAIMS[:3], CLAIMS[-1]))
    assert fields_of(seen[0]) == {
        "host": "example.org",
        "via": "1.1 penstock",
        "x-forwarded-for": "10.1.1.1, 127.0.0.1",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "bank.example",
        "x-forwarded-port": "443",
        "x-request-id": "chosen-by-client",
    }
    run.until(lambda: run.log, "a line of the log")
    assert run.log[0]["client"] == "10.1.1.1"


WAY = """
from aiohttp import web

async def way(request):
    names = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Via")
    return web.json_response({
        "forwarded": [dict(element) for element in request.forwarded],
        **{name: request.headers.getall(name, []) for name in names},
    })

app = web.Application()
app.router.add_get("/", way)
"""


def test_a_worker_can_read_the_route_in_the_forwarded_field_of_rfc_7239(
    launch: "Launch", tmp_path: "Path"
) -> None:
    """By aiohttp's own parser, for an untrusted client and for a trusted proxy that sends it."""
    (tmp_path / "way.py").write_text(WAY)
    keys = {"app": "way:app", "directory": str(tmp_path), "workers": 1, "access_log": "off"}
    run = launch(
        web={**keys, "forwarding": {"forwarded": True}},
        behind={
            **keys, "trusted_proxies": ["127.0.0.0/8", "198.51.100.0/24"],
            "forwarding": {"forwarded": True, "trust": "forwarded", "via": "other"},
        },
    )  # fmt: skip
    said = (
        "Forwarded: for=6.6.6.6, for=\"[2001:db8::1]\";proto=https;host=shop.example",
        "Forwarded: for=198.51.100.7", "X-Forwarded-For: 9.9.9.9", "Via: 1.0 old",
    )  # fmt: skip
    assert json.loads(run.connect().ask(request("/", *said)).body) == {
        "forwarded": [{"for": "127.0.0.1", "proto": "http"}],
        "X-Forwarded-For": ["127.0.0.1"],
        "X-Forwarded-Proto": ["http"],
        "X-Forwarded-Host": ["example.org"],
        "Via": ["1.0 old, 1.1 penstock"],
    }
    assert json.loads(run.connect("behind").ask(request("/", *said)).body) == {
        "forwarded": [
            {"for": "[2001:db8::1]", "proto": "https", "host": "shop.example"},
            {"for": "198.51.100.7"},
            {"for": "127.0.0.1", "proto": "http"},
        ],
        "X-Forwarded-For": ["2001:db8::1, 198.51.100.7, 127.0.0.1"],
        "X-Forwarded-Proto": ["https"],
        "X-Forwarded-Host": ["shop.example"],
        "Via": ["1.0 old, 1.1 other"],
    }


def test_the_hash_distinguishes_clients_behind_a_trusted_proxy(
    penstock: "Penstock", origin: "Worker"
) -> None:
    """All of them come over one connection: their proxy names the client of each request."""
    got: dict[int, list[str]] = {0: [], 1: []}

    def answer(number: int, wire: "Wire") -> None:
        while head := wire.head():
            if b"penstock-health" not in head:
                got[number].append(fields_of(head)["x-forwarded-for"].partition(",")[0])
            wire.send(OK)

    workers = [origin(partial(answer, number)) for number in got]
    run = penstock(
        "--to", workers[0].address, "--to", workers[1].address,
        balance="client_hash", trusted_proxies=["127.0.0.1"],
    )  # fmt: skip
    wire = run.connect()
    clients = [f"203.0.113.{number}" for number in range(40)]
    for client in clients * 2:
        wire.ask(request("/", f"X-Forwarded-For: 6.6.6.6, {client}"))
    for seen in got.values():
        assert len(set(seen)) * 2 == len(seen) > 0
    assert {*got[0]} | {*got[1]} == {*clients}
    assert not {*got[0]} & {*got[1]}


def test_every_request_has_an_id_of_its_own_that_is_in_the_log(
    penstock: "Penstock", origin: "Worker"
) -> None:
    seen: list[bytes] = []
    run = penstock("--to", origin(always(OK, seen)).address)
    for _ in range(3):
        wire = run.connect()
        for _ in range(3):
            wire.ask(request())
    ids = [fields_of(head)["x-request-id"] for head in seen]
    assert len(set(ids)) == 9
    run.until(lambda: len(run.log) == 9)
    assert [line["request_id"] for line in run.log] == ids
