"""A channel exchanges messages and every kind of socket with a real Node child process.

Covers `channel/channel` and `channel/framing`.
"""

import asyncio
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.worker.peers import (
    DEADLINE_S,
    Peer,
    bound_udp,
    listening,
    tcp_pair,
    unix_pair,
)

from penstock_worker.channel.channel import pair

NODE = """
const net = require('net'), dgram = require('dgram'), fs = require('fs')
const path = process.argv[2]
const serve = server => server.on('connection', s => s.end('node'))
process.on('message', (message, handle) => {
  if (message.take === 'server') serve(handle)
  else if (message.take === 'socket') handle.end('node')
  else if (message.take === 'udp') handle.on('message', (m, from) => handle.send('node', from.port))
  else if (message.give === 'server' || message.give === 'unix') {
    const server = net.createServer()
    const where = message.give === 'unix' ? path : {port: 0, host: '127.0.0.1'}
    server.listen(where, () => process.send({given: message.give}, server))
  } else if (message.give === 'socket') {
    const server = net.createServer({pauseOnConnect: true})
    server.on('connection', s => { process.send({given: 'socket'}, s); server.close() })
    server.listen(0, '127.0.0.1', () => process.send({port: server.address().port}))
  } else if (message.give === 'udp') {
    const udp = dgram.createSocket('udp4')
    udp.bind(0, '127.0.0.1', () => process.send({given: 'udp'}, udp))
  } else if (message === 'leave') { process.disconnect() }
  process.send({echo: message, handle: handle ? handle.constructor.name : null})
})
process.on('disconnect', () => process.exit(7))
process.send('hello from node')
"""


@pytest.fixture
def node(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> Iterator[tuple[Peer, subprocess.Popen[bytes]]]:
    script = tmp_path / "child.js"
    script.write_text(NODE)
    ours, theirs = pair()
    environment = {
        **os.environ,
        "NODE_CHANNEL_FD": str(theirs.fileno()),
        "NODE_CHANNEL_SERIALIZATION_MODE": "json",
    }
    with tempfile.TemporaryDirectory(prefix="ch") as short:
        child = subprocess.Popen(
            ["node", script, f"{short}/s"], env=environment, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        peer = Peer(loop, ours)
        try:
            peer.until(lambda: peer.messages == ["hello from node"])
            peer.messages.clear()
            yield peer, child
        finally:
            child.kill()
            child.wait()
            peer.close()


def echoed(peer: Peer, message: Any) -> str | None:
    """The class of the handle that Node received with this message."""
    answers: list[Any] = []

    def came() -> bool:
        answers[:] = [m for m in peer.messages if isinstance(m, dict) and m.get("echo") == message]
        return bool(answers)

    peer.until(came)
    found: str | None = answers[0]["handle"]
    return found


@pytest.mark.needs("node")
def test_node_takes_every_kind_of_socket(
    node: tuple[Peer, subprocess.Popen[bytes]], stack: ExitStack
) -> None:
    peer, _ = node
    listener, (served, client) = listening(stack), tcp_pair(stack)
    near, far = unix_pair(stack)
    udp, asker = bound_udp(stack), bound_udp(stack)
    asker.settimeout(DEADLINE_S)
    for number, (message, handle, kind) in enumerate(
        (
            ({"take": "server"}, listener, "Server"),
            ({"take": "socket"}, served, "Socket"),
            ({"take": "socket", "unix": True}, near, "Socket"),
            ({"take": "udp"}, udp, "Socket"),
        )
    ):
        assert peer.channel.send(message, handle, peer.notes(number))
        assert echoed(peer, message) == kind
    assert peer.outcomes == [(number, True) for number in range(4)]
    public, address = listener.getsockname(), udp.getsockname()
    for handle in (listener, served, near, udp):
        handle.close()
    with socket.create_connection(public, DEADLINE_S) as late_client:
        assert late_client.recv(9) == b"node"
    asker.sendto(b"?", address)
    assert asker.recvfrom(9) == (b"node", address)
    assert client.recv(9) == far.recv(9) == b"node"


@pytest.mark.needs("node")
def test_node_sends_every_kind_of_socket(node: tuple[Peer, subprocess.Popen[bytes]]) -> None:
    peer, child = node
    for kind in ("server", "unix", "udp"):
        peer.channel.send({"give": kind})
        peer.until(lambda: {"given": kind} in peer.messages)  # noqa: B023 -- called before the next
    server, unix, udp = peer.handles
    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert (unix.family, udp.type) == (socket.AF_UNIX, socket.SOCK_DGRAM)
    assert udp.getsockname()[0] == "127.0.0.1"
    peer.channel.send({"give": "socket"})
    peer.until(lambda: any(isinstance(m, dict) and "port" in m for m in peer.messages))
    (port,) = (m["port"] for m in peer.messages if isinstance(m, dict) and "port" in m)
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client:
        peer.until(lambda: {"given": "socket"} in peer.messages)
        peer.handles[3].send(b"python")
        assert client.recv(9) == b"python"
    # Everything was acknowledged: Node's queue is empty, so it can disconnect.
    peer.channel.send("leave")
    peer.until(lambda: peer.disconnects == 1)
    assert child.wait(DEADLINE_S) == 7
    assert peer.channel.fault == ""


@pytest.mark.needs("node")
def test_node_and_a_channel_send_each_other_many_handles_at_once(
    node: tuple[Peer, subprocess.Popen[bytes]], stack: ExitStack
) -> None:
    peer, child = node
    for number in range(30):
        peer.channel.send({"give": "udp"})
        peer.channel.send({"take": "socket", "n": number}, tcp_pair(stack)[0], peer.notes(number))
    peer.until(lambda: len(peer.outcomes) == 30 and len(peer.handles) == 30)
    assert peer.outcomes == [(number, True) for number in range(30)]
    assert child.poll() is None
