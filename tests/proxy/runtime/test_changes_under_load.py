"""Much changes at once, again and again, while requests are served."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.proxy.running_proxy import Client, RunningProxy, running_proxy, until

from penstock_proxy.config import ServiceConfig

OTHER_SETTINGS: dict[str, Any] = {
    "access_log_format": "combined",
    "balance": "least_connections",
    "trusted_proxies": ("127.0.0.0/8",),
    "forwarding": {"x_forwarded": False, "forwarded": True, "via": ""},
    "timeouts": {"head": 20.0, "keepalive": 30.0, "response": 40.0, "total": 50.0},
    "limits": {"per_worker": 3, "head": 2048, "response_head": 2048, "queue": 5000},
    "health": {"path": "/check", "interval": 0.05},
    "ejection": {"failures": 2, "panic": 0.0},
    "max_connections": 1000,
}


@pytest.fixture
async def proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy() as running:
        yield running


class Load:
    """Clients that send one request after the other until they are told to stop."""

    def __init__(self) -> None:
        self.answered = 0
        self.stopping = False

    async def run(self, client: Client) -> None:
        while not self.stopping:
            assert await client.get() == b"w"
            assert client.head.startswith(b"HTTP/1.1 200 ")
            self.answered += 1


def logged(path: Path) -> int:
    """Requests in a log that has lines of both formats."""
    with path.open() as file:
        return sum(" 200 " in line or '"status":200' in line for line in file)


async def change(proxy: RunningProxy, *configs: ServiceConfig) -> None:
    """A hundred times, with a tunnel that lives on."""
    tunnel = await proxy.client("web")
    await tunnel.upgrade()
    for number in range(100):
        assert await proxy.reconfigure(configs[number % len(configs)]) == ""
        assert await tunnel.echo(b"ping") == b"ping"


async def test_settings_change_a_hundred_times_under_load_and_no_request_fails(
    proxy: RunningProxy, tmp_path: Path
) -> None:
    workers = [await proxy.worker("w") for _ in range(2)]
    targets = [proxy.target(worker, slot) for slot, worker in enumerate(workers)]
    log, load = tmp_path / "log", Load()
    plain = proxy.service("web", *targets, access_log=str(log))
    other = proxy.service("web", *targets, access_log=str(log), **OTHER_SETTINGS)
    await proxy.start(plain)
    clients = [await proxy.client("web") for _ in range(8)]
    tasks = [proxy.loop.create_task(load.run(client)) for client in clients]
    await change(proxy, other, plain)
    load.stopping = True
    for task in tasks:
        await task
    counts = (await proxy.stats())["metrics"]["services"]["web"]["penstock_requests_total"]
    assert sum(counts.values()) == load.answered
    assert {key.rpartition(" ")[2] for key in counts} == {"200"}
    await until(lambda: logged(log) == load.answered)
    whole = [head for worker in workers for head in worker.heads if b"\r\nX-Request-ID: " in head]
    assert len(whole) == load.answered + 1, "the tunnel's, and each request, as a whole"
