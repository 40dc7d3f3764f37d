"""Channels on asyncio and uvloop, over real socket pairs; a leaked descriptor fails the test."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import uvloop
from tests.support.worker.peers import Peer, open_targets

from penstock_worker.channel.channel import pair


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    made = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def two(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Peer, Peer]]:
    before = open_targets()
    left, right = (Peer(loop, end) for end in pair())
    yield left, right
    left.close()
    right.close()
    assert open_targets() == before


@pytest.fixture
def ends(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Peer, socket.socket]]:
    """A channel and the bare end of its peer, which may break the rules."""
    before = open_targets()
    ours, theirs = pair()
    peer = Peer(loop, ours)
    yield peer, theirs
    peer.close()
    theirs.close()
    assert open_targets() == before
