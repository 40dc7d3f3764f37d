"""Workers that retire or are replaced lose no request, and end in time."""

import asyncio
import signal
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.support.live import stopping_programs
from tests.support.live.many_clients import SCHEMES, failures, once, pids, request_many, settled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock


@pytest.mark.parametrize("path", ["/retire", "/throw"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_worker_that_retires_under_load_loses_no_request(
    penstock: "Penstock", program: str, scheme: str, path: str
) -> None:
    keys = {"on_uncaught": "retire"} if path == "/throw" else {}
    run = penstock(app=program, scheme=scheme, workers=2, health={"path": "/healthz"}, **keys)
    run.may_trace = path == "/throw"
    before = pids(run)
    retired: list[str] = []

    async def load() -> list[str]:
        address = run.address()
        # One that is being served when its worker has to retire, whichever that is.
        long = [asyncio.create_task(once(address, b"/slow?s=1")) for _ in range(8)]
        answers = await request_many(address, 200)
        retired.append(await once(address, path.encode()))
        more = await request_many(address, 3_000)
        return [*answers, *more, *(await asyncio.gather(*long))]

    answers = asyncio.run(load())
    assert not [one for one in answers if not one.startswith(("hello", "slept"))]
    gone = int(retired[0])
    settled(run, 2, {gone})
    assert before - pids(run) == {gone}
    run.until(lambda: not psutil.pid_exists(gone))
    reason = "had enough" if path == "/retire" else "nobody catches this"
    assert reason in run.err
    assert ("RuntimeError" in run.err) is (path == "/throw")
    assert run.metric("penstock_child_restarts_total", reason="retire") == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_workers_are_replaced_under_load_and_no_request_fails(
    penstock: "Penstock", program: str, scheme: str
) -> None:
    run = penstock(app=program, scheme=scheme, workers=2, health={"path": "/healthz"})
    before = pids(run)
    run.process.send_signal(signal.SIGHUP)
    failed: list[str] = []
    while "has succeeded" not in run.err:
        failed += failures(asyncio.run(request_many(run.address(), 200)))
        run.look()
        assert run.process.poll() is None
    assert not failed
    settled(run, 2, before)
    run.until(lambda: not any(psutil.pid_exists(pid) for pid in before))


def test_a_worker_that_retires_and_does_not_exit_is_killed(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    stopping_programs.write(tmp_path)
    run = penstock(app="aio:app", workers=2, timeouts={"stop": "1s"})
    wire = run.connect()
    wire.send(b"GET /stubborn HTTP/1.1\r\nHost: x\r\n\r\n")
    run.until((tmp_path / "begun-stubborn").exists)
    before = pids(run)
    run.process.send_signal(signal.SIGHUP)
    settled(run, 2, before)
    assert wire.answer().status == 503
    run.until(lambda: not any(psutil.pid_exists(pid) for pid in before))
    run.until(lambda: "did not leave within 1 s and is killed" in run.err)


def test_a_worker_that_retires_again_and_again_is_replaced_each_time_and_never_given_up(
    penstock: "Penstock", program: str
) -> None:
    run = penstock(
        app=program, workers=2, restart={"max_restarts": 1}, health={"interval": "100ms"}
    )

    def one_retires() -> bool:
        run.get("/retire")
        return run.metric("penstock_child_restarts_total", reason="retire") >= 6

    run.until(one_retires)
    settled(run, 2, set())
    assert "is in a crash loop" not in run.err
    assert not any(worker["crash_loop"] for worker in run.workers())
    assert run.get()[0] == 200
