"""A `sys.exit` in a task lets a worker finish what it serves, and leave with that status."""

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import pytest
from tests.worker.runtime.test_uncaught import get, until

from penstock_worker import contract
from penstock_worker.runtime import program_exit

if TYPE_CHECKING:
    from tests.worker.conftest import Served

    Serve = Callable[..., Served]


def test_a_worker_whose_program_exits_asks_for_a_successor_and_serves_until_term(
    serve: "Serve",
) -> None:
    served = serve("retires:app")
    port = served.port()
    assert get(port, "/throw/exit") == (200, "exit")
    message = served.receive()
    assert message["cmd"] == contract.RETIRE
    assert message["reason"].startswith('sys.exit with status 3 ("')
    assert get(port) == (200, "hello")
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 3
    assert "the program called sys.exit with status 3" in served.stderr()
    assert "never retrieved" not in served.stderr()


def test_without_a_supervisor_it_leaves_with_that_status(serve: "Serve") -> None:
    served = serve("retires:app", supervised=False)
    until(lambda: "\n" in served.stderr())
    (port,) = served.listening()
    assert get(port, "/throw/exit") == (200, "exit")
    assert served.exit_status() == 3


def test_in_a_requests_handler_it_is_an_error_of_that_request(serve: "Serve") -> None:
    served = serve("retires:app")
    port = served.port()
    assert get(port, "/throw/exit-handler")[0] == 500
    assert get(port) == (200, "hello")
    served.send({"cmd": contract.PING, "seq": 1})
    assert served.receive()["cmd"] == contract.PONG


def leave() -> NoReturn:
    sys.exit(7)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("callback", "status", "kind"),
    [(leave, 7, "sys.exit"), (interrupt, 130, "KeyboardInterrupt")],
)
def test_the_main_task_goes_on_as_often_as_it_is_allowed_to(
    callback: Callable[[], NoReturn], status: int, kind: str
) -> None:
    asked: list[tuple[int, str]] = []

    async def main() -> int:
        for _ in range(3):
            asyncio.get_running_loop().call_soon(callback)
            await asyncio.sleep(0.001)
        return 5

    def on_exit(status: int, reason: str) -> bool:
        asked.append((status, reason))
        return True

    with asyncio.Runner() as runner:
        assert program_exit.run(runner, main(), on_exit) == 5
    assert [found for found, _ in asked] == [status] * 3
    assert asked[0][1].startswith(f"{kind} with status {status}")


def test_what_is_not_allowed_to_go_on_ends_at_once() -> None:
    async def main() -> int:
        asyncio.get_running_loop().call_soon(leave)
        await asyncio.sleep(1000)
        return 5

    with asyncio.Runner() as runner, pytest.raises(SystemExit) as ended:
        program_exit.run(runner, main(), lambda *_: False)
    assert ended.value.code == 7


def test_an_exit_of_the_main_task_itself_is_not_asked_about() -> None:
    async def main() -> int:
        leave()

    with asyncio.Runner() as runner, pytest.raises(SystemExit):
        program_exit.run(runner, main(), lambda *_: pytest.fail("nobody to go on"))


@pytest.mark.parametrize(("code", "status"), [(None, 0), (0, 0), (3, 3), ("a message", 1), ([], 1)])
def test_a_status_is_pythons_own(code: object, status: int) -> None:
    assert program_exit.exit_status(SystemExit(code)) == status
