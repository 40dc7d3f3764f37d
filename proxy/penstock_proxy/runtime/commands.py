"""What the supervisor says to a proxy process, carried out.

Owns: one function for each message of `messages`, and what a message means for the services. Must
not know: where messages come from, or how the process lives and ends; it is handed whatever it
acts on.
"""

import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from pydantic import ValidationError

from penstock_proxy import messages
from penstock_proxy.balancing.health_check import HealthChecker
from penstock_proxy.config import ProxyConfig
from penstock_proxy.runtime.service import Service
from penstock_worker.channel.channel import Message
from penstock_worker.telemetry.access_log import AccessLog

_log = logging.getLogger("penstock.proxy")


class Commanded:
    """What commands act on: a process with its services, by name."""

    services: dict[str, Service]
    checkers: dict[str, HealthChecker]
    logs: dict[str, AccessLog]

    def configure(self, config: ProxyConfig) -> None:
        """Make the services. OSError if a file cannot be opened or descriptors are too few."""
        raise NotImplementedError

    def fail(self, reason: str) -> None:
        """The process cannot do what it was started for: say so, and leave."""
        raise NotImplementedError

    def drain(self) -> None:
        """Accept no more, finish what there is, leave."""
        raise NotImplementedError

    def tell(self, message: Message) -> None:
        """Say something to the supervisor."""
        raise NotImplementedError

    def stats(self) -> Message:
        """What an answer to STATS says."""
        raise NotImplementedError


def carry_out(process: Commanded, message: Any, handle: socket.socket | None) -> None:
    """Carry out one message of the supervisor, which may come with a socket."""
    if handle is not None:
        _take_socket(process, message, handle)
        return
    command = _COMMANDS.get(message["cmd"])
    if command is None:
        _log.warning("an order that this proxy does not know: %.80r", message["cmd"])
    else:
        command(process, message)


def _take_socket(process: Commanded, message: Message, handle: socket.socket) -> None:
    if message["cmd"] == messages.LINK:
        dispatcher = process.services[message["service"]].dispatcher
        if dispatcher is not None:
            dispatcher.linked(message["slot"], message["link"], message["end"], handle)
            return
    elif message["cmd"] == messages.COVER:
        process.services[message["service"]].listeners.cover(message["proxy"], handle)
        return
    handle.close()


def _configure(process: Commanded, message: Message) -> None:
    try:
        process.configure(ProxyConfig.model_validate(message["config"]))
    except (ValidationError, OSError) as error:
        process.fail(str(error))


def _accept(process: Commanded, _: Message) -> None:
    for service in process.services.values():
        service.listeners.start()


def _tls(process: Commanded, message: Message) -> None:
    if (handshakes := process.services[message["service"]].filter_chain.tls_acceptor) is not None:
        handshakes.begin(message)


def _certificate(process: Commanded, message: Message) -> None:
    handshakes = process.services[message["service"]].filter_chain.tls_acceptor
    if handshakes is None:
        return
    try:
        handshakes.add(message)
    except OSError as error:
        # Of OpenSSL or the system; the supervisor has tried the same with success.
        why = f"cannot use the certificates of {message['service']}: {error}"
        if handshakes.ready:
            _log.error("%s; those before stay", why)
        else:
            process.fail(why)


def _uncover(process: Commanded, message: Message) -> None:
    for service in process.services.values():
        service.listeners.uncover(message["proxy"])


def _unlink(process: Commanded, message: Message) -> None:
    dispatcher = process.services[message["service"]].dispatcher
    if dispatcher is not None:
        dispatcher.unlinked(message["link"])
    process.tell({"cmd": messages.UNLINKED, "link": message["link"]})


def _join(process: Commanded, message: Message) -> None:
    name, slot, address = message["service"], message["slot"], message.get("address")
    service = process.services[name]
    if service.dispatcher is not None:
        service.dispatcher.joined(slot, message["link"])
    elif address is not None:
        service.move(slot, address)
    service.pool.join(slot, address)
    process.checkers[name].check_now(slot)


def _drain_worker(process: Commanded, message: Message) -> None:
    process.services[message["service"]].pool.drain(message["slot"])
    process.tell({"cmd": messages.WORKER_DRAINED, "seq": message["seq"]})


def _leave(process: Commanded, message: Message) -> None:
    process.services[message["service"]].pool.leave(message["slot"])


def _reopen(process: Commanded, _: Message) -> None:
    for log in process.logs.values():
        log.reopen()


def _stats(process: Commanded, message: Message) -> None:
    process.tell({"cmd": messages.STATS, "seq": message["seq"], **process.stats()})


_COMMANDS: Final[dict[str, Callable[[Commanded, Message], None]]] = {
    messages.CONFIGURE: _configure,
    messages.ACCEPT: _accept,
    messages.UNCOVER: _uncover,
    messages.JOIN: _join,
    messages.DRAIN_WORKER: _drain_worker,
    messages.UNLINK: _unlink,
    messages.LEAVE: _leave,
    messages.STATS: _stats,
    messages.TLS: _tls,
    messages.CERTIFICATE: _certificate,
    messages.PING: lambda process, _: process.tell({"cmd": messages.PONG}),
    messages.REOPEN: _reopen,
    messages.DRAIN: lambda process, _: process.drain(),
}
