"""Files and sockets of a run as root belong to the user that needs them, and to no other.

Covers `process/log_files`.
"""

import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.support.live.unprivileged import (
    DEMO,
    NOBODY,
    Words,
    assert_nobody,
)

pytestmark = pytest.mark.root


def test_a_log_in_a_users_directory_belongs_to_the_user_and_links_are_not_followed(
    penstock: Any, folder: Path, under: Words
) -> None:
    # There he could put a link for root to follow, and so root does nothing.
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    precious = folder / "precious"
    precious.write_text("root's own")
    precious.chmod(0o600)
    run = penstock("--user", "nobody", folder=folder, under=under, app=DEMO,
                   access_log="./access.log")  # fmt: skip
    log = folder / "access.log"
    assert log.stat().st_uid == NOBODY.pw_uid
    log.unlink()
    log.symlink_to("precious")
    run.process.send_signal(signal.SIGUSR1)
    run.until(lambda: "cannot reopen" in run.err, "the proxy's complaint")
    assert (precious.stat().st_uid, precious.read_text()) == (0, "root's own")


def test_a_unix_socket_belongs_to_the_user_and_has_the_configured_mode(
    penstock: Any, folder: Path, under: Words
) -> None:
    modes: dict[str, dict[str, str]] = {
        "usual": {}, "closed": {"socket_mode": "0600"}, "open": {"socket_mode": "0666"},
    }  # fmt: skip
    services = {
        name: {"listen": f"unix:{folder}/{name}", "app": DEMO, "workers": 1, "access_log": "off"}
        | mode
        for name, mode in modes.items()
    }
    run = penstock("--user", "nobody", services=services, folder=folder, under=under)
    found = {name: (folder / name).stat() for name in modes}
    assert {(one.st_uid, one.st_gid) for one in found.values()} == {(NOBODY.pw_uid, NOBODY.pw_gid)}
    assert found["closed"].st_mode & 0o777 == 0o600
    assert found["open"].st_mode & 0o777 == 0o666
    assert run.stop() == 0
    assert not any((folder / name).exists() for name in modes)


def test_a_proxy_serves_tls_with_a_key_that_only_root_can_read(
    penstock: Any, folder: Path, under: Words
) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.cert_chain_pems[0].bytes())
    key.write_bytes(made.private_key_pem.bytes())
    key.chmod(0o600)
    run = penstock(
        "--user", "nobody", folder=folder, under=under, app=DEMO, access_log="off",
        tls={"cert": "cert.pem", "key": "key.pem"},
    )  # fmt: skip
    assert_nobody(run.proxy.pid)
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    with (
        socket.create_connection(run.address(), timeout=60) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as wire,
    ):
        wire.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert wire.recv(100).startswith(b"HTTP/1.1 200")
