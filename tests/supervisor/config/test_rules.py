"""A scheme that cannot work with a program, mode or address is refused with an alternative."""

from pathlib import Path

import pytest

from penstock_supervisor.config.loader import ConfigError, load


def problems_of(folder: Path, text: str) -> list[str]:
    path = folder / "web.toml"
    path.write_text(f'[service.web]\nlisten = "127.0.0.1:8000"\n{text}')
    try:
        load(path, {})
    except ConfigError as error:
        return [line.removeprefix(f"{path}: service.web.") for line in error.problems]
    return []


APP = "app = 'a:b'\n"
COMMAND = "command = ['node', 'x.js']\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "upstreams = ['127.0.0.1:1']\nscheme = 'shared'",
            'scheme: expected "ports": upstreams are run by others, and can only be connected to',
        ),
        (
            f"{COMMAND}scheme = 'handoff'",
            (
                "scheme: expected app with handoff: a command cannot take connections from a link; "
                "ports, shared and reuseport work with any program"
            ),
        ),
        (
            f"{APP}scheme = 'handoff'\nmode = 'udp'",
            "mode: handoff works with connections, and udp has none; shared and reuseport do",
        ),
        (
            f"{APP}mode = 'udp'",
            "mode: ports works with connections, and udp has none; shared and reuseport do",
        ),
        (
            f"{APP}scheme = 'shared'\nmode = 'udp'\nhealth = {{ path = '/x' }}",
            "health.path: udp has no requests to ask with",
        ),
        (
            f"{COMMAND}scheme = 'reuseport'\nhealth = {{ path = '/x' }}",
            (
                "health.path: no single worker of a command is asked with reuseport; "
                "with ports it is"
            ),
        ),
        (
            f"{APP}scheme = 'shared'\nbalance = 'client_hash'",
            (
                'balance: only with scheme = "ports" or "handoff": '
                "otherwise the kernel chooses the worker"
            ),
        ),
        (
            f"{APP}handoff_window = 4",
            'handoff_window: only with scheme = "handoff": no other passes connections',
        ),
        (
            f"{APP}scheme = 'reuseport'\nworker_ports = '8101-8199'",
            'worker_ports: only with scheme = "ports": no other gives workers ports of their own',
        ),
        (
            f"{COMMAND}scheme = 'shared'\naccept_proxy = true\ntrusted_proxies = ['unix']",
            (
                "accept_proxy: nobody reads the header for a command with shared; "
                "the proxy does with ports, and the worker of an app"
            ),
        ),
        (
            f"{APP}scheme = 'shared'\nmode = 'udp'\naccept_proxy = true\ntrusted_proxies = ['::']",
            "accept_proxy: expected connections: a datagram has no beginning",
        ),
        (
            f"{APP}scheme = 'handoff'\nsend_proxy = 'v2'",
            (
                'send_proxy: only with scheme = "ports": '
                "elsewhere a worker has the client's own connection"
            ),
        ),
        (
            f"{APP}scheme = 'shared'\ntrusted_proxies = ['::1']",
            (
                'trusted_proxies: only with scheme = "ports" or accept_proxy: '
                "no other adds fields to a request"
            ),
        ),
        (
            f"{APP}scheme = 'handoff'\nforwarding = {{ via = '' }}",
            'forwarding: only with scheme = "ports": no other adds fields to a request',
        ),
        (
            f"{APP}balance = 'client_hash'\nhealth = {{ slow_start = '5s' }}",
            (
                'health.slow_start: expected another balance than "client_hash", '
                "which gives each client its one worker"
            ),
        ),
        (
            f"{APP}liveness = {{ timeout = '2s' }}",
            'liveness.timeout: expected "0s" (off), or at least "3s", not "2s"',
        ),
        (
            "upstreams = ['127.0.0.1:1']\nhealth = { restart_after = '1m' }",
            "health.restart_after: only with app or command: upstreams are run by others",
        ),
        (
            "upstreams = ['127.0.0.1:1']\nliveness = { timeout = '1m' }",
            "liveness.timeout: only with app or command: upstreams are run by others",
        ),
        (
            f"{APP}mode = 'tcp'\nforwarding = {{ forwarded = true }}",
            'forwarding: only with mode = "http": no other adds fields to a request',
        ),
    ],
)
def test_incompatible_keys_are_reported_with_an_alternative(
    tmp_path: Path, text: str, problem: str
) -> None:
    assert problems_of(tmp_path, text) == [problem]


def test_a_unix_socket_cannot_be_reused(tmp_path: Path) -> None:
    path = tmp_path / "web.toml"
    path.write_text("[service.web]\nlisten = 'unix:/x'\nscheme = 'reuseport'\napp = 'a:b'")
    with pytest.raises(ConfigError, match="a unix socket has no port to share"):
        load(path, {})


@pytest.mark.parametrize("scheme", ["shared", "reuseport"])
def test_a_program_with_socket_activation_works_without_a_proxy(
    tmp_path: Path, scheme: str
) -> None:
    assert problems_of(tmp_path, f"{COMMAND}scheme = '{scheme}'") == []


def test_streams_and_datagrams_may_have_the_same_port(tmp_path: Path) -> None:
    text = (
        f"{APP}[service.dns]\nlisten = '127.0.0.1:8000'\nscheme = 'shared'\nmode = 'udp'\n"
        "app = 'a:b'"
    )
    assert problems_of(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            f"{APP}scheme = 'shared'",
            (
                'proxies: only with a service of scheme = "ports" or "handoff": '
                "the others have no proxy"
            ),
        ),
        (
            f"{APP}max_connections = 1",
            "service.web.max_connections: expected 0, or at least 1 for each of 2 proxies",
        ),
        (
            f"{APP}limits = {{ queue = 1 }}",
            "service.web.limits.queue: expected 0, or at least 1 for each of 2 proxies",
        ),
        (f"{APP}max_connections = 2", None),
        (f"{APP}[service.x]\nlisten = '127.0.0.1:1'\nscheme = 'shared'\n{APP}", None),
    ],
)
def test_several_proxies_are_refused_without_a_service_that_uses_a_proxy(
    tmp_path: Path, text: str, problem: str | None
) -> None:
    path = tmp_path / "web.toml"
    path.write_text(f"proxies = 2\n[service.web]\nlisten = '127.0.0.1:8000'\n{text}")
    if problem is None:
        assert load(path, {}).proxies == 2
        return
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert caught.value.problems == (f"{path}: {problem}",)
