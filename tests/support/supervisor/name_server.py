"""A name server on a port of this machine, over UDP and TCP, whose records a test changes."""

import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

MAX_DATAGRAM = 512
"""A longer answer is truncated, and asked for again over TCP."""


class NameServer:
    """Answers for all names: those without a record do not exist."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        """Questions by `name type`, in the order of the first."""
        self.over_tcp = 0
        self.is_silent = False
        self.nonsense: list[bytes] = []
        """Sent before each answer over UDP."""
        self.rcode = dns.rcode.NOERROR
        """Of all answers, if it is no other than this."""
        self.loops = False
        """Each name is an alias of another one, which is an alias of it."""
        self._lock = threading.Lock()
        self._records: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {}
        self._silent_about: set[str] = set()
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", self._port))
        self._threads = [
            threading.Thread(target=serve, daemon=True)
            for serve in (self._serve_udp, self._serve_tcp)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def set(self, name: str, kind: str, *values: str, ttl: int = 1) -> None:
        """The records of this name and kind, instead of those before."""
        with self._lock:
            self._records[name, kind] = ttl, values

    def remove(self, name: str) -> None:
        with self._lock:
            self._records = {key: one for key, one in self._records.items() if key[0] != name}

    def say_nothing_about(self, *questions: str) -> None:
        """`name type`, each. From now on only these are not answered."""
        with self._lock:
            self._silent_about = set(questions)

    def close(self) -> None:
        # A thread that waits in one of these calls hears it.
        for sock in (self._udp, self._tcp):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self) -> None:
        while True:
            try:
                query, client = self._udp.recvfrom(4096)
            except OSError:
                return
            if not query:
                return
            answer = self._answer(query)
            for wire in self.nonsense:
                self._udp.sendto(wire, client)
            if answer is not None:
                wire = answer.to_wire()
                if len(wire) > MAX_DATAGRAM:
                    short = dns.message.make_response(dns.message.from_wire(query))
                    short.flags |= dns.flags.TC
                    wire = short.to_wire()
                self._udp.sendto(wire, client)

    def _serve_tcp(self) -> None:
        while True:
            try:
                client, _ = self._tcp.accept()
            except OSError:
                return
            with client, suppress(OSError, struct.error):
                client.settimeout(60)
                (length,) = struct.unpack("!H", client.recv(2))
                answer = self._answer(client.recv(length))
                self.over_tcp += 1
                if answer is not None:
                    wire = answer.to_wire(max_size=65535)
                    client.sendall(struct.pack("!H", len(wire)) + wire)

    def _answer(self, wire: bytes) -> Any:
        query = dns.message.from_wire(wire)
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        with self._lock:
            self.asked[f"{name} {kind}"] += 1
            if self.is_silent or f"{name} {kind}" in self._silent_about:
                return None
            response = dns.message.make_response(query)
            response.flags |= dns.flags.RA
            if self.loops:
                for one, two in ((f"{name}.", "other."), ("other.", f"{name}.")):
                    response.answer.append(dns.rrset.from_text(one, 1, "IN", "CNAME", two))
            elif self.rcode != dns.rcode.NOERROR:
                response.set_rcode(self.rcode)
            elif not any(known == name for known, _ in self._records):
                response.set_rcode(dns.rcode.NXDOMAIN)
            else:
                response.answer.extend(self._found(name, kind))
            return response

    def _found(self, name: str, kind: str) -> Iterator[dns.rrset.RRset]:
        for one in (kind, "CNAME"):
            if (name, one) in self._records:
                ttl, values = self._records[name, one]
                yield dns.rrset.from_text(f"{name}.", ttl, "IN", one, *values)
                if one != kind:
                    yield from self._found(values[0].removesuffix("."), kind)
                return


@contextmanager
def name_server() -> Iterator[NameServer]:
    server = NameServer()
    try:
        yield server
    finally:
        server.close()
