"""A reload whose files are closed to the user of the run is refused, and says which and why."""

import os
import signal
from typing import TYPE_CHECKING, Any

from tests.support.live.many_clients import pids
from tests.support.live.unprivileged import AS_NOBODY, NOBODY, Words
from tests.support.live.versions import HEALTH, QUICK, reload, served, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.conftest import Penstock
    from tests.support.live.cluster import Cluster


def table(**keys: Any) -> dict[str, Any]:
    return {"app": "program:app", "access_log": "off", "health": HEALTH, "rollout": QUICK, **keys}


def hang_up(run: "Cluster", words: str) -> None:
    """Reload by the signal, and wait for the line in the log."""
    before = run.err.count(words)
    os.kill(run.process.pid, signal.SIGHUP)
    run.until(lambda: run.err.count(words) > before, words)


def test_what_is_closed_to_the_user_of_the_run_is_refused(
    penstock: "Penstock", folder: "Path", under: Words
) -> None:
    write(folder, "good v1")
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    for path in (folder, *folder.iterdir()):
        if path != closed:
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    run = penstock(
        services={"web": table()}, folder=folder, under=(*under, *AS_NOBODY), top={"run_dir": "run"}
    )
    file = folder / "penstock.toml"
    text, before = file.read_text(), pids(run)
    for key, value in (("directory", closed / "x"), ("access_log", closed / "x" / "log")):
        keys = {key: str(value)}
        run.configure({"web": {**table(), **keys}})
        done = reload(run)
        assert (done.status, "permission denied" in done.err) == (2, True), done.said
        assert f"service.web.{key}: " in done.err
    file.write_text(text)
    file.chmod(0o600)
    os.chown(file, 0, 0)
    done = reload(run)
    assert (done.status, "penstock.toml: Permission denied" in done.err) == (2, True), done.said
    hang_up(run, "penstock.toml: Permission denied")
    assert (pids(run), served(run)) == (before, "v1")
    file.chmod(0o644)
    assert reload(run).status == 0
