"""Who the client of an ASGI application is, by what the proxy in front of it says.

Owns where a request's `client` and `scheme` are taken from X-Forwarded-For and -Proto. The rule is
uvicorn's: whose word counts is what FORWARDED_ALLOW_IPS says, and this machine if it is not set.
uvicorn reads the fields anew for each request, which is an eighth of what a small request costs.
The clients of a proxy send many requests each, so what was read is remembered here.

Must not know where the connection comes from.
"""

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, Final

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from penstock_worker.servers.asgi_websockets import App, Message, Receive, Send

_SCHEMES: Final = {name.encode(): name for name in ("http", "https", "ws", "wss")}
_REMEMBERED: Final = 1024
_MAX_REMEMBERED: Final = 64
"""Bytes of a field that is remembered: one address, or a few. So memory is bounded."""


def without_middleware(loaded_app: Any) -> tuple[App, App]:
    """What uvicorn has loaded, without its own reading of these fields: the application for
    requests, and the one for all else, which is unchanged."""
    # In older versions of uvicorn it has another form, and stays.
    if not isinstance(loaded_app, ProxyHeadersMiddleware) or not hasattr(
        loaded_app.trusted_hosts, "get_trusted_client_address"
    ):
        return loaded_app, loaded_app
    app: Any = loaded_app.app
    return _forwarded(app, loaded_app.trusted_hosts), loaded_app  # type: ignore[return-value]


def _forwarded(app: App, hosts: Any) -> App:
    """`app` for requests, whose clients are those that trusted proxies name."""
    is_trusted = lru_cache(_REMEMBERED)(hosts.__contains__)
    client_of = _remembering(hosts)

    # A plain function: a coroutine of its own would cost more than what it does.
    def serve(scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
        peer = scope["client"]
        if is_trusted(peer[0] if peer else None):
            hops = None
            for name, value in scope["headers"]:
                if name == b"x-forwarded-for":
                    hops = value if hops is None else hops + b", " + value
                elif name == b"x-forwarded-proto":
                    scope["scheme"] = _SCHEMES.get(value.strip(), scope["scheme"])
            if hops is not None and (client := client_of(hops))[0]:
                scope["client"] = client
        return app(scope, receive, send)

    return serve


def _remembering(hosts: Any) -> Callable[[bytes], tuple[str, int]]:
    """The client, by X-Forwarded-For."""

    def read(value: bytes) -> tuple[str, int]:
        client: tuple[str, int] = hosts.get_trusted_client_address(value.decode("latin1"))
        return client

    remembered = lru_cache(_REMEMBERED)(read)

    def client_of(value: bytes) -> tuple[str, int]:
        return (remembered if len(value) <= _MAX_REMEMBERED else read)(value)

    return client_of
