"""Whatever is at the path of the configuration: a reload is refused with a reason, nothing hangs.

Covers `config/file_access`, `config/file_trust`, `blocking` and `rollout/reloading`.
"""

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.live.many_clients import pids
from tests.support.live.versions import HEALTH, QUICK, Reload, reload, served, write

from penstock_supervisor.config.file_access import SETTLED_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster

    Damage = Callable[["Path", str], object]

LONG = "x" * 300


def table(**keys: Any) -> dict[str, Any]:
    return {
        "app": "program:app", "workers": 2, "access_log": "off",
        "health": HEALTH, "rollout": QUICK, **keys,
    }  # fmt: skip


def linked_to(target: str) -> "Damage":
    return lambda path, _: path.symlink_to(target)


def with_key(line: str) -> "Damage":
    """The file as it was, with one more key in its first service."""
    return lambda path, text: path.write_text(
        text.replace("[service.web]\n", f"[service.web]\n{line}\n", 1)
    )


DAMAGES: "dict[str, tuple[Damage, str]]" = {
    "fifo": (lambda path, _: os.mkfifo(path), "it is a FIFO"),
    "endless": (linked_to("/dev/zero"), "it is a device"),
    "huge": (lambda path, _: path.write_text("#" * (5 << 20)), "too large: at most 1024 KiB"),
    "directory": (lambda path, _: path.mkdir(), "Is a directory"),
    "long": (with_key(f'directory = "/{LONG}"'), "file name too long"),
    "pipe-as-key": (with_key('tls = { cert = "fifo", key = "fifo" }'), "it is a FIFO"),
}

BY_SIGNAL = ("fifo", "long")


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def hang_up(run: "Cluster", words: str) -> None:
    """Reload by the signal, and wait for the line in the log."""
    before = run.err.count(words)
    os.kill(run.process.pid, signal.SIGHUP)
    run.until(lambda: run.err.count(words) > before, words)


def test_no_kind_of_file_hangs_a_reload_or_changes_anything(
    penstock: "Penstock", tmp_path: Path
) -> None:
    write(tmp_path, "good v1")
    os.mkfifo(tmp_path / "fifo")
    run = penstock(services={"web": table()}, top={"run_dir": str(tmp_path / "run")})
    path, before = tmp_path / "penstock.toml", pids(run)
    text = path.read_text()
    for name, (damage, words) in DAMAGES.items():
        remove(path)
        damage(path, text)
        done = reload(run)
        assert (done.status, words in done.err) == (2, True), (name, done.said)
        assert "bug of penstock" not in done.said
        if name in BY_SIGNAL:
            hang_up(run, words)
        assert served(run) == "v1"
        assert run.metric("penstock_config_last_reload_successful") == 0
        assert not run.status()["config_ok"]
        remove(path)
    path.write_text(text)
    assert pids(run) == before
    done = reload(run)
    assert done.status == 0, done.said
    assert run.metric("penstock_config_last_reload_successful") == 1
    assert served(run) == "v1"


class Writer:
    """Writes one of two files into the same place, each in two halves, again and again.

    A half is a valid file, too. A machine that is busy may keep a writer from going on for so long
    that its half looks complete; then nothing is known of the reloads at that time.
    """

    def __init__(self, path: Path, halves: list[tuple[str, str]]) -> None:
        self._path, self._halves = path, halves
        self._ends = threading.Event()
        self.was_slow = False
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        number = 0
        while not self._ends.wait(0.7 if number % 3 == 0 else 0.0):
            first, second = self._halves[number % 2]
            begun = time.monotonic()
            with self._path.open("w") as file:
                file.write(first)
                file.flush()
                time.sleep(SETTLED_S / 4)
                file.write(second)
            self.was_slow |= time.monotonic() - begun > SETTLED_S
            number += 1

    def end(self) -> None:
        self._ends.set()
        self._thread.join(30)


def test_a_file_that_is_written_in_place_is_read_whole_or_refused(
    penstock: "Penstock", tmp_path: Path
) -> None:
    write(tmp_path, "good v1")
    services = {"web": table(), "api": table()}
    run = penstock(services=services, top={"run_dir": str(tmp_path / "run")})
    path, halves = tmp_path / "penstock.toml", []
    for number in range(2):
        services["api"] = table(restart={"retry_after": f"{50 + number}s"})
        run.configure(services)
        first, mark, rest = path.read_text().partition("[service.api")
        halves.append((first, mark + rest))
    writer = Writer(path, halves)
    try:
        for _ in range(6):
            # It reads the file as any reload, and says what would be removed.
            done = reload(run, "--dry-run")
            assert done.status in (0, 2), done.said
            if done.status == 2:
                assert "it is being written" in done.err
            if not writer.was_slow:
                assert "removed" not in done.said, done.said
    finally:
        writer.end()
    if not writer.was_slow:
        assert set(run.status()["services"]) == {"web", "api"}
    assert served(run) == "v1"
    path.write_text("".join(halves[0]))
    done = reload(run)
    assert done.status == 0, done.said


def test_a_file_that_is_renamed_into_place_while_it_is_read_is_one_of_the_two(
    penstock: "Penstock", tmp_path: Path
) -> None:
    write(tmp_path, "good v1")
    run = penstock(services={"web": table()}, top={"run_dir": str(tmp_path / "run")})
    for number in range(2):
        # The file is young, so the reload reads it twice, and the other one comes in between.
        run.configure({"web": table(restart={"retry_after": f"{50 + number}s"})})
        asked = Reload(run)
        run.configure({"web": table(restart={"retry_after": f"{70 + number}s"})})
        assert asked.end() == 0, asked.said
        assert f"{50 + number}" in asked.said or f"{70 + number}" in asked.said, asked.said
    assert served(run) == "v1"


def test_root_is_warned_of_a_file_that_others_can_write_at_the_start_and_at_each_reload(
    penstock: "Penstock", tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root is warned")
    write(tmp_path, "good v1")
    run = penstock(services={"web": table()}, top={"run_dir": str(tmp_path / "run")})
    words = "everybody can write it: who can write it can start programs as root"
    assert words not in run.err
    (tmp_path / "penstock.toml").chmod(0o666)
    for count in (1, 2):
        assert reload(run).status == 0
        assert run.err.count(words) == count


def test_what_comes_out_of_a_pipe_is_good_for_a_start(penstock: "Penstock", tmp_path: Path) -> None:
    write(tmp_path, "good v1")
    run = penstock(
        "-c", "/dev/stdin", services={"web": table()}, top={"run_dir": str(tmp_path / "run")},
        under=("bash", "-c", 'exec "$@" < <(cat penstock.toml)', "bash"),
    )  # fmt: skip
    assert served(run) == "v1"
    done = reload(run)
    assert (done.status, "it is a FIFO" in done.err) == (2, True), done.said
    assert served(run) == "v1"
