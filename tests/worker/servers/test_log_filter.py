"""Malformed requests of clients leave no traceback in the log; errors of a program do."""

import asyncio
import logging

import pytest
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from penstock_worker.servers.log_filter import filtered_logger

NAME = "aiohttp.server.penstock.test"


def logged(caplog: pytest.LogCaptureFixture, error: Exception, level: int) -> int:
    """How many records a logger with this level keeps of one error."""
    logger = filtered_logger(NAME)
    with caplog.at_level(level, NAME):
        logger.error("Error handling request", exc_info=error)
    return len(caplog.records)


@pytest.mark.parametrize(
    ("error", "level", "kept"),
    [
        (BadHttpMessage("400"), logging.INFO, 0),
        (BadHttpMessage("400"), logging.DEBUG, 1),
        (ValueError("a fault of the program"), logging.INFO, 1),
    ],
)
def test_only_malformed_requests_are_dropped_and_only_above_debug(
    caplog: pytest.LogCaptureFixture, error: Exception, level: int, kept: int
) -> None:
    assert logged(caplog, error, level) == kept


async def test_garbage_on_a_connection_is_answered_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = web.Server(lambda _: asyncio.sleep(0, web.Response()), logger=filtered_logger(NAME))
    site = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection(*site.sockets[0].getsockname())
        writer.write(b"\x16\x03\x01 not HTTP at all\r\n\r\n")
        async with asyncio.timeout(20):
            assert (await reader.readline()).startswith(b"HTTP/1.0 400 ")
        writer.close()
        await writer.wait_closed()
    finally:
        site.close()
        await server.shutdown()
    assert [record for record in caplog.records if record.name == NAME] == []
