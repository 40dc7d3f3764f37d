"""The client of a request is the one that uvicorn's own middleware would find, every time."""

import copy
from typing import Any

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from penstock_worker.servers.asgi_forwarded import without_middleware

PEERS = [("127.0.0.1", 50000), ("::1", 50000), ("192.0.2.7", 50000), ("10.1.2.3", 1), None]
FOR = b"x-forwarded-for"
PROTO = b"x-forwarded-proto"
HEADERS = [
    [],
    [(b"host", b"a")],
    [(FOR, b"203.0.113.5"), (PROTO, b"https")],
    [(FOR, b"203.0.113.5, 127.0.0.1")],
    [(FOR, b"203.0.113.5"), (FOR, b"10.9.9.9, 127.0.0.1")],
    [(FOR, b"")],
    [(FOR, b"[2001:db8::1]:8443"), (PROTO, b" http ")],
    [(FOR, b"127.0.0.1")],
    [(FOR, b"not an address"), (PROTO, b"gopher")],
    [(FOR, b", ".join([b"203.0.113.5"] * 500))],
    [(FOR, b"\xff\xfe"), (PROTO, b"wss")],
]


async def nothing(*_anything: Any) -> None:
    """Neither an application's `receive` nor its `send` is called here."""


def scope_of(peer: Any, headers: Any) -> dict[str, Any]:
    return {"type": "http", "scheme": "http", "client": peer, "headers": headers}


@pytest.mark.parametrize("trusted", ["127.0.0.1,::1", "10.0.0.0/8", "*", "", "/run/proxy.sock"])
@pytest.mark.parametrize("peer", PEERS)
async def test_the_same_client_and_scheme_as_with_uvicorns_middleware(
    trusted: str, peer: Any
) -> None:
    seen: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope)

    middleware = ProxyHeadersMiddleware(app, trusted)
    requests, others = without_middleware(middleware)
    assert others is middleware
    # Twice: what was read once is remembered.
    for headers in HEADERS * 2:
        expected = scope_of(peer, headers)
        found = copy.deepcopy(expected)
        await middleware(expected, nothing, nothing)  # type: ignore[arg-type]
        await requests(found, nothing, nothing)  # type: ignore[arg-type]
        assert found == expected
    assert len(seen) == 4 * len(HEADERS)


async def test_an_application_without_the_middleware_stays_as_it_is() -> None:
    async def app(*_anything: Any) -> None: ...

    assert without_middleware(app) == (app, app)
