"""Commands of the supervisor: what a proxy process does for each message.

Owns: one function for each message of `messages`, and their order. A message is carried out when
the one before it has been: some take many turns of the loop, because they work for many, and those
behind them wait. Only PING does not wait. Must not know: how messages arrive, and how the process
starts and ends; a `CommandTarget` supplies everything that commands act on.
"""

import logging
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from pydantic import ValidationError

from penstock_proxy import messages
from penstock_proxy.config import ProxyConfig, Target
from penstock_proxy.config_parts import ReceivedParts
from penstock_proxy.net.reactor import Slices
from penstock_proxy.runtime.service import Service
from penstock_proxy.runtime.services import CannotChangeError, Services
from penstock_worker.channel.channel import Message

Steps = Iterator[None] | None
"""What is left to do of a command, a part in each step; None: nothing."""

_log = logging.getLogger("penstock.proxy")


class CommandTarget:
    """What commands act on: the process and its services, by name."""

    services: Services
    parts: ReceivedParts
    """What has come of the next configuration."""

    def configuring(self, config: ProxyConfig) -> Iterator[None]:
        """Make the services. OSError if a file cannot be opened or descriptors are too few."""
        raise NotImplementedError

    def reconfiguring(self, config: ProxyConfig, finish_s: Mapping[str, float]) -> Iterator[None]:
        """Bring the services to this configuration. OSError, CannotChangeError: nothing was
        changed."""
        raise NotImplementedError

    def fail(self, reason: str) -> None:
        """The process cannot start: report why, and exit."""
        raise NotImplementedError

    def draining(self, finish_s: Mapping[str, float], within_s: float) -> Iterator[None]:
        """Accept no more connections, finish what is in flight, exit.

        `finish_s`: by service, the seconds after which the rest is cut. `within_s`: the seconds
        after which the process exits in any case.
        """
        raise NotImplementedError

    def cut_worker(self, service: Service, member: int, finish_s: float) -> None:
        """Cut what this process of a worker still has after `finish_s` seconds."""
        raise NotImplementedError

    def send(self, message: Message) -> None:
        """Send a message to the supervisor."""
        raise NotImplementedError

    def answer_stats(self, seq: int) -> None:
        """Send the answer to STATS, in parts."""
        raise NotImplementedError


class Commands:
    """Carries out what was told, one after the other."""

    def __init__(self, process: CommandTarget, slices: Slices) -> None:
        self._process = process
        self._slices = slices
        self._waiting: deque[Callable[[], Steps]] = deque()
        self._is_working = False

    def take(self, message: Any, handle: socket.socket | None) -> None:
        """A message of the supervisor has come, which may have a socket attached."""
        if handle is None and message["cmd"] == messages.PING:
            # It asks whether the process is stuck.
            self._process.send({"cmd": messages.PONG})
        else:
            self.put(partial(carry_out, self._process, message, handle))

    def put(self, command: Callable[[], Steps]) -> None:
        """Do this when all is done that was told before."""
        self._waiting.append(command)
        if not self._is_working:
            self._is_working = True
            # Not at once: many messages come in one read.
            self._slices.run_soon(self._working())

    def _working(self) -> Iterator[None]:
        while self._waiting:
            command = self._waiting.popleft()
            try:
                yield from command() or ()
            except Exception:  # noqa: BLE001 — whatever it is, it is that command's
                # It must not cost the process those after this one.
                _log.exception("a command of the supervisor could not be carried out")
            yield
        self._is_working = False


def carry_out(process: CommandTarget, message: Any, handle: socket.socket | None) -> Steps:
    """Carry out one message of the supervisor, which may have a socket attached. Returns what is
    left to do."""
    if handle is not None:
        _take_socket(process, message, handle)
        return None
    command = _COMMANDS.get(message["cmd"])
    if command is None:
        _log.warning("unknown command of the supervisor: %.80r", message["cmd"])
        return None
    return command(process, message)


def _take_socket(process: CommandTarget, message: Message, handle: socket.socket) -> None:
    service = process.services.by_name.get(message["service"])
    if message["cmd"] == messages.LINK:
        _link(process, message, handle)
    elif service is not None and message["cmd"] == messages.COVER:
        service.listeners.take_over(message["proxy"], handle)
    elif service is not None and message["cmd"] == messages.LISTEN:
        service.listen(handle)
    else:
        handle.close()


def _link(process: CommandTarget, message: Message, handle: socket.socket) -> None:
    service = _service_of_member(process, message)
    if service is not None and service.dispatcher is not None:
        member = service.pool.member(message["member"])
        service.dispatcher.add_link_end(member, message["link"], message["end"], handle)
    else:
        handle.close()


def _targets(process: CommandTarget, message: Message) -> None:
    process.parts.add_targets(message["targets"])


def _service(process: CommandTarget, message: Message) -> None:
    process.parts.add_service(message["service"])


def _configure(process: CommandTarget, _: Message) -> Iterator[None]:
    try:
        yield from process.configuring(process.parts.take_config())
    except (ValidationError, OSError) as error:
        process.fail(str(error))


def _reconfigure(process: CommandTarget, message: Message) -> Iterator[None]:
    error = ""
    try:
        config = process.parts.take_config()
        yield from process.reconfiguring(config, message.get("finish", {}))
    except (ValidationError, OSError, CannotChangeError) as cause:
        error = str(cause)
    process.send({"cmd": messages.RECONFIGURED, "seq": message["seq"], "error": error})


def _upstreams(process: CommandTarget, message: Message) -> Iterator[None]:
    try:
        targets = process.parts.take_targets()
        yield from process.services.changing_upstreams(message["service"], targets)
    except (ValidationError, OSError) as error:
        _log.error("the upstreams of %s stay as they were: %s", message["service"], error)


def _accept(process: CommandTarget, _: Message) -> Steps:
    return process.services.starting()


def _unlisten(process: CommandTarget, message: Message) -> Steps:
    service = process.services.by_name.get(message["service"])
    return None if service is None else service.keep_newest_listeners(message["keep"])


def _tls(process: CommandTarget, message: Message) -> None:
    if (service := process.services.by_name.get(message["service"])) is not None:
        service.filter_chain.make_tls_acceptor().begin_certificates(message)


def _certificate(process: CommandTarget, message: Message) -> Iterator[None]:
    service = process.services.by_name.get(message["service"])
    tls_acceptor = None if service is None else service.filter_chain.tls_acceptor
    if service is None or tls_acceptor is None:
        return
    try:
        # One certificate is loaded here, and is the whole of a step.
        is_complete = tls_acceptor.add_certificate(message)
        yield
    except OSError as error:
        # An error of OpenSSL or the system: the supervisor has loaded the same certificates.
        why = f"cannot use the certificates of {message['service']}: {error}"
        if tls_acceptor.has_certificates:
            _log.error("%s; those before stay", why)
        elif process.services.accepting:
            _log.error("%s; it does not accept", why)
        else:
            process.fail(why)
    else:
        if is_complete:
            yield from service.certificates_changed()


def _uncover(process: CommandTarget, message: Message) -> Steps:
    return process.services.giving_back(message["proxy"])


def _unlink(process: CommandTarget, message: Message) -> None:
    for service in process.services.named(message["service"]):
        if service.dispatcher is not None:
            service.dispatcher.remove_link(message["link"])
    process.send({"cmd": messages.UNLINKED, "link": message["link"]})


def _service_of_member(process: CommandTarget, message: Message) -> Service | None:
    """The service of the member that a message is about.

    None: it has no such member (any more). A message may be on its way while the member is removed,
    or may be for a member that this proxy was never told of: nothing follows from it.
    """
    services = process.services.named(message["service"])
    return next((one for one in services if one.pool.has(message["member"])), None)


def _add_member(process: CommandTarget, message: Message) -> None:
    service = process.services.by_name.get(message["service"])
    # A proxy that has just started may have been told of it by CONFIGURE.
    if service is not None and not service.pool.has(message["member"]):
        service.add_member(
            Target(
                member=message["member"],
                slot=message["slot"],
                address=message["address"],
                weight=message["weight"],
                health=message.get("health"),
            )
        )


def _remove_member(process: CommandTarget, message: Message) -> None:
    if (service := _service_of_member(process, message)) is not None:
        service.remove_member(message["member"])


def _join(process: CommandTarget, message: Message) -> None:
    service = _service_of_member(process, message)
    if service is None:
        return
    number, address = message["member"], message.get("address")
    if service.dispatcher is not None:
        service.dispatcher.use_link(service.pool.member(number), message["link"])
    elif address is not None:
        service.set_address(number, address)
    service.pool.join(number, address)
    if (reason := message.get("held")) is not None:
        service.hold_member(number, reason)
    service.health_checker.check_now(number)


def _drain_worker(process: CommandTarget, message: Message) -> None:
    if (service := _service_of_member(process, message)) is not None:
        service.pool.drain(message["member"])
        process.cut_worker(service, message["member"], message["finish"])
    # Also if it is not known: the supervisor waits for the answer, and it is not picked.
    process.send({"cmd": messages.WORKER_DRAINED, "seq": message["seq"]})


def _leave(process: CommandTarget, message: Message) -> None:
    if (service := _service_of_member(process, message)) is not None:
        service.pool.leave(message["member"])


def _hold(process: CommandTarget, message: Message) -> None:
    if (service := _service_of_member(process, message)) is not None:
        service.hold_member(message["member"], message["reason"])


def _release(process: CommandTarget, message: Message) -> None:
    if (service := _service_of_member(process, message)) is not None:
        service.release_member(message["member"])


def _confirm(process: CommandTarget, message: Message) -> None:
    if (service := _service_of_member(process, message)) is not None:
        answer = {**message, "cmd": messages.CONFIRMED}
        service.health_checker.confirm(
            message["member"], lambda reason: process.send({**answer, "reason": reason})
        )


def _drain(process: CommandTarget, message: Message) -> Steps:
    return process.draining(message["finish"], message["within"])


def _reopen(process: CommandTarget, _: Message) -> Steps:
    return process.services.reopening_logs()


def _stats(process: CommandTarget, message: Message) -> None:
    process.answer_stats(message["seq"])


_COMMANDS: Final[dict[str, Callable[[CommandTarget, Message], Steps]]] = {
    messages.TARGETS: _targets,
    messages.SERVICE: _service,
    messages.CONFIGURE: _configure,
    messages.RECONFIGURE: _reconfigure,
    messages.UPSTREAMS: _upstreams,
    messages.UNLISTEN: _unlisten,
    messages.ACCEPT: _accept,
    messages.UNCOVER: _uncover,
    messages.ADD_MEMBER: _add_member,
    messages.REMOVE_MEMBER: _remove_member,
    messages.JOIN: _join,
    messages.DRAIN_WORKER: _drain_worker,
    messages.UNLINK: _unlink,
    messages.LEAVE: _leave,
    messages.HOLD: _hold,
    messages.RELEASE: _release,
    messages.CONFIRM: _confirm,
    messages.STATS: _stats,
    messages.TLS: _tls,
    messages.CERTIFICATE: _certificate,
    messages.REOPEN: _reopen,
    messages.DRAIN: _drain,
}
