"""What the kernel knows of sockets, asked over netlink (sock_diag(7)).

Owns the questions and their binary form: how full the queues of listening sockets are and
what did not fit into them, and how many TCP connections there are to or at a place, those in
TIME_WAIT included, which no process has a descriptor of. What the figures mean is not known
here, nor whose sockets they are: a socket is an inode, and a place is an address.

Why not /proc/net/tcp: it has neither a queue's limit nor what overflowed, and the kernel
formats every connection of the machine as text for whoever wants to know about a few.

A kernel that does not answer (no module, a sandbox that forbids netlink) costs the figures and
nothing else. What is read is bounded, in rows and in the time that one answer may take.
"""

import errno
import logging
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal, NamedTuple

from penstock_supervisor.snapshot import SocketKind, SocketQueue

_log = logging.getLogger("penstock.supervisor")

MOST_ROWS: Final = 1_000_000
"""Of one answer. A place has at most 64 k connections from one address."""
_ANSWER_S: Final = 1.0
_BUFFER: Final = 1 << 16

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 0x001
_NLM_F_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence number, port."""
_CODE: Final = struct.Struct("=i")
"""nlmsgerr begins with it, and so does what ends an answer."""
_ATTRIBUTE: Final = struct.Struct("=HH")
"""rtattr: length, type."""

_INET_REQUEST: Final = struct.Struct("=BBBxI48x")
"""inet_diag_req_v2: family, protocol, extensions, states, and an id that is not used."""
_ENDS: Final = struct.Struct("=4x2s2s16s16s28xI")
_QUEUE: Final = struct.Struct("=56xII4xI")
"""Both of inet_diag_msg: the ports and addresses here and there, and the inode; and of one
that listens the lengths of its queue and of the most that it may be, and the inode."""
_INET_DIAG_BYTECODE: Final = 1
_INET_DIAG_SKMEMINFO: Final = 7
_DROPS: Final = struct.Struct("=32xI")
"""The last of the nine numbers of SKMEMINFO."""

_UNIX_REQUEST: Final = struct.Struct("=BxxxIII8x")
"""unix_diag_req: family, states, inode (0), what to show, a cookie that is not used."""
_UNIX_ANSWER: Final = struct.Struct("=BBBxI8x")
"""unix_diag_msg: family, type, state, inode, cookie."""
_UDIAG_SHOW_RQLEN: Final = 0x10
_UNIX_DIAG_RQLEN: Final = 4
_LENGTHS: Final = struct.Struct("=II")

_TCP_CLOSE: Final = 1 << 7
"""Of a UDP socket: nobody is connected to it."""
_TCP_LISTEN: Final = 1 << 10
_CONNECTED: Final = 0xFFF & ~(_TCP_LISTEN | _TCP_CLOSE)
_INET: Final = (socket.AF_INET, socket.AF_INET6)

# Conditions on ports, as inet_diag has the kernel execute them.
_CONDITION: Final = struct.Struct("=BBHBBxxi")
"""inet_diag_bc_op (code, where to go if it holds, and if not), then inet_diag_hostcond
(family and length of prefix: any, and the port)."""
_JUMP: Final = struct.Struct("=BBH")
_BC_JMP: Final = 1
_CODES: Final = {"here": 7, "there": 8}
_MOST_PORTS: Final = 256
"""Of one program: the kernel follows every jump before it takes one."""

_MAPPED: Final = bytes(10) + b"\xff\xff"

End = Literal["here", "there"]


class Place(NamedTuple):
    """One end of TCP connections."""

    host: str
    """A numeric address; empty for any."""
    port: int


def queues(kinds: Collection[SocketKind]) -> dict[int, SocketQueue]:
    """Every listening socket of these kinds by inode, as far as the kernel tells."""
    found: dict[int, SocketQueue] = {}
    for kind in kinds:
        try:
            found |= _queues(kind)
        except OSError as error:
            _log.debug("the kernel does not tell about queues (%s): %s", kind, error)
    return found


def connections_to(places: Collection[Place]) -> dict[Place, int] | None:
    """TCP connections from here to each of these; each has an ephemeral port to itself.

    None: the kernel does not tell.
    """
    return _counted(places, "there", held=False)


def accepted(places: Collection[Place]) -> dict[Place, int] | None:
    """TCP connections at each of these that some process has a descriptor of.

    One that still waits to be accepted is none, nor is one that has no process any more.
    None: the kernel does not tell.
    """
    return _counted(places, "here", held=True)


def _counted(places: Collection[Place], end: End, *, held: bool) -> dict[Place, int] | None:
    counts = dict.fromkeys(places, 0)
    keys = {key: place for place in places if (key := _key(place))}
    if not keys:
        return counts
    rules = _program({place.port for place in keys.values()}, end)
    try:
        for family in _INET:
            question = _question(family, socket.IPPROTO_TCP, _CONNECTED) + rules
            for row in _dump(question, _ENDS.size):
                sport, dport, source, target, inode = _ENDS.unpack_from(row)
                if held and not inode:
                    continue
                port, address = (sport, source) if end == "here" else (dport, target)
                host = _host(family, address)
                for key in ((host, port), (b"", port)):
                    if place := keys.get(key):
                        counts[place] += 1
    except OSError as error:
        _log.debug("the kernel does not tell about connections: %s", error)
        return None
    return counts


def _key(place: Place) -> tuple[bytes, bytes] | None:
    """As the kernel has it; None for what is no numeric address."""
    port = place.port.to_bytes(2, "big")
    if not place.host:
        return b"", port
    try:
        address = ip_address(place.host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.packed, port


def _host(family: int, address: bytes) -> bytes:
    if family == socket.AF_INET:
        return address[:4]
    return address[12:] if address.startswith(_MAPPED) else address


def _program(ports: Collection[int], end: End) -> bytes:
    """An attribute with rules that hold for a connection with one of these ports at this end.

    For each port its condition, and a jump to the very end, which means yes; the condition
    skips the jump if it does not hold, and the last one goes beyond the end, which means no.
    """
    if len(ports) > _MOST_PORTS:
        return b""
    code, step = _CODES[end], _CONDITION.size + _JUMP.size
    program = b""
    for left, port in zip(range(len(ports) - 1, -1, -1), sorted(ports), strict=True):
        program += _CONDITION.pack(code, _CONDITION.size, step, 0, 0, port)
        if left:
            # The last condition has no jump of its own: as long as this jump is.
            program += _JUMP.pack(_BC_JMP, _JUMP.size, left * step)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(program), _INET_DIAG_BYTECODE) + program


def _queues(kind: SocketKind) -> Iterator[tuple[int, SocketQueue]]:
    match kind:
        case "tcp":
            return _inet_queues(socket.IPPROTO_TCP, _TCP_LISTEN)
        case "udp":
            return _inet_queues(socket.IPPROTO_UDP, _TCP_CLOSE)
        case "unix":
            return _unix_queues()


def _inet_queues(protocol: int, states: int) -> Iterator[tuple[int, SocketQueue]]:
    ask_for_drops = 1 << (_INET_DIAG_SKMEMINFO - 1)
    for family in _INET:
        for row in _dump(_question(family, protocol, states, ask_for_drops), _QUEUE.size):
            length, limit, inode = _QUEUE.unpack_from(row)
            drops = _attributes(row[_QUEUE.size :]).get(_INET_DIAG_SKMEMINFO, b"")
            overflows = _DROPS.unpack_from(drops)[0] if len(drops) >= _DROPS.size else None
            if protocol == socket.IPPROTO_UDP:
                length = limit = None
            yield inode, SocketQueue(length, limit, overflows)


def _unix_queues() -> Iterator[tuple[int, SocketQueue]]:
    question = _UNIX_REQUEST.pack(socket.AF_UNIX, _TCP_LISTEN, 0, _UDIAG_SHOW_RQLEN)
    for row in _dump(question, _UNIX_ANSWER.size):
        inode = _UNIX_ANSWER.unpack_from(row)[3]
        lengths = _attributes(row[_UNIX_ANSWER.size :]).get(_UNIX_DIAG_RQLEN, b"")
        if len(lengths) >= _LENGTHS.size:
            waiting, limit = _LENGTHS.unpack_from(lengths)
            # Who finds it full waits, or is told: nothing overflows.
            yield inode, SocketQueue(waiting, limit, None)


def _question(family: int, protocol: int, states: int, extensions: int = 0) -> bytes:
    return _INET_REQUEST.pack(family, protocol, extensions, states)


def _dump(question: bytes, least: int) -> Iterator[bytes]:
    """Every row of the answer, each of `least` bytes or more. OSError: the kernel will not."""
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    size = _HEADER.size + len(question)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_ANSWER_S)
        sock.sendto(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + question, (0, 0))
        rows = 0
        while True:
            for kind, payload in _messages(sock.recv(_BUFFER)):
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    _raise_for(payload)
                    return
                if len(payload) >= least:
                    yield payload
                    rows += 1
                    if rows >= MOST_ROWS:
                        return


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
        yield kind, data[at + _HEADER.size : at + length]
        at += _aligned(length)


def _raise_for(payload: bytes) -> None:
    code = _CODE.unpack_from(payload)[0] if len(payload) >= _CODE.size else 0
    if code < 0:
        raise OSError(-code, os.strerror(-code))


def _attributes(data: bytes) -> Mapping[int, bytes]:
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3
