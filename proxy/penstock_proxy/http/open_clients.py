"""The open client connections of one service in mode http, looked at in turn.

Owns: the set of them, and whose turn it is to be looked at. A request must not pay for being
ended some day, so nothing is written here when a request begins or ends, and the connections are
in no order of age. Who looks for old ones looks at a bounded number at a time: with few
connections that is all of them, with many the next ones in turn. Must not know: why somebody
looks (`listener.overload`), or what a connection does.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from penstock_proxy.config import Timeouts
from penstock_proxy.errors import Fault
from penstock_proxy.http1.request import HeaderRewriter
from penstock_proxy.net.timer_wheel import HasDeadline


class ClientHandle(HasDeadline):
    """A client's connection as the service needs it."""

    __slots__ = ()

    @property
    def counted_address(self) -> str:
        """The address that the client limit counts this connection for; empty: not counted."""
        raise NotImplementedError

    @property
    def idle_since(self) -> float:
        """Since when it has had no complete request; NEVER while it has one, or an answer that
        the client has not taken yet."""
        raise NotImplementedError

    @property
    def is_kept_alive(self) -> bool:
        """It is between two requests. False: its request has not come, or only in part."""
        raise NotImplementedError

    def end_idle(self, fault: Fault) -> bool:
        """Close it, because another client needs its place. False: its request has just come."""
        raise NotImplementedError

    def stop(self) -> None:
        """Serve no new requests: close an idle connection, let others finish."""
        raise NotImplementedError

    def cut(self) -> bool:
        """The time to finish is over: end what is open, and let the client see that it was cut.

        True: a response was due. Connections that were upgraded are `relays`, and stay.
        """
        raise NotImplementedError

    def use_rewriter(self, rewriter: HeaderRewriter) -> None:
        """Rewrite the requests that come from now on with this one, and trust whom it trusts."""
        raise NotImplementedError

    def retire(self) -> None:
        """What it was accepted with holds no more: close it when it is idle, and let it serve at
        most the request that it has, or the next one."""
        raise NotImplementedError

    def timeouts_changed(self, before: Timeouts) -> None:
        """The service's time-outs were these: what the client waits for has the new ones."""
        raise NotImplementedError


class OpenClients:
    """The open connections."""

    __slots__ = ("_clients",)

    def __init__(self) -> None:
        self._clients: dict[ClientHandle, None] = {}
        """As an ordered set: the first one is looked at next."""

    def add(self, client: ClientHandle) -> None:
        """It is open."""
        self._clients[client] = None

    def discard(self, client: ClientHandle) -> None:
        """It is closed."""
        self._clients.pop(client, None)

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[ClientHandle]:
        return iter(self._clients)

    def each(self, action: Callable[[ClientHandle], object]) -> Iterator[None]:
        """Call `action` for each that is open now, one in each step, if it still is then."""
        clients = self._clients
        for client in tuple(clients):
            if client in clients:
                action(client)
            yield

    def next_batch(self, limit: int) -> list[ClientHandle]:
        """The next ones in turn, at most `limit`; all, if there are not more."""
        clients = self._clients
        batch = list(islice(clients, limit))
        if len(clients) > limit:
            for client in batch:
                del clients[client]
                clients[client] = None
        return batch
