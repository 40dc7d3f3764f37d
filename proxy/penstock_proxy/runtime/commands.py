"""Commands of the supervisor: what a proxy process does for each message.

Owns: one function for each message of `messages`. Must not know: how messages arrive, and how
the process starts and ends; a `CommandTarget` supplies everything that commands act on.
"""

import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from penstock_proxy import messages
from penstock_proxy.config import ProxyConfig
from penstock_proxy.runtime.service import Service
from penstock_worker.channel.channel import Message
from penstock_worker.telemetry.access_log import AccessLog

_log = logging.getLogger("penstock.proxy")


class CommandTarget:
    """What commands act on: the process and its services, by name."""

    services: dict[str, Service]
    logs: dict[str, AccessLog]

    def configure(self, config: ProxyConfig) -> None:
        """Make the services. OSError if a file cannot be opened or descriptors are too few."""
        raise NotImplementedError

    def fail(self, reason: str) -> None:
        """The process cannot start: report why, and exit."""
        raise NotImplementedError

    def drain(self, finish_s: Mapping[str, float], within_s: float) -> None:
        """Accept no more connections, finish what is in flight, exit.

        `finish_s`: by service, the seconds after which the rest is cut. `within_s`: the seconds
        after which the process exits in any case.
        """
        raise NotImplementedError

    def cut_worker(self, service: str, slot: int, finish_s: float) -> None:
        """Cut what this process of a worker still has after `finish_s` seconds."""
        raise NotImplementedError

    def send(self, message: Message) -> None:
        """Send a message to the supervisor."""
        raise NotImplementedError

    def stats(self) -> Message:
        """The content of the answer to STATS."""
        raise NotImplementedError


def carry_out(process: CommandTarget, message: Any, handle: socket.socket | None) -> None:
    """Carry out one message of the supervisor, which may have a socket attached."""
    if handle is not None:
        _take_socket(process, message, handle)
        return
    command = _COMMANDS.get(message["cmd"])
    if command is None:
        _log.warning("unknown command of the supervisor: %.80r", message["cmd"])
    else:
        command(process, message)


def _take_socket(process: CommandTarget, message: Message, handle: socket.socket) -> None:
    service = process.services.get(message["service"])
    if service is not None and message["cmd"] == messages.COVER:
        service.listeners.take_over(message["proxy"], handle)
    elif (
        service is not None
        and message["cmd"] == messages.LINK
        and service.dispatcher is not None
        and service.pool.has(message["slot"])
    ):
        service.dispatcher.add_link_end(message["slot"], message["link"], message["end"], handle)
    else:
        handle.close()


def _configure(process: CommandTarget, message: Message) -> None:
    try:
        process.configure(ProxyConfig.model_validate(message["config"]))
    except (ValidationError, OSError) as error:
        process.fail(str(error))


def _accept(process: CommandTarget, _: Message) -> None:
    for service in process.services.values():
        service.listeners.start()


def _tls(process: CommandTarget, message: Message) -> None:
    if (tls_acceptor := process.services[message["service"]].filter_chain.tls_acceptor) is not None:
        tls_acceptor.begin_certificates(message)


def _certificate(process: CommandTarget, message: Message) -> None:
    tls_acceptor = process.services[message["service"]].filter_chain.tls_acceptor
    if tls_acceptor is None:
        return
    try:
        tls_acceptor.add_certificate(message)
    except OSError as error:
        # An error of OpenSSL or the system: the supervisor has loaded the same certificates.
        why = f"cannot use the certificates of {message['service']}: {error}"
        if tls_acceptor.has_certificates:
            _log.error("%s; those before stay", why)
        else:
            process.fail(why)


def _uncover(process: CommandTarget, message: Message) -> None:
    for service in process.services.values():
        service.listeners.give_back(message["proxy"])


def _unlink(process: CommandTarget, message: Message) -> None:
    dispatcher = process.services[message["service"]].dispatcher
    if dispatcher is not None:
        dispatcher.remove_link(message["link"])
    process.send({"cmd": messages.UNLINKED, "link": message["link"]})


def _join(process: CommandTarget, message: Message) -> None:
    name, slot, address = message["service"], message["slot"], message.get("address")
    service = process.services[name]
    if service.dispatcher is not None:
        service.dispatcher.use_link(slot, message["link"])
    elif address is not None:
        service.set_address(slot, address)
    service.pool.join(slot, address)
    service.health_checker.check_now(slot)


def _drain_worker(process: CommandTarget, message: Message) -> None:
    process.services[message["service"]].pool.drain(message["slot"])
    process.cut_worker(message["service"], message["slot"], message["finish"])
    process.send({"cmd": messages.WORKER_DRAINED, "seq": message["seq"]})


def _leave(process: CommandTarget, message: Message) -> None:
    process.services[message["service"]].pool.leave(message["slot"])


def _hold(process: CommandTarget, message: Message) -> None:
    process.services[message["service"]].hold_member(message["slot"], message["reason"])


def _release(process: CommandTarget, message: Message) -> None:
    process.services[message["service"]].release_member(message["slot"])


def _drain(process: CommandTarget, message: Message) -> None:
    process.drain(message["finish"], message["within"])


def _reopen(process: CommandTarget, _: Message) -> None:
    for log in process.logs.values():
        log.reopen()


def _stats(process: CommandTarget, message: Message) -> None:
    process.send({"cmd": messages.STATS, "seq": message["seq"], **process.stats()})


_COMMANDS: Final[dict[str, Callable[[CommandTarget, Message], None]]] = {
    messages.CONFIGURE: _configure,
    messages.ACCEPT: _accept,
    messages.UNCOVER: _uncover,
    messages.JOIN: _join,
    messages.DRAIN_WORKER: _drain_worker,
    messages.UNLINK: _unlink,
    messages.LEAVE: _leave,
    messages.HOLD: _hold,
    messages.RELEASE: _release,
    messages.STATS: _stats,
    messages.TLS: _tls,
    messages.CERTIFICATE: _certificate,
    messages.PING: lambda process, _: process.send({"cmd": messages.PONG}),
    messages.REOPEN: _reopen,
    messages.DRAIN: _drain,
}
