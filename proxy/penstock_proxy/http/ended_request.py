"""The end of a request: counted and logged once, and both of its connections released.

Owns: what is told of a request that has failed, to its client and in the log, and that whatever it
held is given back. Must not know: how a request or response is forwarded (`exchange`, which derives
from this), and how a worker is found (`upstream_request`).
"""

from time import monotonic
from typing import Final

from penstock_proxy import errors
from penstock_proxy.errors import Fault
from penstock_proxy.http.retried_request import RetriedRequest
from penstock_proxy.metrics import METHODS, OTHER
from penstock_proxy.tcp.duplex import NO_FAULT

_LABELS: Final = {method.encode(): method for method in METHODS}


class EndedRequest(RetriedRequest):
    """A request that ends."""

    # Defaults of the class, as in its base.
    first_byte_s: float | None = None
    status = 0
    sent = 0
    """Bytes of the response's body."""
    received = 0
    """Bytes of the request's body."""
    answered = False
    """The client has its whole response, and its body still goes to the worker."""
    request_id: bytes
    request_done: bool
    """All of the request has come."""
    _keep_alive: bool
    """The client's connection is kept after this."""

    def client_disconnected(self) -> None:
        """The client has disconnected: abort the request to the worker."""
        if self.answered:
            self._give_up_rest()
            return
        self.stop_trying()
        self.client.service.counters.errors[errors.CLIENT_GONE.kind] += 1
        self._keep_alive = False
        self.drop_connection()
        self._finish(monotonic(), errors.CLIENT_GONE.kind, keep_alive=False)

    def fail(self, fault: Fault, reason: str) -> None:
        """Count and log a fault, and end the exchange with it."""
        if self.answered:
            self._give_up_rest()
            return
        client = self.client
        client.service.error_log.request_failed(
            self.line, client.address, fault, reason, self.member, cut=self.response_started
        )
        client.service.counters.errors[fault.kind] += 1
        self._end_with(fault)

    def _give_up_rest(self) -> None:
        """The client has its whole response, and the rest of its body does not come."""
        self._keep_alive = False
        self.drop_connection()
        self._finish(monotonic(), NO_FAULT, keep_alive=False)

    def refuse(self, fault: Fault) -> None:
        """End the exchange: no attempt is left. Failed attempts have had their faults counted."""
        if self.retries:
            client = self.client
            client.service.error_log.request_failed(
                self.line, client.address, fault, "no worker is left to try", None
            )
            self._end_with(fault)
        else:
            self.fail(fault, "")

    def _end_with(self, fault: Fault) -> None:
        """Send an error response, or cut the response off if it has started."""
        client = self.client
        service = client.service
        if fault in errors.REJECTED:
            service.counters.rejected[fault.kind] += 1
        self.stop_trying()
        self.drop_connection()
        if self.response_started or not fault.status:
            service.counters.broken_off += fault.side is not errors.Side.CLIENT
            self._finish(monotonic(), fault.kind, keep_alive=False, truncated=True)
            return
        self.status = fault.status
        keep_alive = self._keep_alive and self.request_done and not service.stopping
        self.sent = client.send_error(fault, self.line, keep_alive=keep_alive)
        self._finish(monotonic(), fault.kind, keep_alive=keep_alive)

    def _finish(
        self, now: float, termination: str, *, keep_alive: bool, truncated: bool = False
    ) -> None:
        """Count and log the exchange, and release both connections. Every exchange ends here, or
        with `whole_response`."""
        self.count(now - self.started, termination)
        self._release(now, keep_alive=keep_alive, truncated=truncated)

    def _release(self, now: float, *, keep_alive: bool, truncated: bool) -> None:
        """Release the worker and both connections."""
        client = self.client
        service = client.service
        connection, self.connection = self.connection, None
        self.release_member()
        if connection is not None:
            connection.receiver = None
            if connection.max_idle_s and self.request_done and not connection.blocked:
                service.connections.put(connection, now)
            else:
                # Not `close`: a worker that has responded may never read the rest of the request.
                connection.transport.abort()
        client.exchange_over(keep_alive=keep_alive, truncated=truncated)

    def count(self, total_s: float, termination: str) -> None:
        """Count and log the exchange: once, at its end, after `total_s` seconds."""
        self.client.service.counters.durations[self.member].observe(total_s)
        self._record(total_s, termination)

    def _record(self, total_s: float, termination: str) -> None:
        """Count the request and log it. Its duration is counted by the caller."""
        client, line, member = self.client, self.line, self.member
        service = client.service
        log = service.error_log
        service.counters.requests[_LABELS.get(line.method, OTHER), self.status, member] += 1
        if log.access_log is not None:
            log.access_log.add(
                self.started + total_s + log.wall_offset, client.address,
                line.method, line.target, "HTTP/1.1" if line.minor else "HTTP/1.0",
                self.status, self.sent, self.received, log.worker_name(member), self.connect_s,
                self.first_byte_s, total_s, self.retries, self.request_id.decode("latin-1"),
                termination, self.prepared.fields, client.tls,
            )  # fmt: skip
