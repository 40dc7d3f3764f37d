"""What a roll-out says at its end is what is so: who runs which version, and what was counted.

Covers `rollout/outcome`.
"""

import json
import re
import signal
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.support.live.many_clients import PASSED, once
from tests.support.live.versions import HEALTH, QUICK, Reload, is_at, reload, rollouts, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster
    from tests.support.live.wire import Wire

HALF = (
    "web/1 still runs the version before; "
    "web/0 already runs the new one and cannot be put back: its files are the new ones"
)


@pytest.mark.parametrize("scheme", ["ports", "shared"])
async def test_a_deploy_in_place_that_fails_half_way_names_who_has_which_version(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    write(tmp_path, "good v1")
    run = penstock(
        app="program:app", workers=2, scheme=scheme, health=HEALTH, rollout=QUICK,
        access_log="off", top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    run.may_trace = True
    before = {worker["slot"]: worker["pid"] for worker in run.workers()}
    write(tmp_path, "once v2")
    done = reload(run)
    assert done.status == 1, done.said
    first = done.err.splitlines()[0]
    assert first.startswith("penstock: roll-out 1 aborted: web/1: ")
    assert "no module named flux_capacitor" in first
    assert first.endswith(f"; {HALF}")
    # And it is so.
    after = {worker["slot"]: worker["pid"] for worker in run.workers()}
    assert after[0] != before[0]
    assert after[1] == before[1]
    answers = {await once(run.address()) for _ in range(60)}
    assert {answer.split("(pid ")[1].rstrip(")") for answer in answers} <= {
        str(pid) for pid in after.values()
    }
    for answer in answers:
        assert ("v2" in answer) == (str(after[0]) in answer)
    (told,) = rollouts(run)
    assert (told["leftover"], told["outcome"]) == (HALF, HALF)
    assert HALF in run.err
    # The next one reaches all, and so nothing is left over.
    write(tmp_path, "good v3")
    again = reload(run, "--json")
    assert again.status == 0, again.said
    assert (json.loads(again.out)["leftover"], json.loads(again.out)["outcome"]) == (
        "", "the new version serves",
    )  # fmt: skip


LONG = b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n"


def in_flight(run: "Cluster", count: int) -> "list[Wire]":
    """So many streams that have begun."""
    wires = [run.connect() for _ in range(count)]
    for wire in wires:
        wire.send(LONG)
        wire.until(b"data: 0")
    return wires


def test_a_proxy_that_is_killed_meanwhile_is_named_with_the_numbers(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    write(tmp_path, "good v1")
    run = penstock(
        app="program:app", workers=2, health=HEALTH, rollout=QUICK, access_log="off",
        top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    in_flight(run, 5)
    write(tmp_path, "cold v2")
    going = Reload(run)
    run.until(lambda: is_at(run, "checking"))
    (proxy,) = run.status()["pids"]["proxy"]
    psutil.Process(proxy).send_signal(signal.SIGKILL)
    run.until(lambda: run.status()["pids"]["proxy"] not in ([], [proxy]))
    (tmp_path / "warm").touch()
    assert going.end() == 0, going.said
    (told,) = rollouts(run)
    assert told["uncounted"] == ["proxy/0 was killed by SIGKILL"]
    why = "(proxy/0 was killed by SIGKILL: what it had is not known)"
    line = f"requests at least {told['requests']}, failed at least {told['failed']} {why}"
    assert line in going.out.splitlines()
    assert f"roll-out 1 has succeeded; {line}" in run.err


@pytest.mark.parametrize("scheme", PASSED)
def test_a_worker_that_counts_and_is_killed_meanwhile_is_named(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    write(tmp_path, "good v1")
    run = penstock(
        app="program:app", workers=2, scheme=scheme, health=HEALTH, rollout=QUICK,
        access_log="off", top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    assert run.get()[0] == 200
    write(tmp_path, "cold v2")
    going = Reload(run)
    run.until(lambda: is_at(run, "checking"))
    other = run.workers()[1]["pid"]
    psutil.Process(other).send_signal(signal.SIGKILL)
    run.until(lambda: run.workers()[1]["pid"] not in (None, other))
    (tmp_path / "warm").touch()
    assert going.end() == 0, going.said
    (told,) = rollouts(run)
    assert told["uncounted"] == ["web/1 was killed by SIGKILL"]
    assert "(web/1 was killed by SIGKILL: what it had is not known)" in going.out


@pytest.mark.parametrize("scheme", ["handoff", "reuseport"])
def test_where_nobody_is_killed_all_is_counted(
    penstock: "Penstock", tmp_path: "Path", scheme: str
) -> None:
    write(tmp_path, "stubborn v1")
    run = penstock(
        app="program:app", workers=2, scheme=scheme, health=HEALTH, rollout=QUICK,
        access_log="off", timeouts={"stop": "2s"}, top={"run_dir": str(tmp_path / "run")},
    )  # fmt: skip
    write(tmp_path, "good v2")
    done = reload(run)
    # Its clean-up is killed; what it had counted was told before.
    assert done.status == 0, done.said
    assert rollouts(run)[0]["uncounted"] == []
    assert any(line.startswith("requests 0, failed 0") for line in done.out.splitlines())


def test_a_service_that_nobody_counts_is_named(penstock: "Penstock", tmp_path: "Path") -> None:
    write(tmp_path, "good v1")
    web = {"app": "program:app", "health": HEALTH, "rollout": QUICK, "access_log": "off"}
    command = [sys.executable, "-c", SERVER]
    api = {"command": command, "scheme": "shared", "rollout": QUICK}
    run = penstock(services={"web": web, "api": api}, top={"run_dir": str(tmp_path / "run")})
    done = reload(run)
    assert done.status == 0, done.said
    assert "requests 0, failed 0; not counted: api" in done.out.splitlines()
    assert "requests 0, failed 0; not counted: api" in run.err
    assert rollouts(run)[0]["uncounted_services"] == ["api"]


SERVER = """
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
    connection.close()
"""


def test_a_proxy_that_is_not_needed_any_more_tells_what_it_had_to_cut(
    penstock: "Penstock", tmp_path: "Path"
) -> None:
    write(tmp_path, "good v1")
    run = penstock(
        app="program:app", workers=1, health=HEALTH, rollout=QUICK, access_log="off",
        timeouts={"stop": "2s"}, top={"run_dir": str(tmp_path / "run"), "proxies": 2},
    )  # fmt: skip
    in_flight(run, 12)
    file = tmp_path / "penstock.toml"
    text = file.read_text()
    assert "proxies" in text
    file.write_text(re.sub(r"(proxies\W+)2", r"\g<1>1", text))
    done = reload(run)
    assert done.status == 0, done.said
    assert rollouts(run)[0]["uncounted"] == []
    # It was cut at the last moment, long after anybody had asked for numbers.
    run.until(lambda: len(run.status()["proxies"]) == 1)
    run.until(lambda: run.metric("penstock_broken_off_total") > 0)
