"""Asks the kernel about sockets, over netlink (sock_diag(7)).

Owns the requests and their binary form. They tell how long the queues of listening sockets are
and what overflowed, and how many TCP connections an endpoint has. The count includes those in
TIME_WAIT, which no process has a descriptor of. What the numbers mean is not known here, or to
whom a socket belongs: a socket is an inode, and an endpoint is an address.

/proc/net/tcp would not do: it has neither the limit of a queue nor its overflows, and the kernel
formats all connections of the machine as text, even if only a few are of interest.

If the kernel does not answer (no module, or a sandbox that forbids netlink), only these numbers
are missing. The rows and the time of an answer are bounded.
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

MAX_ROWS: Final = 1_000_000
"""Of one answer. An endpoint has at most 64 k connections from one address."""
_ANSWER_TIMEOUT_S: Final = 1.0
_BUFFER: Final = 1 << 16

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 0x001
_NLM_F_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence number, port."""
_ERROR_CODE: Final = struct.Struct("=i")
"""The first field of nlmsgerr, and of the message that ends an answer."""
_ATTRIBUTE: Final = struct.Struct("=HH")
"""rtattr: length, type."""

_INET_REQUEST: Final = struct.Struct("=BBBxI48x")
"""inet_diag_req_v2: family, protocol, extensions, states, and an id that is not used."""
_INET_ROW: Final = struct.Struct("=4x2s2s16s16s28xI")
_LISTENER_ROW: Final = struct.Struct("=56xII4xI")
"""Both are parts of inet_diag_msg. The first: local and remote port, local and remote address,
inode. The second, for a listener: length of its queue, limit of its queue, inode."""
_INET_DIAG_BYTECODE: Final = 1
_INET_DIAG_SKMEMINFO: Final = 7
_DROPS: Final = struct.Struct("=32xI")
"""The last of the nine numbers of SKMEMINFO: dropped packets."""

_UNIX_REQUEST: Final = struct.Struct("=BxxxIII8x")
"""unix_diag_req: family, states, inode (0), attributes to show, an unused cookie."""
_UNIX_ANSWER: Final = struct.Struct("=BBBxI8x")
"""unix_diag_msg: family, type, state, inode, cookie."""
_UDIAG_SHOW_RQLEN: Final = 0x10
_UNIX_DIAG_RQLEN: Final = 4
_LENGTHS: Final = struct.Struct("=II")

_TCP_CLOSE: Final = 1 << 7
"""The state of a UDP socket that is not connected."""
_TCP_LISTEN: Final = 1 << 10
_CONNECTED: Final = 0xFFF & ~(_TCP_LISTEN | _TCP_CLOSE)
_INET: Final = (socket.AF_INET, socket.AF_INET6)

# Conditions on ports, as inet_diag has the kernel execute them.
_CONDITION: Final = struct.Struct("=BBHBBxxi")
"""inet_diag_bc_op (code, jump if true, jump if false), then inet_diag_hostcond (family and
prefix length, both zero for any, and the port)."""
_JUMP: Final = struct.Struct("=BBH")
_BC_JMP: Final = 1
_PORT_CONDITIONS: Final = {"local": 7, "remote": 8}
_MAX_FILTER_PORTS: Final = 256
"""Ports of one filter: before it uses a filter, the kernel checks every jump in it."""

_MAPPED: Final = bytes(10) + b"\xff\xff"

Side = Literal["local", "remote"]


class TcpEndpoint(NamedTuple):
    """The local or remote side of TCP connections."""

    host: str
    """A numeric address; empty for any."""
    port: int


def queues(kinds: Collection[SocketKind]) -> dict[int, SocketQueue]:
    """The queue of every listening socket of these kinds, by inode. A kind is missing if the
    kernel does not answer."""
    found: dict[int, SocketQueue] = {}
    for kind in kinds:
        try:
            found |= _queues(kind)
        except OSError as error:
            _log.debug("the kernel does not tell about queues (%s): %s", kind, error)
    return found


def connections_to(endpoints: Collection[TcpEndpoint]) -> dict[TcpEndpoint, int] | None:
    """TCP connections from this machine to each endpoint; each uses an ephemeral port.

    None: the kernel does not answer.
    """
    return _count(endpoints, "remote", open_only=False)


def accepted(endpoints: Collection[TcpEndpoint]) -> dict[TcpEndpoint, int] | None:
    """Accepted TCP connections at each endpoint which a process has a descriptor of.

    So not those in an accept queue, or in TIME_WAIT. None: the kernel does not answer.
    """
    return _count(endpoints, "local", open_only=True)


def listeners(port: int) -> set[int]:
    """The inodes of TCP sockets that listen on the port, on whichever address. Empty as well if
    the kernel does not answer."""
    found: set[int] = set()
    try:
        for family in _INET:
            request = _inet_request(family, socket.IPPROTO_TCP, _TCP_LISTEN)
            for row in _dump(request + _port_filter({port}, "local"), _INET_ROW.size):
                sport, *_, inode = _INET_ROW.unpack_from(row)
                if int.from_bytes(sport, "big") == port:
                    found.add(inode)
    except OSError as error:
        _log.debug("the kernel does not tell about listening sockets: %s", error)
    return found


def _count(
    endpoints: Collection[TcpEndpoint], side: Side, *, open_only: bool
) -> dict[TcpEndpoint, int] | None:
    counts = dict.fromkeys(endpoints, 0)
    by_key = {key: endpoint for endpoint in endpoints if (key := _key(endpoint))}
    if not by_key:
        return counts
    port_filter = _port_filter({endpoint.port for endpoint in by_key.values()}, side)
    try:
        for family in _INET:
            request = _inet_request(family, socket.IPPROTO_TCP, _CONNECTED) + port_filter
            for row in _dump(request, _INET_ROW.size):
                sport, dport, source, destination, inode = _INET_ROW.unpack_from(row)
                if open_only and not inode:
                    continue
                port, address = (sport, source) if side == "local" else (dport, destination)
                host = _unmapped(family, address)
                for key in ((host, port), (b"", port)):
                    if endpoint := by_key.get(key):
                        counts[endpoint] += 1
    except OSError as error:
        _log.debug("the kernel does not tell about connections: %s", error)
        return None
    return counts


def _key(endpoint: TcpEndpoint) -> tuple[bytes, bytes] | None:
    """Host and port as the kernel writes them; None if the host is no numeric address."""
    port = endpoint.port.to_bytes(2, "big")
    if not endpoint.host:
        return b"", port
    try:
        address = ip_address(endpoint.host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.packed, port


def _unmapped(family: int, address: bytes) -> bytes:
    if family == socket.AF_INET:
        return address[:4]
    return address[12:] if address.startswith(_MAPPED) else address


def _port_filter(ports: Collection[int], side: Side) -> bytes:
    """An attribute with bytecode that accepts connections with one of these ports at this side.

    Each port has a condition and a jump. The jump leads to the end of the code, which accepts.
    If the condition is false, it skips the jump. The last condition has no jump: if it is false,
    it skips beyond the end of the code, which rejects.
    """
    if len(ports) > _MAX_FILTER_PORTS:
        return b""
    condition_code, block_size = _PORT_CONDITIONS[side], _CONDITION.size + _JUMP.size
    bytecode = b""
    for ports_left, port in zip(range(len(ports) - 1, -1, -1), sorted(ports), strict=True):
        bytecode += _CONDITION.pack(condition_code, _CONDITION.size, block_size, 0, 0, port)
        if ports_left:
            # A jump counts from its own start. The last block has no jump, so the sizes match.
            bytecode += _JUMP.pack(_BC_JMP, _JUMP.size, ports_left * block_size)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(bytecode), _INET_DIAG_BYTECODE) + bytecode


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
        request = _inet_request(family, protocol, states, ask_for_drops)
        for row in _dump(request, _LISTENER_ROW.size):
            length, limit, inode = _LISTENER_ROW.unpack_from(row)
            drops = _attributes(row[_LISTENER_ROW.size :]).get(_INET_DIAG_SKMEMINFO, b"")
            overflows = _DROPS.unpack_from(drops)[0] if len(drops) >= _DROPS.size else None
            if protocol == socket.IPPROTO_UDP:
                length = limit = None
            yield inode, SocketQueue(length, limit, overflows)


def _unix_queues() -> Iterator[tuple[int, SocketQueue]]:
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, _TCP_LISTEN, 0, _UDIAG_SHOW_RQLEN)
    for row in _dump(request, _UNIX_ANSWER.size):
        inode = _UNIX_ANSWER.unpack_from(row)[3]
        lengths = _attributes(row[_UNIX_ANSWER.size :]).get(_UNIX_DIAG_RQLEN, b"")
        if len(lengths) >= _LENGTHS.size:
            waiting, limit = _LENGTHS.unpack_from(lengths)
            # A connect to a full queue blocks, or fails with EAGAIN: nothing overflows.
            yield inode, SocketQueue(waiting, limit, None)


def _inet_request(family: int, protocol: int, states: int, extensions: int = 0) -> bytes:
    return _INET_REQUEST.pack(family, protocol, extensions, states)


def _dump(request: bytes, min_size: int) -> Iterator[bytes]:
    """Every row of the answer with at least `min_size` bytes. OSError: the kernel refuses."""
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    size = _HEADER.size + len(request)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_ANSWER_TIMEOUT_S)
        sock.sendto(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + request, (0, 0))
        rows = 0
        while True:
            for kind, payload in _messages(sock.recv(_BUFFER)):
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    _raise_error(payload)
                    return
                if len(payload) >= min_size:
                    yield payload
                    rows += 1
                    if rows >= MAX_ROWS:
                        return


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += _aligned(length)


def _raise_error(payload: bytes) -> None:
    code = _ERROR_CODE.unpack_from(payload)[0] if len(payload) >= _ERROR_CODE.size else 0
    if code < 0:
        raise OSError(-code, os.strerror(-code))


def _attributes(data: bytes) -> Mapping[int, bytes]:
    attributes = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        attributes[kind] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return attributes


def _aligned(length: int) -> int:
    return (length + 3) & ~3
